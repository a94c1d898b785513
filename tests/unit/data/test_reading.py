"""Reading datasets by name and version: every form has the same rows, and what is not there is told well."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pandas
import polars as pl
import pyarrow as pa
import pytest

from manta.data.commits import moment
from manta.data.lake import Change, write_part
from manta.data.profile import finish, sketch
from manta.data.reading import Datasets
from manta.errors import InvalidInput, NotFound
from manta.words import plain

Put = Callable[..., int]

TYPES = pl.DataFrame(
    {
        "whole": pl.Series([1, None, 3], dtype=pl.Int8),
        "number": [1.5, float("nan"), None],
        "flag": [True, None, False],
        "text": ["ä", None, 'it\'s "$x"'],
        "money": pl.Series([Decimal("1.10"), None, Decimal("-3.25")], dtype=pl.Decimal(20, 2)),
        "raw": [b"\0\xff", None, b""],
        "day": [date(2020, 1, 1), None, date(1, 1, 1)],
        "at": [datetime(2020, 1, 1, 12, tzinfo=UTC), None, datetime(1969, 1, 2, tzinfo=UTC)],
        "list": [[1, None], None, []],
        "nested": [{"a": 1, "b": ["x"]}, None, {"a": None, "b": []}],
        'od"d ña.me': [1, 2, 3],
    }
)


def numbers(start: int, end: int) -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, end), "half": [n / 2 for n in range(start, end)]})


def test_what_there_is(datasets: Datasets, put: Put) -> None:
    assert datasets.names() == []
    assert datasets.list() == []
    put("flights", numbers(0, 10))
    put("flights", numbers(0, 30), numbers(30, 40))
    put("delay-rates", numbers(0, 5))
    put("flights__quarantine", numbers(0, 3))
    put("flights__replay", numbers(0, 3))
    datasets.lake.stage("begun", "run-1")  # a writer is at work: it has no version yet
    Path(datasets.lake.folder, "stray.txt").write_text("no dataset")
    assert datasets.names() == ["delay-rates", "flights"]
    assert set(datasets.names(hidden=True)) - set(datasets.names()) == {
        "flights__quarantine", "flights__replay",
    }  # fmt: skip
    rates, flights = datasets.list()
    assert (rates.name, rates.version, rates.rows, rates.quarantined) == ("delay-rates", 0, 5, 0)
    assert (flights.version, flights.rows, flights.columns, flights.quarantined) == (1, 40, 2, 3)
    assert flights.bytes == sum(Path(path).stat().st_size for path in datasets.read("flights").files)
    assert abs(flights.at - datetime.now(UTC)) < timedelta(minutes=5)
    with pytest.raises(NotFound, match="no dataset 'begun'"):
        datasets.read("begun")


def test_every_form_has_the_same_rows(datasets: Datasets, put: Put) -> None:
    put("types", TYPES.head(2), TYPES.tail(1))
    rows = datasets.read("types")
    assert len(rows) == rows.height == 3
    assert rows.polars().equals(TYPES)
    assert rows.polars().schema == TYPES.schema
    assert rows.lazy().filter(pl.col("flag")).collect().equals(TYPES.filter(pl.col("flag")))
    assert pl.DataFrame(rows.arrow()).equals(TYPES)
    assert rows.arrow().schema.equals(rows.schema)
    frame = rows.pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert frame["at"][0] == pandas.Timestamp("2020-01-01T12:00", tz="UTC")
    assert frame['od"d ña.me'].tolist() == [1, 2, 3]
    duck = pl.DataFrame(rows.duckdb().to_arrow_table())
    assert plain(duck.to_dicts()) == plain(TYPES.to_dicts())
    assert "types@0: 3 rows" in repr(rows)


def test_columns_are_chosen_in_order(datasets: Datasets, put: Put) -> None:
    put("types", TYPES)
    chosen = ['od"d ña.me', "text"]
    rows = datasets.read("types", columns=chosen)
    wanted = TYPES.select(chosen)
    assert rows.polars().equals(wanted)
    assert pl.DataFrame(rows.arrow()).equals(wanted)
    assert rows.pandas().columns.tolist() == chosen
    assert pl.DataFrame(rows.duckdb().to_arrow_table()).equals(wanted)
    assert rows.sample(2).columns == chosen
    with pytest.raises(InvalidInput, match="no column 'txt'") as raised:
        datasets.read("types", columns=["txt"])
    assert raised.value.hint == "did you mean 'text'?"


def test_an_empty_version_has_its_columns(datasets: Datasets, put: Put) -> None:
    put("empty", TYPES.head(0))
    datasets.lake.commit("bare", [], run_key="r-1", schema=TYPES.to_arrow().schema)
    for name in ("empty", "bare"):
        rows = datasets.read(name)
        assert rows.height == 0
        assert rows.polars().schema == TYPES.schema
        assert rows.arrow().schema.names == TYPES.columns
        assert rows.duckdb().fetchall() == []
        assert rows.sample(5).height == 0
        assert datasets.show(name).profile["columns"]["text"]["nulls"] == 0
        assert datasets.diff(name, 0).same


def test_a_column_added_later_is_null_in_older_files(datasets: Datasets, put: Put) -> None:
    put("grown", numbers(0, 3), mode="append")
    put("grown", numbers(3, 5).with_columns(word=pl.lit("x")), mode="append")
    rows = datasets.read("grown")
    wanted = [None, None, None, "x", "x"]
    assert rows.polars()["word"].to_list() == wanted
    assert rows.arrow()["word"].to_pylist() == wanted
    assert [row[2] for row in rows.duckdb().fetchall()] == wanted
    assert datasets.sql("select count(word) from grown").polars().item() == 2
    assert datasets.read("grown", 0).columns == ["n", "half"]
    assert [each.mode for each in datasets.history("grown")] == ["append", "schema", "append"]
    assert [each.run for each in datasets.history("grown")] == [2, None, 1]


def test_versions_are_named_by_number_or_with_an_at_sign(datasets: Datasets, put: Put) -> None:
    for end in (1, 2, 3):
        put("d", numbers(0, end))
    assert [datasets.read("d", version).height for version in (0, "1", None)] == [1, 2, 3]
    assert datasets.read("d@1").height == 2
    for wrong in ("d@3", "d@99"):
        with pytest.raises(NotFound, match=r"has no version .*; its newest is 2"):
            datasets.read(wrong)
    for wrong in ("d@", "d@x", "d@-1", "d@1.5"):
        with pytest.raises(InvalidInput, match="is no version of 'd'"):
            datasets.read(wrong)
    with pytest.raises(InvalidInput, match="both say which one"):
        datasets.read("d", 1, as_of="2026-01-01")


@pytest.mark.parametrize("name", ["../lake/d", "/etc", "", ".", "d/parts", "D", "d\0", "d*", "_delta_log"])
def test_no_name_leads_out_of_the_lake(datasets: Datasets, put: Put, name: str) -> None:
    put("d", numbers(0, 1))
    with pytest.raises(NotFound, match="there is no dataset"):
        datasets.read(name)


def test_an_unknown_name_is_answered_with_the_closest(datasets: Datasets, put: Put) -> None:
    with pytest.raises(NotFound) as raised:
        datasets.read("flights")
    assert "manta apply" in raised.value.hint
    put("flights", numbers(0, 1))
    put("weather", numbers(0, 1))
    for act in (datasets.read, datasets.history, datasets.show, datasets.quarantine, datasets.compact):
        with pytest.raises(NotFound, match="no dataset 'fligths'") as raised:
            act("fligths")  # type: ignore[operator]
        assert raised.value.hint == "did you mean 'flights'?"
    with pytest.raises(NotFound) as raised:
        datasets.read("zzz")
    assert raised.value.hint == "there is flights, weather"


NOON = datetime(2026, 11, 17, 12, tzinfo=UTC)


def test_as_of_a_time_is_the_newest_version_by_then(
    datasets: Datasets, put: Put, committed_at: Callable[[str, int, int], None]
) -> None:
    times = [NOON, NOON + timedelta(days=1), NOON + timedelta(days=1, hours=1)]
    for version, at in enumerate(times):
        put("d", numbers(0, version))
        committed_at("d", version, int(at.timestamp() * 1000))
    berlin = timezone(timedelta(hours=1))
    for wanted, version in {
        NOON: 0,
        NOON + timedelta(days=1) - timedelta(milliseconds=1): 0,
        NOON + timedelta(days=1): 1,
        datetime(2026, 11, 18, 12, 30): 1,  # without a zone: UTC
        datetime(2026, 11, 18, 13, 30, tzinfo=berlin): 1,
        date(2026, 11, 17): 0,  # the end of that day
        date(2026, 11, 18): 2,
        "2026-11-18": 2,
        "2026-11-18T12:59": 1,
        "2026-11-18 14:00+01:00": 2,
        "2026-11-18T13:00:00Z": 2,
        "2030-01-01": 2,
    }.items():
        assert datasets.read("d", as_of=wanted).version == version, wanted
    with pytest.raises(NotFound, match="had no version by 2026-11-17 11:59:59 UTC") as raised:
        datasets.read("d", as_of=NOON - timedelta(seconds=1))
    assert "its oldest, 0, is of 2026-11-17 12:00:00 UTC" in raised.value.hint
    with pytest.raises(InvalidInput, match="'last Tuesday' is no time"):
        datasets.read("d", as_of="last Tuesday")
    assert datasets.show("d", as_of="2026-11-18T12:59").version == 1


def test_a_moment_is_in_utc() -> None:
    assert moment("2026-11-17") == datetime(2026, 11, 17, 23, 59, 59, 999999, tzinfo=UTC)
    assert moment("2026-11-17T01:00+02:00") == datetime(2026, 11, 16, 23, tzinfo=UTC)


def test_history_tells_what_old_commits_told_too(datasets: Datasets) -> None:
    old = {"rows": "3", "refused": "1", "source": "s"}  # texts, and no mode
    datasets.lake.replace("d", numbers(0, 3), run_key="flights-4f2a-17", metadata=old)
    datasets.lake.replace("d", numbers(0, 4), run_key="somebody")
    newest, first = datasets.history("d")
    assert (first.rows, first.refused, first.total, first.run, first.mode) == (3, 1, 3, 17, "replace")
    assert (newest.rows, newest.total, newest.run) == (None, None, None)
    assert newest.version == 1


def test_a_sample_is_of_all_rows_alike_and_the_same_again(datasets: Datasets, put: Put) -> None:
    put("d", *(numbers(start, start + 100) for start in range(0, 1000, 100)))
    once = datasets.sample("d", 50)
    assert once.height == 50
    assert once.equals(datasets.sample("d", 50))
    assert once["n"].is_sorted()
    assert once["n"].n_unique() == 50
    assert (once["half"] * 2 == once["n"]).all()
    assert not once.equals(datasets.sample("d", 50, seed=1))
    drawn = pl.concat([datasets.sample("d", 100, seed=seed)["n"] for seed in range(20)])
    for start in range(0, 1000, 100):  # 2,000 draws, a tenth from each file: ± 4 standard errors
        assert 145 <= drawn.is_between(start, start + 99).sum() <= 255
    assert datasets.sample("d", 5_000).height == 1000
    assert datasets.sample("d", 0).height == 0
    with pytest.raises(InvalidInput):
        datasets.sample("d", -1)


def test_the_quarantine_of_a_version_is_what_its_reading_refused(datasets: Datasets, put: Put) -> None:
    lake = datasets.lake

    def refused(key: str, token: str, rows: int, mode: str) -> None:
        frame = pl.DataFrame(
            {
                "run": [key] * rows,
                "reading": [token] * rows,
                "file": ["f.csv"] * rows,
                "row": range(1, rows + 1),
                "reason": ["n is null"] * rows,
            }
        )
        path = f"{lake.stage('d__quarantine', f'{key}-{token}')}/00000.parquet"
        write_part(frame, path)
        change = Change([path], None if mode == "replace" else (), {"source": token})
        schema = frame.head(0).to_arrow().schema
        lake.change("d__quarantine", lambda _: change, run_key=f"{key}-{token}", schema=schema)

    put("d", numbers(0, 1), source="t1")  # test-d-1: nothing was refused
    assert datasets.quarantine("d").is_empty()
    refused("test-d-2", "t2", 2, "append")
    put("d", numbers(1, 2), mode="append", source="t2")
    refused("test-d-3", "died", 7, "append")  # a reading that was never committed
    refused("test-d-3", "t3", 3, "append")
    put("d", numbers(2, 3), mode="append", source="t3")
    assert [datasets.quarantine("d", version).height for version in (0, 1, 2)] == [0, 2, 3]
    assert datasets.quarantine("d").height == 5
    assert set(datasets.quarantine("d")["reading"]) == {"t2", "t3"}
    refused("test-d-4", "t4", 4, "replace")
    put("d", numbers(0, 9), source="t4")
    assert datasets.quarantine("d").height == 4
    assert datasets.quarantine("d@1").height == 2  # of before it was replaced
    assert datasets.quarantine("d", 2).height == 3
    datasets.compact("d")
    assert datasets.quarantine("d").height == 4


def test_a_profile_is_read_where_it_was_kept_or_else_found(datasets: Datasets, put: Put) -> None:
    frame = numbers(0, 1000)
    put("d", frame)
    found = datasets.profile("d")
    assert found == finish(sketch(frame))
    kept = finish(sketch(frame)) | {"kept": True}
    path = Path(datasets.lake.path("d"), "profiles", "p.json")
    path.parent.mkdir()
    path.write_text(json.dumps(kept))
    put("d", frame, profile="profiles/p.json")
    assert datasets.profile("d", 1) == kept
    assert "kept" not in datasets.profile("d", 0)
    # One that is of other rows, as of a part of them, is not taken for it.
    put("d", numbers(0, 999), profile="profiles/p.json")
    assert datasets.profile("d")["rows"] == 999
    put("d", frame, profile="profiles/gone.json")
    assert datasets.profile("d")["rows"] == 1000


def test_many_batches_give_one_profile(datasets: Datasets, put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("manta.data.reading.BATCH_ROWS", 10)
    monkeypatch.setattr("manta.data.reading.BATCHES_MERGED", 3)
    put(
        "d",
        numbers(0, 137),
        TYPES.select(pl.lit(5).alias("n").cast(pl.Int64), pl.lit(0.5).alias("half")).head(1),
    )
    found = datasets.profile("d")
    assert found["rows"] == 138
    assert found["columns"]["n"]["distinct"] == {"count": 137, "exact": True}
    assert found["columns"]["n"]["max"] == 136


def test_what_is_shown_of_a_version(datasets: Datasets, put: Put) -> None:
    put("d", numbers(0, 10), numbers(10, 40))
    shown = datasets.show("d")
    assert (shown.name, shown.version, shown.rows, shown.files) == ("d", 0, 40, 2)
    assert shown.columns == {"n": "int64", "half": "double"}
    assert shown.commit.run == 1
    assert shown.profile["columns"]["n"]["max"] == 39
    assert json.loads(shown.model_dump_json())["commit"]["mode"] == "replace"


def test_a_reader_meanwhile_sees_whole_versions(datasets: Datasets, put: Put) -> None:
    """While versions are committed and compacted, in two threads, every look is at one version."""
    put("d", numbers(0, 100), mode="append")
    over = threading.Event()
    failed: list[BaseException] = []

    def write() -> None:
        try:
            for i in range(1, 16):
                put("d", numbers(100 * i, 100 * i + 50), numbers(100 * i + 50, 100 * i + 100), mode="append")
                if i % 5 == 0:
                    datasets.compact("d")
        except BaseException as error:
            failed.append(error)
        finally:
            over.set()

    writer = threading.Thread(target=write)
    writer.start()
    looks = 0
    while not over.is_set() or not looks:
        rows = datasets.read("d")
        counted = datasets.sql("select count(*) c, count(distinct n) d, min(n) a, max(n) b from d").polars()
        c, d, a, b = counted.row(0)
        assert c == d == b - a + 1
        assert c % 100 == 0
        assert rows.polars()["n"].to_list() == rows.arrow()["n"].to_pylist()
        assert rows.height == rows.polars().height
        looks += 1
    writer.join()
    assert not failed
    assert datasets.read("d").height == 1600
    assert isinstance(datasets.read("d").arrow(), pa.Table)
