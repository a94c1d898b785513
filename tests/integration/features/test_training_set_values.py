"""Training sets, and Feast's own retrieval on the as-of store: the same values, against an oracle by hand."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from datetime import timedelta
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from manta.errors import DefinitionInvalid, InvalidInput, NotFound
from manta.features import pinned
from manta.features.materialize import materialize
from manta.features.online import OnlineReader
from manta.features.partitioned import Limits
from manta.features.training_set import training_set

from .conftest import START, Shop, datasets, hours


def rows(**changes: Any) -> pa.Table:
    columns = {
        "shop": [1, 1, 2, 1, None, 1],
        "city": ["rom", "rom", "rom", "bari", "rom", "rom"],
        "at": hours(8, 5, 8, 4, 8, 8),
        "amount": [4.0, 0.0, -1.0, None, 2.25, 4.0],
        "late": [0, 1, 0, 1, 0, 1],
    }
    return pl.DataFrame(columns | changes).to_arrow()


def test_values_are_those_known_at_each_rows_time(shop: Shop) -> None:
    table = training_set(
        shop.root, shop.settings, "trip", rows(), "at", shop.versions(), shop.manifest("trip")
    )
    assert table.select(rows().column_names) == rows()
    found = table.to_pydict()
    # At 5 and 8 h the rows of 5 h, written at 6 and 9 h, are not both there yet.
    assert found["buyers"] == [3, 1, -4, None, None, 3]
    assert found["sold"] == [2.5, pytest.approx(0.1), None, None, None, 2.5]
    assert found["best"] == [None, "ham", "égg", None, None, None]
    assert found["recent"] == [None, [1.0], [1.5, -2.0], None, None, None]
    assert found["open"] == [None, True, True, None, None, None]
    assert found["last_sale"] == hours(4.5, 0.5, None, None, None, 4.5)
    assert found["temp"] == [25.0, 22.0, 25.0, -3.5, 25.0, 25.0]
    assert found["built"] == [1990, 1990, 2001, 1990, None, 1990]
    assert found["mood"] == ["calm"] * 6
    assert found["amount_root"] == [2.5, 0.5, None, None, 2.0, 2.5]
    assert found["warmer"] == [True, True, True, False, True, True]
    assert found["age"] == [8100, None, 8100, 9000, 8100, 8100]
    schema = {
        name: str(table.schema.field(name).type) for name in ("sold", "buyers", "built", "age", "warmer")
    }
    assert schema == {"sold": "float", "buyers": "int32", "built": "int64", "age": "int64", "warmer": "bool"}


def test_without_a_manifest_the_registry_is_asked(shop: Shop) -> None:
    manifest = shop.manifest("trip")
    given = training_set(shop.root, shop.settings, "trip", rows(), "at", shop.versions(), manifest)
    assert training_set(shop.root, shop.settings, "trip", rows(), "at", shop.versions()) == given
    with pytest.raises(NotFound, match="no feature service 'trips'"):
        training_set(shop.root, shop.settings, "trips", rows(), "at", shop.versions())


def test_the_versions_named_are_read(shop: Shop) -> None:
    manifest, before = shop.manifest("trip"), shop.versions()
    old = training_set(shop.root, shop.settings, "trip", rows(), "at", before, manifest)
    shop.put("weather", datasets()["weather"].with_columns(pl.col("temp") + 100))
    assert training_set(shop.root, shop.settings, "trip", rows(), "at", before, manifest) == old
    new = training_set(shop.root, shop.settings, "trip", rows(), "at", shop.versions(), manifest)
    assert new["temp"].to_pylist() == [value + 100 for value in old["temp"].to_pylist()]
    with pytest.raises(NotFound, match="'weather' has no version 77"):
        training_set(shop.root, shop.settings, "trip", rows(), "at", before | {"weather": 77}, manifest)
    with pytest.raises(InvalidInput, match="reads weather, of which no version is named"):
        training_set(
            shop.root, shop.settings, "trip", rows(), "at", {"sales": 0, "facts": 0, "world": 0}, manifest
        )


def test_feast_gives_the_same(shop: Shop) -> None:
    """`get_historical_features`, with late rows hidden, on the same versions."""
    manifest, versions = shop.manifest("trip"), shop.versions()
    shop.put("weather", datasets()["weather"].with_columns(pl.col("temp") + 100))
    given = training_set(shop.root, shop.settings, "trip", rows(), "at", versions, manifest)
    store = shop.store()
    entity = rows().to_pandas().assign(event_timestamp=lambda frame: frame["at"])
    with pinned(versions):
        job = store.get_historical_features(
            entity, store.get_feature_service("trip"), filter_by_created_timestamp=True
        )
    table = job.to_arrow()
    for name in set(given.column_names) - set(rows().column_names):
        assert table[name].to_pylist() == given[name].to_pylist(), name
    assert len(job.to_df()) == 6
    newest = store.get_historical_features(entity, store.get_feature_service("trip")).to_arrow()
    assert newest["temp"].to_pylist() == [value + 100 for value in given["temp"].to_pylist()]
    # Feast's own default does not hide what was written late: the row of 5 h written last counts from 5 h on.
    assert newest["buyers"].to_pylist() == [2, 2, -4, None, None, 2]


def test_full_names_and_single_features(shop: Shop) -> None:
    shop.apply()
    store = shop.store()
    entity = pd.DataFrame({"shop": [1], "city": ["rom"], "event_timestamp": [START + timedelta(hours=8)]})
    asked = ["weather:temp", "facts:built", "weather:rain"]
    table = store.get_historical_features(entity, asked, full_feature_names=True).to_arrow()
    assert table.column_names == [*entity.columns, "weather__temp", "weather__rain", "facts__built"]
    assert table.slice(0, 1).to_pylist()[0]["weather__temp"] == 25.0
    asked = ["asking:amount_root", "asking:warmer"]
    entity = entity.assign(amount=4.0, at=entity["event_timestamp"])
    full = store.get_historical_features(entity, asked, full_feature_names=True).to_arrow()
    assert full["asking__amount_root"].to_pylist() == [2.5]
    assert full["asking__warmer"].to_pylist() == [True]


def test_a_mapped_view_is_joined_by_the_other_key(shop: Shop) -> None:
    given = pl.DataFrame(
        {"shop": [1, 1], "city": ["rom", "rom"], "from_city": ["rom", "bari"], "at": hours(3, 3)}
    ).to_arrow()
    table = training_set(
        shop.root, shop.settings, "plain", given, "at", shop.versions(), shop.manifest("plain")
    )
    assert table["rain"].to_pylist() == [3.0, None]
    store = shop.store()
    entity = given.to_pandas().rename(columns={"at": "event_timestamp"})
    feast = store.get_historical_features(entity, store.get_feature_service("plain")).to_arrow()
    assert feast["rain"].to_pylist() == [3.0, None]


def test_the_newest_and_all_rows_between_two_dates(shop: Shop) -> None:
    shop.apply()
    store = shop.store()
    source = store.get_feature_view("sales").batch_source
    pull = store._get_provider().offline_store
    asked = (store.config, source, ["shop", "city"], ["buyers"], "at", "written")
    between = (START, START + timedelta(hours=5))
    newest = pull.pull_latest_from_table_or_query(*asked, *between).to_arrow()
    assert sorted(newest.select(["shop", "city", "buyers"]).to_pylist(), key=str) == [
        {"shop": 1, "city": "rom", "buyers": 2},
        {"shop": 2, "city": "rom", "buyers": -4},
    ]
    everything = pull.pull_all_from_table_or_query(*asked, *between).to_arrow()
    assert everything["buyers"].to_pylist() == [1, 2, 3, -4, 5, 6]
    naive = [date.replace(tzinfo=None) for date in between]
    assert pull.pull_all_from_table_or_query(*asked, *naive).to_arrow() == everything
    assert pull.pull_all_from_table_or_query(*asked).to_arrow().num_rows == 7
    world = store.get_feature_view("world").batch_source
    latest = pull.pull_latest_from_table_or_query(
        store.config, world, [], ["mood"], "day", None, START, START + timedelta(days=3)
    ).to_arrow()
    assert latest.to_pylist() == [{"mood": "gay", "day": START + timedelta(days=1), "__dummy_id": ""}]


def test_offline_now_equals_online(shop: Shop) -> None:
    """At the time of the materialization, whatever the key: what is read online is what the join gives."""
    manifest, end = shop.manifest("trip"), START + timedelta(hours=7, minutes=30)
    shops, cities = [1, 2, 3, 99], ["rom", "bari", "oslo", ""]
    asked = pl.DataFrame({"shop": shops}).join(pl.DataFrame({"city": cities}), how="cross")
    asked = asked.with_columns(at=pl.lit(end), amount=pl.int_range(pl.len()).cast(pl.Float64))
    # What was written after the end would be hidden from a training set, and is not from the store.
    late = datasets()["sales"].filter(pl.col("written") <= end)
    shop.put("sales", late)
    materialize(shop.service("trip"), shop.settings.datasets, shop.versions(), until=end)
    table = training_set(shop.root, shop.settings, "trip", asked.to_arrow(), "at", shop.versions(), manifest)
    reader = OnlineReader(manifest, "trip")
    columns = {name: asked[name].to_list() for name in ("shop", "city", "amount", "at")}
    looked = reader.read(columns, columns["at"])
    for name, values in looked.values.items():
        assert values == table[name].to_pylist(), name


@pytest.mark.parametrize(
    ("table", "time", "error", "says", "hint"),
    [
        (rows().drop_columns(["city"]), "at", InvalidInput, "no column city", "shop, at, amount"),
        (
            rows().drop_columns(["amount"]),
            "at",
            InvalidInput,
            "no column amount, which .* 'trip' needs",
            "city",
        ),
        (rows(), "when", InvalidInput, "no column when", "at, amount, late"),
        (rows(), "late", InvalidInput, "'late' is Int64, not a time", "timestamp"),
        (rows(shop=["1"] * 6), "at", InvalidInput, "join key 'shop' as String", "cast 'shop' to int64"),
        (rows(amount=["x"] * 6), "at", InvalidInput, "field 'amount' as String", "cast 'amount' to float64"),
        (rows(temp=[1.0] * 6), "at", InvalidInput, "already have a column temp", "rename"),
    ],
)
def test_rows_that_do_not_fit_say_what_to_change(
    shop: Shop, table: pa.Table, time: str, error: type[Exception], says: str, hint: str
) -> None:
    with pytest.raises(error, match=says) as failure:
        training_set(shop.root, shop.settings, "trip", table, time, shop.versions(), shop.manifest("trip"))
    assert hint in failure.value.hint  # type: ignore[attr-defined]


def test_a_dataset_that_has_changed_says_which(shop: Shop) -> None:
    manifest = shop.manifest("trip")
    shop.put("weather", datasets()["weather"].drop("temp"))
    with pytest.raises(DefinitionInvalid, match=r"'weather'.* has no column temp") as failure:
        training_set(shop.root, shop.settings, "trip", rows(), "at", shop.versions(), manifest)
    assert "city, hour" in failure.value.hint


def test_a_set_made_on_disk_is_the_same(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = (shop.root, shop.settings, "trip", rows(), "at", shop.versions(), shop.manifest("trip"))
    held = training_set(*asked)
    small = Limits(in_process_rows=0, partition_rows=2, folder=f"{shop.settings.datasets}/.spill")
    monkeypatch.setattr("manta.features.training_set.limits_of", lambda lake: small)
    # The Ray that other tests may have started knows nothing of this project's modules.
    monkeypatch.setattr("manta.features.partitioned.ray_connected", lambda: False)
    assert training_set(*asked) == held
    assert list((shop.lake.folder / ".spill").iterdir()) == []


def test_every_row_of_a_big_set_is_kept_once_and_in_order(shop: Shop) -> None:
    count = 100_000
    n = pl.int_range(count)
    given = pl.select(
        row=n,
        shop=n % 3,
        city=pl.lit(pl.Series(["rom", "bari", "oslo"])).gather(n % 3),
        at=pl.lit(START) + pl.duration(seconds=n * 7919 % 200_000),
        amount=n.cast(pl.Float64),
    )
    began = time.process_time()  # what it works: the machine has others to serve
    table = training_set(
        shop.root, shop.settings, "trip", given.to_arrow(), "at", shop.versions(), shop.manifest("trip")
    )
    print(f"{time.process_time() - began:.2f} s")
    assert time.process_time() - began < 5
    assert table["row"].to_pylist() == list(range(count))
    assert table["amount_root"].to_pylist() == [math.sqrt(n) + 0.5 for n in range(count)]


def test_a_training_process_needs_no_feast(shop: Shop) -> None:
    code = f"""
import sys, json
sys.path.insert(0, {str(shop.root)!r})
from pathlib import Path
import polars as pl
from manta.settings import Settings
from manta.features.compiled import read_manifest
from manta.features.training_set import training_set
settings = Settings.model_validate_json(sys.argv[1])
rows = pl.read_parquet({str(shop.root / "rows.parquet")!r}).to_arrow()
manifest = read_manifest({str(shop.apply()["trip"])!r})
table = training_set(Path({str(shop.root)!r}), settings, "trip", rows, "at", {shop.versions()!r}, manifest)
print(table["amount_root"].to_pylist(), "feast" in sys.modules)
"""
    pl.DataFrame(rows()).write_parquet(shop.root / "rows.parquet")
    done = subprocess.run(
        [sys.executable, "-c", code, shop.settings.for_worker()], capture_output=True, text=True
    )
    assert done.stdout == "[2.5, 0.5, None, None, 2.0, 2.5] False\n", done.stderr
