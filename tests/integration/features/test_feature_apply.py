"""Applying a Feast repository: what is registered, what is refused, what a manifest depends on."""

from __future__ import annotations

import fcntl
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from feast.data_source import DataSource

from manta.definitions import FeatureRepo, from_json
from manta.errors import DefinitionInvalid, FeaturesUnavailable, NotFound, SettingsInvalid
from manta.features import DatasetSource
from manta.features import apply as applying
from manta.features.apply import apply
from manta.features.compiled import read_manifest, service_of
from manta.features.manifest import compile_service
from manta.features.repo import describe, parse

from .conftest import ONLINE, STORE, VIEWS, Shop


def registry(shop: Shop) -> dict[str, list[Any]]:
    """All the rows of the registry, but for the project's, which say when Feast last looked."""
    names = ("entities", "data_sources", "feature_views", "on_demand_feature_views", "feature_services")
    with sqlite3.connect(shop.settings.home / "feast" / "registry.db") as connection:
        held = {name: connection.execute(f"SELECT * FROM {name} ORDER BY 1").fetchall() for name in names}
        held["versions"] = connection.execute("SELECT * FROM feature_view_version_history").fetchall()
    assert held["feature_views"]
    return held


def test_a_second_apply_changes_nothing(shop: Shop) -> None:
    first = shop.apply()
    held = registry(shop)
    stamps = {path: path.stat().st_mtime_ns for path in first.values()}
    assert shop.apply() == first
    assert registry(shop) == held
    assert {path: path.stat().st_mtime_ns for path in first.values()} == stamps
    assert sorted(first) == ["plain", "trip"]
    assert first["trip"] == shop.settings.home / "manifests" / f"{first['trip'].stem}.json"


def test_what_is_gone_from_the_repository_goes_from_the_registry(shop: Shop) -> None:
    shop.apply()
    start = VIEWS.index("asking = OnDemand")
    services = """
trip = FeatureService(name="trip", features=[sales, facts, world])
"""
    without = (
        VIEWS[:start].replace("weather = FeatureView(", "_weather = dict(").replace("away", "") + services
    )
    shop.write("views.py", without)
    shop.apply()
    store = shop.store()
    assert sorted(view.name for view in store.list_feature_views()) == ["facts", "sales", "world"]
    assert store.list_on_demand_feature_views() == []
    assert sorted(entity.name for entity in store.list_entities()) == ["city", "shop"]
    services = {s.name: [p.name for p in s.feature_view_projections] for s in store.list_feature_services()}
    assert services == {"trip": ["sales", "facts", "world"]}
    assert "weather" not in {source.name for source in store.list_data_sources()}


def test_a_service_has_a_new_version_when_and_only_when_reading_it_changes(shop: Shop) -> None:
    first = shop.apply()
    shop.change("views.py", "from datetime import timedelta", "# a remark\nfrom datetime import timedelta")
    assert shop.apply() == first
    shop.change("views.py", "ttl=timedelta(hours=3)", "ttl=timedelta(hours=4)")
    second = shop.apply()
    assert second["trip"] != first["trip"]
    assert second["plain"] != first["plain"]  # by way of `away`
    assert first["trip"].exists()  # the old one is there for whom it is still serving
    shop.change("asking.py", "STEP = 0.5", "STEP = 0.25")
    third = shop.apply()
    assert third["trip"] != second["trip"]
    assert third["plain"] == second["plain"]
    shop.change("asking.py", "STEP = 0.25", "STEP = 0.5")
    shop.change("views.py", "ttl=timedelta(hours=4)", "ttl=timedelta(hours=3)")
    assert shop.apply() == first


def test_feast_keeps_on_demand_views_whose_outputs_alone_changed_and_manta_does_not(shop: Shop) -> None:
    shop.apply()
    shop.change("views.py", '        Field(name="age", dtype=Int64),\n', "")
    manifest = shop.manifest("trip")
    (view,) = shop.store().list_on_demand_feature_views()
    assert [feature.name for feature in view.features] == ["amount_root", "warmer"]
    assert "age" not in service_of(manifest, "trip").types


def test_the_registry_gives_back_the_source_it_was_given(shop: Shop) -> None:
    shop.apply()
    given = {
        s.name: s
        for s in parse(shop.root, shop.settings).contents.data_sources
        if isinstance(s, DatasetSource)
    }
    held = {s.name: s for s in shop.store().list_data_sources() if isinstance(s, DatasetSource)}
    assert given == held
    assert {s.name: (s.dataset, s.time, s.created) for s in held.values()} == {
        "sales": ("sales", "at", "written"),
        "weather": ("weather", "hour", None),
        "facts": ("facts", None, None),
        "world": ("world", "day", None),
    }
    source = DatasetSource(
        name="a", dataset="b", timestamp_field="t", field_mapping={"x": "y"}, tags={"k": "v"}
    )
    again = DataSource.from_proto(source.to_proto())
    assert again == source
    assert hash(again) == hash(source)
    assert again != DatasetSource(
        name="a", dataset="c", timestamp_field="t", field_mapping={"x": "y"}, tags={"k": "v"}
    )


def test_a_source_knows_its_columns_and_says_what_is_missing(shop: Shop) -> None:
    config = shop.store().config
    sources = {s.name: s for s in parse(shop.root, shop.settings).contents.data_sources}
    columns = dict(sources["sales"].get_table_column_names_and_types(config))
    to_feast = DatasetSource.source_datatype_to_feast_value_type()
    assert {name: to_feast(kind).name for name, kind in columns.items()} == {
        "shop": "INT64",
        "city": "STRING",
        "at": "UNIX_TIMESTAMP",
        "written": "UNIX_TIMESTAMP",
        "sold": "DOUBLE",
        "buyers": "INT64",
        "best": "STRING",
        "open": "BOOL",
        "last_sale": "UNIX_TIMESTAMP",
        "recent": "DOUBLE_LIST",
    }
    sources["sales"].validate(config)
    DatasetSource(name="s", dataset="to_be_made", timestamp_field="t").validate(config)
    with pytest.raises(DefinitionInvalid, match="no time column 'sold'") as failure:
        DatasetSource(name="s", dataset="sales", timestamp_field="sold").validate(config)
    assert "written timestamp" in failure.value.hint


def test_describing_needs_no_registry_and_names_what_stands_behind_a_service(shop: Shop) -> None:
    repo = describe(shop.root, shop.settings)
    assert repo is not None
    assert not shop.settings.home.joinpath("feast").exists()
    assert from_json(repo.to_json()) == repo
    assert repo.services == {
        "trip": ("sales", "weather", "facts", "world", "asking"),
        "plain": ("sales", "facts", "world", "weather"),
    }
    assert [ref.name for ref in repo.datasets_of("trip")] == ["facts", "sales", "weather", "world"]
    assert {view.name: (view.dataset, view.ttl_seconds) for view in repo.views}["weather"] == (
        "weather",
        10800.0,
    )
    assert describe(shop.root / "elsewhere", shop.settings) is None


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("views.py", "hours=3", "hours=4", {"weather"}),
        ("views.py", 'dataset="sales"', 'dataset="sales2"', {"sales"}),
        ("views.py", 'Field(name="rain", dtype=Float64)', 'Field(name="rain", dtype=Float32)', {"weather"}),
        ("asking.py", "> 20", "> 21", {"asking"}),
        ("views.py", "from datetime", "# a remark\nfrom datetime", set()),
    ],
)
def test_a_fingerprint_covers_what_a_view_is(
    shop: Shop, file: str, old: str, new: str, changes: set[str]
) -> None:
    before = describe(shop.root, shop.settings)
    again = describe(shop.root, shop.settings)
    shop.change(file, old, new)
    after = describe(shop.root, shop.settings)
    assert isinstance(before, FeatureRepo)
    assert isinstance(after, FeatureRepo)
    assert before == again
    of = {view.name: view.fingerprint for view in before.views}
    assert {view.name for view in after.views if of[view.name] != view.fingerprint} - {
        "asking"
    } == changes - {"asking"}
    assert (before.fingerprint != after.fingerprint) == bool(changes)
    if changes == {"asking"}:
        assert {view.name for view in after.views if of[view.name] != view.fingerprint} == changes


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("manta.features.offline.AsofOfflineStore\n  lake: ${MANTA_LAKE}", "dask", "dask store drops rows"),
        ("manta.features.offline.AsofOfflineStore\n  lake: ${MANTA_LAKE}", "ray", "ray store ignores TTLs"),
        ("manta.features.offline.AsofOfflineStore\n  lake: ${MANTA_LAKE}", "duckdb", "reads no datasets"),
        (
            "offline_store:\n  type: manta.features.offline.AsofOfflineStore\n  lake: ${MANTA_LAKE}\n",
            "",
            "default, the dask store, drops rows",
        ),
        ("registry_type: sql", "registry_type: file", "registry_type must be sql"),
        ("  serve_features_while_materializing: true\n", "", "refuses to serve a view while"),
        ("cache_ttl_seconds: 0", "cache_ttl_seconds: 5", "cache_ttl_seconds must be 0 or at least 600"),
        ("pull_latest_features: true", "pull_latest_features: false", "pull_latest_features must be true"),
        ("entity_key_serialization_version: 3", "entity_key_serialization_version: 2", "must be 3"),
        ("type: sqlite", "type: mysql", "online_store.type must be one of sqlite, redis, postgres"),
        ("${MANTA_PROJECT}", "other", "project must be test"),
        ("${MANTA_LAKE}", "${NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE.* is not set"),
        ("provider: local", "provider: [", "not YAML"),
    ],
)
def test_settings_that_would_give_wrong_values_are_refused(shop: Shop, old: str, new: str, says: str) -> None:
    written = STORE.replace("ONLINE", ONLINE["sqlite"])
    assert old in written
    shop.write("feature_store.yaml", written.replace(old, new))
    with pytest.raises(SettingsInvalid, match=says):
        parse(shop.root, shop.settings)


@pytest.mark.parametrize(
    ("file", "old", "new", "says", "hint"),
    [
        ("views.py", "import asked", "import asks", "cannot import name 'asks'.*views.py:7", "manta plan"),
        ("asking.py", "import math", "import math\nimport feast", "without Feast", "request_time.py"),
        ("views.py", "udf=asked", "udf=lambda columns: {}", "without Feast", "request_time.py"),
        ("views.py", 'mode="python"', 'mode="pandas"', "mode 'pandas'", 'mode="python"'),
        (
            "views.py",
            'name="age", dtype=Int64',
            'name="age", dtype=Int32',
            "age as Int32 .Int64.",
            "brackets",
        ),
        ("asking.py", "value < 0", "value < nothing", "NameError", "one row"),
        ("views.py", "Array(Float64)", "Map", "'recent' of 'sales' is Map|Map", "manta reads"),
        ("views.py", "timestamp_field=None", 'timestamp_field=None, owner="x"', None, ""),
        (
            "views.py",
            "ttl=timedelta(0)",
            "ttl=timedelta(1)",
            "has a TTL, and its source 'facts' has no time",
            "ttl",
        ),
        ("views.py", 'Field(name="mood", dtype=String)', "", "no type of its features", "schema"),
        (
            "views.py",
            'DatasetSource(name="world", dataset="world", timestamp_field="day")',
            '__import__("feast").FileSource(name="w", path="w.parquet", timestamp_field="day")',
            "reads a FileSource",
            "DatasetSource",
        ),
    ],
)
def test_what_cannot_be_served_is_refused_before_anything_is_registered(
    shop: Shop, file: str, old: str, new: str, says: str | None, hint: str
) -> None:
    shop.change(file, old, new)
    if file == "views.py" and new == "Map":
        shop.change("views.py", "import Array, ", "import Array, Map, ")
    if says is None:
        parse(shop.root, shop.settings)
        return
    with pytest.raises(DefinitionInvalid, match=says) as failure:
        shop.apply()
    assert hint in failure.value.hint
    assert not (shop.settings.home / "feast").exists()


def test_names_that_mean_two_things_are_refused(shop: Shop) -> None:
    shop.change("views.py", "        sales,\n        facts,", '        weather[["rain"]],\n        facts,')
    with pytest.raises(
        DefinitionInvalid, match="several features, keys or request fields named rain"
    ) as failure:
        shop.apply()
    assert "rename" in failure.value.hint
    shop.change(
        "views.py", "trip = FeatureService(", 'warm = weather.with_name("warm")\ntrip = FeatureService('
    )
    with pytest.raises(DefinitionInvalid, match="2 feature views are named 'weather'") as failure:
        describe(shop.root, shop.settings)
    assert "keep it in no variable" in failure.value.hint


def test_an_unknown_service_is_named_with_those_that_exist(shop: Shop) -> None:
    shop.apply()
    with pytest.raises(NotFound, match="no feature service 'tripp'") as failure:
        compile_service(shop.store(), "tripp", {})
    assert failure.value.hint in ("there is: trip, plain", "there is: plain, trip")
    with pytest.raises(NotFound, match="describes the feature service 'trip', not 'plain'"):
        service_of(shop.manifest("trip"), "plain")


def test_a_manifest_that_is_gone_or_of_another_form_says_what_to_do(shop: Shop, tmp_path: Path) -> None:
    with pytest.raises(FeaturesUnavailable, match="is gone") as failure:
        read_manifest(tmp_path / "none.json")
    assert "manta run features" in failure.value.hint
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(FeaturesUnavailable, match="cannot be read"):
        read_manifest(tmp_path / "bad.json")
    with pytest.raises(FeaturesUnavailable, match="format 99"):
        service_of(shop.manifest("trip") | {"format": 99}, "trip")


def test_who_applies_waits_for_who_is_applying(shop: Shop) -> None:
    repo = parse(shop.root, shop.settings)
    done: list[dict[str, Path]] = []
    second = threading.Thread(target=lambda: done.append(apply(repo, shop.root, shop.settings)))
    shop.settings.home.mkdir(exist_ok=True)
    with (shop.settings.home / "features.lock").open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        second.join(timeout=1)
        assert second.is_alive()
        assert not (shop.settings.home / "feast").exists()
    second.join(timeout=60)
    assert sorted(done[0]) == ["plain", "trip"]


def test_apply_is_one_function_for_a_repository_without_services(shop: Shop) -> None:
    shop.change("views.py", "trip = FeatureService", "_trip = dict")
    shop.change("views.py", "plain = FeatureService", "_plain = dict")
    assert apply(parse(shop.root, shop.settings), shop.root, shop.settings) == {}


def test_those_that_share_a_registry_in_postgresql_apply_one_after_the_other(
    postgres_url: str, tmp_path: Path
) -> None:
    import psycopg

    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    inside = threading.Event()

    def apply_elsewhere() -> None:
        with applying.alone(tmp_path / "features.lock", url):
            inside.set()

    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("select pg_advisory_lock(%s)", (applying.REGISTRY_LOCK,))
        waiting = threading.Thread(target=apply_elsewhere)
        waiting.start()
        waits = "select count(*) from pg_locks where locktype = 'advisory' and not granted"
        until = time.monotonic() + 60
        while other.execute(waits).fetchone() != (1,):
            assert time.monotonic() < until
            time.sleep(0.01)
        assert not inside.is_set()
    waiting.join(60)
    assert inside.is_set()
