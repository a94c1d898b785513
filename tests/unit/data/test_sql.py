"""SQL over datasets: the answers of an independent engine, what reaches Parquet, and what is shut out."""

from __future__ import annotations

import gc
import sqlite3
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from manta.data.reading import Datasets
from manta.data.rows import Rows
from manta.errors import InvalidInput, MantaError, NotFound
from manta.words import plain
from tests.unit.data.test_reading import TYPES

Put = Callable[..., int]
FLIGHTS = pl.DataFrame(
    {
        "id": range(1000),
        "origin": [("JFK", "EWR", None)[n % 3] for n in range(1000)],
        "delay": [n % 17 - 3.5 if n % 5 else None for n in range(1000)],
    }
)
ORIGINS = pl.DataFrame({"origin": ["JFK", "EWR", "LGA"], "name": ["Kennedy", "Newark", "La Guardia"]})


@pytest.fixture
def flights(datasets: Datasets, put: Put) -> Datasets:
    put("flights", FLIGHTS.head(500))
    put("flights", FLIGHTS.head(300), FLIGHTS.tail(700))
    put("origin-names", ORIGINS)
    put("flights__quarantine", pl.DataFrame({"reason": ["late", "late", "odd"]}))
    return datasets


QUERIES = [
    "select origin, count(*) n, sum(delay) s, min(id), max(id) from flights group by origin",
    "select count(*) from flights where delay > 3 and origin = 'JFK'",
    "select count(*) from flights where delay is null or origin is null",
    "select id from flights where id between 290 and 310 and origin <> 'EWR'",
    'select n.name, count(*) from flights f join "origin-names" n on f.origin = n.origin group by n.name',
    "with late as (select * from flights where delay > 10) select count(*), avg(delay) from late",
    "select id, delay from flights where id in (3, 400, 999, 5000)",
    "select reason, count(*) from flights__quarantine group by reason",
    "select 1 + 1",
]


@pytest.mark.parametrize("query", QUERIES)
def test_answers_are_those_of_sqlite(flights: Datasets, query: str) -> None:
    base = sqlite3.connect(":memory:")
    for name in ("flights", "origin-names", "flights__quarantine"):
        rows = flights.read(name).polars()
        base.execute(f'create table "{name}" ({", ".join(rows.columns)})')
        base.executemany(f'insert into "{name}" values ({", ".join("?" * rows.width)})', rows.rows())
    answer = flights.sql(query)
    wanted = sorted(base.execute(query).fetchall(), key=str)
    assert sorted(answer.polars().rows(), key=str) == wanted
    batches = [row for batch in answer.batches() for row in pl.DataFrame(batch).rows()]
    assert sorted(batches, key=str) == wanted
    assert answer.pandas().shape[0] == len(wanted)


def test_versions_in_one_query(flights: Datasets) -> None:
    query = """
        select (select count(*) from flights) now, (select count(*) from flights@0) "then", -- flights@9
               'flights@7' as word, (select count(*) from "flights@1") again /* flights@8 */
    """
    answer = flights.sql(query + ";")
    assert answer.polars().row(0) == (1000, 500, "flights@7", 1000)
    assert answer.versions == {"flights": 1, "flights@0": 0, "flights@1": 1}
    with pytest.raises(NotFound, match="'flights' has no version 9"):
        flights.sql("select * from flights@9")


def test_a_query_goes_on_reading_the_versions_that_it_began_with(flights: Datasets, put: Put) -> None:
    answer = flights.sql("select count(*) from flights")
    put("flights", FLIGHTS.head(1))
    assert answer.polars().item() == 1000
    assert flights.sql("select count(*) from flights").polars().item() == 1


def test_as_of_holds_for_every_table_without_a_version(
    flights: Datasets, committed_at: Callable[[str, int, int], None]
) -> None:
    for version, day in ((0, 1), (1, 3)):
        committed_at("flights", version, int(datetime(2026, 11, day, tzinfo=UTC).timestamp() * 1000))
    count = "select (select count(*) from flights), (select count(*) from flights@1)"
    assert flights.sql(count, as_of="2026-11-02").polars().row(0) == (500, 1000)
    assert flights.sql(count, as_of="2026-11-03").polars().row(0) == (1000, 1000)
    with pytest.raises(NotFound, match="had no version by"):
        flights.sql(count, as_of="2026-10-31")


def test_columns_and_filters_reach_the_files(flights: Datasets, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = flights.sql("select origin from flights where id between 3 and 5").explain()
    scan = plan[plan.index("Scan") :]
    assert 'Filters: ("id" >= 3) AND ("id" <= 5)' in scan
    assert "Projections: origin" in scan
    assert "delay" not in plan
    # And are not only said to: a file whose statistics leave it out is not read, nor another column's pages.
    first = flights.read("flights").files[0]
    whole = Path(first).read_bytes()
    end = pq.read_metadata(first).row_group(0).column(2)
    Path(first).write_bytes(b"PAR1" + b"\xff" * (end.data_page_offset - 4) + whole[end.data_page_offset :])
    assert flights.sql("select count(origin) from flights where id > 700").polars().item() == 199
    with pytest.raises(MantaError):
        flights.sql("select count(origin) from flights").polars()


def test_every_type_comes_through(datasets: Datasets, put: Put) -> None:
    put("types", TYPES)
    found = datasets.sql("select * from types").polars()
    assert plain(found.to_dicts()) == plain(TYPES.to_dicts())
    assert found.columns == TYPES.columns
    assert datasets.sql("select 1 from types where \"at\" > '2019-12-31 23:59:59+00'").polars().height == 1
    assert datasets.sql("select money from types where money = 1.10").polars().height == 1
    assert datasets.sql('select 1 from types where "od""d ña.me" = 3').polars().height == 1
    assert datasets.sql("select day from types where day < date '1000-01-01'").polars().height == 1


WRITING = [
    "create table t as select 1",
    "copy flights to '{out}'",
    "with x as (copy (select 1) to '{out}') select * from x",
    "with x as (copy (select 1 a) to '{file}' (use_tmp_file false)) select * from x",
    "select * from (with x as (copy (select 1) to '{out}') select * from x)",
    "with x as (insert into flights values (1)) select 1",
    "insert into flights select * from flights",
    "delete from flights",
    "drop view flights",
    "attach '{out}' as other",
    "export database '{out}'",
    "install httpfs",
    "set enable_external_access = true",
    "explain analyze copy (select 1) to '{out}'",
    "pragma version",
    "call pragma_version()",
    "select 1; select 2",
    "select 1; copy (select 1) to '{out}'",
    "",
    "  -- nothing",
]
REACHING_OUT = [
    "select * from read_text('{secret}')",
    "select * from read_csv('{secret}')",
    "select * from read_parquet('{file}')",
    "select * from '{secret}'",
    "select * from glob('/etc/*')",
    "select * from read_csv('http://127.0.0.1:9/x')",
    "select * from query('copy (select 1) to ''{out}''')",
    "select * from query('with x as (copy (select 1) to ''{out}'') select * from x')",
    "select * from FLIGHTS_FRAME",
]
FLIGHTS_FRAME = FLIGHTS  # a variable of this module, which is no table


@pytest.mark.parametrize("query", [*WRITING, *REACHING_OUT])
def test_nothing_is_written_and_no_other_file_is_read(flights: Datasets, tmp_path: Path, query: str) -> None:
    (tmp_path / "secret.csv").write_text("password\nhunter2\n")
    names = {"secret": tmp_path / "secret.csv", "out": tmp_path / "out"}
    file = flights.read("flights").files[0]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises((InvalidInput, NotFound)) as raised:
        flights.sql(query.format(**names, file=file)).polars()
    assert "hunter2" not in str(raised.value)
    assert (query in REACHING_OUT) or "one SELECT" in raised.value.message or "no SQL" in raised.value.message
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_what_is_wrong_is_told(flights: Datasets) -> None:
    with pytest.raises(NotFound, match="no dataset 'fligths'") as missing:
        flights.sql("select * from fligths")
    assert missing.value.hint == "did you mean 'flights'?"
    with pytest.raises(InvalidInput, match="no SQL: syntax error") as garbled:
        flights.sql("selec id from flights")
    assert garbled.value.hint == "at: selec id from flights"
    with pytest.raises(InvalidInput, match='Referenced column "nope" not found'):
        flights.sql("select nope from flights")
    with pytest.raises(InvalidInput, match="Could not convert string"):
        flights.sql("select cast(origin as int) from flights").polars()
    broken = flights.sql("select cast(origin as int) from flights")
    with pytest.raises(InvalidInput, match="Could not convert string"):
        list(broken.batches())
    with pytest.raises(InvalidInput, match="'much' is no size"):
        flights.sql("select 1", memory="much")


def test_what_does_not_fit_in_memory_goes_to_disk(
    datasets: Datasets, put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    put("d", pl.DataFrame({"n": range(1_500_000)}).with_columns(text=pl.col("n").hash().cast(pl.String)))
    spill = datasets.sql("select current_setting('temp_directory')").polars().item()
    assert Path(spill).is_relative_to(tmp_path)  # and not the folder that one happens to be in
    ranked = "select text, row_number() over (order by text) place from d"
    query = f"select count(*) from ({ranked}) where place > 5"
    assert datasets.sql(query, memory="60MB").polars().item() == 1_500_000 - 5
    with pytest.raises(InvalidInput, match="needs more memory than it was given") as raised:
        datasets.sql(query, memory="5MB").polars()
    assert "--memory" in raised.value.hint
    del raised
    gc.collect()
    assert not list(tmp_path.glob("manta-sql-*"))


def test_describing_and_names_that_must_be_quoted(flights: Datasets) -> None:
    assert flights.sql("describe flights").polars()["column_name"].to_list() == FLIGHTS.columns
    assert flights.sql('summarize "origin-names"').polars().height == 2
    assert flights.sql("from flights limit 3").polars().height == 3
    assert flights.sql("select count(*) from Flights").polars().item() == 1000
    # A name of the query's own comes before a dataset's.
    assert flights.sql("with flights as (select 7 as id) select id from flights").polars().item() == 7


def test_a_notebook_shows_the_first_rows(flights: Datasets) -> None:
    answer = flights.sql("select id from flights order by id -- all of them")
    assert answer.head(3).rows() == [(0,), (1,), (2,)]
    assert "<table" in answer._repr_html_()
    assert "shape: (20, 1)" in repr(answer)


def test_a_parquet_file_is_written_whole_or_not_at_all(flights: Datasets, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    assert flights.sql("select id, origin from flights where id < 10").write(path) == 10
    assert pl.read_parquet(path).rows() == FLIGHTS.head(10).select("id", "origin").rows()
    with pytest.raises(InvalidInput):
        flights.sql("select cast(origin as int) from flights").write(path)
    assert pl.read_parquet(path).height == 10
    assert [each.name for each in tmp_path.iterdir() if "out" in each.name] == ["out.parquet"]
    empty = tmp_path / "empty.parquet"
    assert flights.sql("select id from flights where id < 0").write(empty) == 0
    assert pl.read_parquet(empty).columns == ["id"]


def test_rows_of_a_version_are_a_relation_to_go_on_from(flights: Datasets) -> None:
    rows = flights.read("flights", columns=["id", "origin"])
    assert isinstance(rows, Rows)
    assert rows.duckdb().filter("id < 10").aggregate("count(*)").fetchall() == [(10,)]
