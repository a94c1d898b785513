"""Reading PostgreSQL: types, pieces of one snapshot, cursors, errors, and what is left on the server."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import make_url

from manta import Sql
from manta.connectors import databases
from manta.definitions.sources import Ask, Broken
from manta.errors import DefinitionInvalid, SourceUnreadable

Run = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def run(postgres_url: str) -> Iterator[Run]:
    """Executes statements in a new database, each at once committed."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:

        def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
            cursor = connection.execute(statement, values or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

        yield execute


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of some thousand rows are cut as those of many millions are."""
    monkeypatch.setattr(databases, "PIECE_BYTES", 8_000)


def asked(*columns: str, cursor: Any = None) -> Ask:
    return Ask(Path("."), columns, cursor)


def rows(source: Sql, ask: Ask) -> list[tuple[Any, ...]]:
    with source.opened(ask) as reading:
        return [row for piece in reading.pieces for row in _rows(source, piece, ask)]


def _rows(source: Sql, piece: Any, ask: Ask) -> list[tuple[Any, ...]]:
    return [row for batch in source.read(piece, ask) for row in batch.values.rows()]


TYPES = {
    "numeric": ("12345678901234567890.123456789", pl.String()),
    "numeric(38,10)": ("0.1000000000", pl.String()),
    "timestamp": ("2024-01-01 00:00:00.123456", pl.Datetime("us")),
    "timestamptz": ("2024-01-01 05:00:00.5+05", pl.Datetime("us", "UTC")),
    "date": ("2024-02-29", pl.Date()),
    "time": ("12:34:56.789", pl.String()),
    "interval": ("1 day 02:00:00", pl.String()),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", pl.String()),
    "json": ('{"a":  1}', pl.String()),
    "jsonb": ('{"a": [1, 2]}', pl.String()),
    "bool": ("true", pl.Boolean()),
    "smallint": ("-32768", pl.Int16()),
    "bigint": ("9223372036854775807", pl.Int64()),
    "float8": ("0.1", pl.Float64()),
    "bytea": ("\\x00ff", pl.Binary()),
    "text": ("naïve 😀", pl.String()),
    "char(5)": ("ab", pl.String()),
    "mood": ("ok", pl.String()),
    "positive": ("7", pl.Int32()),
    "inet": ("10.0.0.1/32", pl.String()),
    "oid": ("4294967295", pl.String()),
    "int[]": ("{1,NULL}", pl.List(pl.Int32())),
    "text[]": ('{a,"b,c"}', pl.List(pl.String())),
    "numeric[]": ("{1.50}", pl.List(pl.String())),
    "int[][]": ("{{1,2},{3,4}}", pl.String()),
}


def test_types(postgres_url: str, run: Run) -> None:
    run("create type mood as enum ('ok')")
    run("create domain positive as int check (value > 0)")
    columns = {f'{kind} "Column': kind for kind in TYPES}
    named = [name.replace('"', '""') for name in columns]
    declared = ", ".join(f'"{name}" {kind}' for name, kind in zip(named, columns.values(), strict=True))
    run(f'create table "Odd.Name" ({declared})')
    run(f'insert into "Odd.Name" values ({", ".join(["%s"] * len(TYPES))})', *(v for v, _ in TYPES.values()))
    run('insert into "Odd.Name" default values')
    source, ask = Sql(url=postgres_url, table='public."Odd.Name"'), asked(*columns, "not there")
    with source.opened(ask) as reading:
        batches = [batch for piece in reading.pieces for batch in source.read(piece, ask)]
    assert batches[0].height == 0
    assert batches[0].values.schema == {
        name: kind for name, (_, kind) in zip(columns, TYPES.values(), strict=True)
    }
    [batch] = batches[1:]
    assert list(batch.columns) == list(columns) == batch.values.columns
    assert batch.values.row(1) == (None,) * len(TYPES)
    found = batch.values.row(0, named=True)
    texts = run(f'select {", ".join(f"""{_quoted(name)}::text""" for name in columns)} from "Odd.Name"')[0]
    for (name, value), text in zip(found.items(), texts, strict=True):
        if isinstance(value, str):
            assert value == text, name
    plain = {name.removesuffix(' "Column'): value for name, value in found.items()}
    assert plain["timestamptz"].isoformat() == "2024-01-01T00:00:00.500000+00:00"
    assert plain["timestamp"].isoformat() == "2024-01-01T00:00:00.123456"
    assert plain["bytea"] == b"\x00\xff"
    assert plain["int[]"] == [1, None]
    assert plain["numeric[]"] == ["1.50"]
    assert plain["date"].isoformat() == "2024-02-29"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def test_infinite_times_are_refused(postgres_url: str, run: Run) -> None:
    run("create table t (id int, at timestamptz, day date)")
    run("insert into t values (1, 'infinity', '2024-01-01'), (2, now(), '-infinity'), (3, null, null)")
    run("insert into t values (4, '4000-01-01 BC', '294000-01-01')")
    source, ask = Sql(url=postgres_url, table="t"), asked("id", "at", "day")
    with source.opened(ask) as reading:
        batches = [batch for piece in reading.pieces for batch in source.read(piece, ask)]
    [batch] = [batch for batch in batches if batch.height]
    assert batch.height == 4
    assert [broken.row for broken in batch.broken] == [0, 1]
    assert isinstance(batch.broken[0], Broken)
    assert batch.values["id"].to_list() == [3, 4]


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("key", [None, "id", "day", "name", "skewed", "at"])
def test_pieces_hold_each_row_once(postgres_url: str, run: Run, key: str | None) -> None:
    _orders(run, 3000)
    source, ask = Sql(url=postgres_url, table="orders", partition_on=key), asked("id", "name")
    with source.opened(ask) as reading:
        found = [_rows(source, piece, ask) for piece in reading.pieces]
        names = [piece.file for piece in reading.pieces]
    assert sorted(row[0] for piece in found for row in piece) == list(range(3000))
    assert len(set(names)) == len(names)
    sizes = sorted(map(len, found))
    assert len(sizes) > 3
    if key is None:
        assert max(sizes) < 1500
    else:
        assert names[-1] == f"orders {key} is null"
        assert len(found[-1]) == (0 if key == "id" else 300)
        # 60 % of the rows have one value of `skewed`: they are one piece, and the others are not in it.
        assert max(sizes) < (1900 if key == "skewed" else 1500)


def _orders(run: Run, number: int) -> None:
    run(
        "create table orders as select i as id, date '2024-01-01' + i / 10 as day, 'näme ' || i as name,"
        " case when i % 10 < 6 then 7 else i end as skewed,"
        " timestamptz '2024-01-01' + i * interval '1 second' as at"
        f" from generate_series(0, {number - 1}) i"
    )
    run("update orders set day = null, name = null, skewed = null, at = null where id % 10 = 9")
    run("vacuum full analyze orders")


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    "what",
    [{"table": "orders"}, {"table": "orders", "partition_on": "id"}, {"table": "orders", "cursor": "id"}],
)
def test_all_pieces_are_of_one_snapshot(postgres_url: str, run: Run, what: dict[str, Any]) -> None:
    """Rows are moved from piece to piece, added and removed, all the while."""
    _orders(run, 3000)
    before = run("select id, name from orders order by id")
    source, ask = Sql(url=postgres_url, **what), asked("id", "name")
    stop = threading.Event()
    rounds = 0
    with psycopg.connect(postgres_url, autocommit=True) as other, source.opened(ask) as reading:

        def write() -> None:
            nonlocal rounds
            while not stop.is_set():
                other.execute("update orders set id = 2999 - id, name = 'changed'")
                other.execute("delete from orders where id % 7 = 0")
                other.execute("insert into orders (id, name) select generate_series(10, 2000, 10), 'new'")
                rounds += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            found = []
            for piece in reading.pieces:
                seen = rounds
                found += _rows(source, piece, ask)
                while rounds == seen and writer.is_alive():
                    time.sleep(0.01)
            # A task that died reads its piece again, and sees the same.
            again = _rows(source, reading.pieces[1], ask)
            assert again == _rows(source, reading.pieces[1], ask)
            assert set(again) < set(before)
        finally:
            stop.set()
            writer.join()
    assert rounds >= len(reading.pieces) > 3
    assert sorted(found, key=lambda row: row[0]) == before
    assert run("select count(*) from orders where name = 'changed'")[0][0] > 0


def test_a_snapshot_that_is_gone_is_told(postgres_url: str, run: Run) -> None:
    _orders(run, 30)
    source, ask = Sql(url=postgres_url, table="orders", partition_on="id"), asked("id")
    with source.opened(ask) as reading:
        [piece] = reading.pieces  # what is small is one
    with pytest.raises(SourceUnreadable, match="snapshot") as failed:
        list(source.read(piece, ask))
    assert "session that held the snapshot has ended" in failed.value.hint


def test_a_cursor_reads_on(postgres_url: str, run: Run) -> None:
    run("create table t (id int, changed timestamptz not null)")
    source = Sql(url=postgres_url, table="t", cursor="changed")
    assert source.incremental
    assert not source.overlaps

    def read(cursor: Any) -> tuple[list[int], Any]:
        ask = asked("id", cursor=cursor)
        with source.opened(ask) as reading:
            found = [row[0] for piece in reading.pieces for row in _rows(source, piece, ask)]
            return found, reading.cursor

    assert read(None) == ([], None)
    run(
        "insert into t values (1, '2024-01-01 10:00'), (3, '2024-01-03'), (2, '2024-01-02'),"
        " (4, '2024-01-03')"
    )
    first, cursor = read(None)
    assert first == [1, 2, 3, 4], "in the cursor's order, those that share the greatest value included"
    assert cursor["column"] == "changed"
    assert read(cursor) == ([], cursor)
    run("insert into t values (5, '2024-01-03'), (6, '2024-01-03 00:00:00.000001'), (7, '2023-01-01')")
    assert read(cursor)[0] == [6]
    source = source.replace(lateness=3600)
    assert source.overlaps
    assert read(cursor)[0] == [3, 4, 5, 6]
    assert read(read(cursor)[1])[0] == [3, 4, 5, 6]
    run("delete from t where id = 6")
    assert read({"column": "changed", "value": "2024-01-03 00:00:00.000001+00"})[1]["value"].endswith(
        "00001+00"
    )


def test_a_cursor_misses_nothing_that_is_written_meanwhile(postgres_url: str, run: Run) -> None:
    """The greatest value is taken under the snapshot that the rows are read under."""
    run("create table t (id bigint not null)")
    source = Sql(url=postgres_url, table="t", cursor="id")
    stop, found, cursor = threading.Event(), [], None

    def write() -> None:
        with psycopg.connect(postgres_url, autocommit=True) as other:
            number = 0
            while not stop.is_set():
                other.execute("insert into t values (%s)", [number])
                number += 1

    def read() -> None:
        nonlocal cursor
        ask = asked("id", cursor=cursor)
        with source.opened(ask) as reading:
            found.extend(row[0] for piece in reading.pieces for row in _rows(source, piece, ask))
            cursor = reading.cursor

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(20):
            read()
    finally:
        stop.set()
        writer.join()
    assert found, "something was written meanwhile"
    read()
    assert found == [row[0] for row in run("select id from t order by id")]


@pytest.mark.parametrize(
    ("kind", "values", "lateness", "expected"),
    [
        ("bigint", [1, 5, 9], 4, [9]),
        ("numeric", ["1", "8.75", "9.5"], 0.75, ["9.5"]),
        ("float8", [1.5, 8.5, 9.0], 0.5, [9.0]),
        ("date", ["2024-01-01", "2024-01-02", "2024-01-03"], 3600, ["2024-01-03"]),
        (
            "timestamp",
            ["2024-01-01", "2024-01-02", "2024-01-02 00:30"],
            3600,
            ["2024-01-02", "2024-01-02 00:30"],
        ),
        ("text", ["a", "o'b", "z"], 0, []),
    ],
)
def test_cursors_of_all_types(
    postgres_url: str, run: Run, kind: str, values: list[Any], lateness: float, expected: list[Any]
) -> None:
    run(f'create table t ("At" {kind})')
    for value in values:
        run("insert into t values (%s)", value)
    source = Sql(url=postgres_url, query="select * from t;", cursor="At", lateness=lateness)
    with source.opened(asked("At")) as reading:
        cursor = reading.cursor
        assert len([row for piece in reading.pieces for row in _rows(source, piece, asked("At"))]) == 3
    found = rows(source, asked("At", cursor=cursor))
    assert found == [row for value in expected for row in _as_read(run, postgres_url, kind, value)]


def _as_read(run: Run, url: str, kind: str, value: Any) -> list[tuple[Any, ...]]:
    return rows(Sql(url=url, query=f"select cast('{value}' as {kind}) as v"), asked("v"))


def test_cursors_that_would_lose_rows_are_refused(postgres_url: str, run: Run) -> None:
    run("create table t (id int, at timestamptz, name text)")
    run("insert into t values (1, null, 'a'), (2, now(), 'b')")
    with pytest.raises(SourceUnreadable, match="no 'at': they would never be read") as failed:
        rows(Sql(url=postgres_url, table="t", cursor="at"), asked("id"))
    assert "coalesce" in failed.value.hint
    run("update t set at = 'infinity' where id = 1")
    with pytest.raises(SourceUnreadable, match="is infinity"):
        rows(Sql(url=postgres_url, table="t", cursor="at"), asked("id"))
    late = Sql(url=postgres_url, table="t", cursor="name", lateness=1)
    with pytest.raises(SourceUnreadable, match="lateness is for"):
        rows(late, asked("id", cursor={"column": "name", "value": "a"}))
    with pytest.raises(SourceUnreadable, match="ended at a value of 'id'"):
        rows(
            Sql(url=postgres_url, table="t", cursor="at"), asked("id", cursor={"column": "id", "value": "1"})
        )


@pytest.mark.parametrize(
    ("fields", "told", "hint"),
    [
        ({"table": "nosuch"}, 'relation "nosuch" does not exist', "correct `table`"),
        ({"table": "T"}, 'relation "T" does not exist', "as written"),
        ({"query": "select wrong from t"}, 'column "wrong" does not exist', "correct the columns"),
        ({"query": "selec 1"}, "syntax error", "correct the query"),
        ({"query": "select 1 / id as id from t"}, "division by zero", "correct the query"),
        (
            {"table": "t", "partition_on": "nope"},
            "no column 'nope', which is its partition_on",
            "name one of id",
        ),
        ({"table": "t", "cursor": "nope"}, "no column 'nope', which is its cursor", "name one of id"),
    ],
)
def test_errors_say_what_the_database_says(
    postgres_url: str, run: Run, fields: dict[str, Any], told: str, hint: str
) -> None:
    run("create table t as select 0 as id")
    with pytest.raises(SourceUnreadable, match=told) as failed:
        rows(Sql(url=postgres_url, **fields), asked("id"))
    assert hint in failed.value.hint


def test_passwords_are_never_told(postgres_url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", "p@ss/w0rd%41")
    source = Sql(url="postgresql://u:${env:DB_PASSWORD}@127.0.0.1:1/d?connect_timeout=3", table="t")
    [where] = make_url(postgres_url).normalized_query["host"]
    echoing = Sql(
        url=postgres_url.replace("postgres:@", "postgres:hunter22@"), query="select 'hunter22'::int as id"
    )
    missing = Sql(url=f"postgresql://nobody:${{env:DB_PASSWORD}}@/postgres?host={where}", table="t")
    for each, told in [(source, "refused"), (echoing, "invalid input syntax"), (missing, "nobody")]:
        with pytest.raises(SourceUnreadable, match=told) as failed:
            rows(each, asked("id"))
        assert failed.value.hint
        assert failed.value.__cause__ is None
        for secret in ("p@ss", "p%40ss", "hunter22"):
            assert secret not in f"{failed.value} {failed.value.hint}"


def test_the_url_may_be_a_secret(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_URL", postgres_url)
    source = Sql(url="${env:SHOP_URL}", query="select 1 as id")
    assert rows(source, asked("id")) == [(1,)]
    assert postgres_url not in source.model_dump_json()


def test_nothing_stays_on_the_server(postgres_url: str, run: Run) -> None:
    """Neither of a task that stopped in the middle, nor of a reading that is over."""
    run("create table t as select i as id, repeat('x', 1000) as text from generate_series(1, 60000) i")
    source, ask = Sql(url=postgres_url, table="t"), asked("id", "text")
    mine = (
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    )
    with source.opened(ask) as reading:
        batches = source.read(reading.pieces[0], ask)
        assert [next(batches).height > 0, next(batches).height > 0] == [False, True]
        assert run(mine) == [(2,)]
        batches.close()
        _until(lambda: run(mine) == [(1,)])
    _until(lambda: run(mine) == [(0,)])


def test_a_killed_reader_leaves_nothing(postgres_url: str, run: Run) -> None:
    """Also when the server has nothing to send, so that it would not notice by itself."""
    code = (
        "import sys; from pathlib import Path; from manta import Sql\n"
        "from manta.definitions.sources import Ask\n"
        "source = Sql(url=sys.argv[1], query='select pg_sleep(600)::text as id')\n"
        "ask = Ask(Path('.'), ('id',))\n"
        "with source.opened(ask) as reading: [*source.read(reading.pieces[0], ask)]"
    )
    process = subprocess.Popen([sys.executable, "-c", code, postgres_url])
    mine = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    _until(lambda: run(f"select count(*) {mine} and wait_event = 'PgSleep'") == [(1,)] or process.poll())
    process.kill()
    process.wait()
    _until(lambda: run(f"select count(*) {mine}") == [(0,)])


def _until(condition: Callable[[], Any]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "either a table or a query"),
        ({"table": "t", "query": "select 1"}, "either a table or a query"),
        ({"table": "t", "lateness": 5}, "name the cursor's column"),
        ({"table": "t", "url": "secret-thing"}, "write it as postgresql://"),
    ],
)
def test_definitions_that_cannot_be_meant(fields: dict[str, Any], told: str) -> None:
    with pytest.raises((ValidationError, DefinitionInvalid), match=told):
        Sql(**{"url": "postgresql://h/d", **fields})
