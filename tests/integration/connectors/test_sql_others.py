"""Reading MariaDB, SQLite and, as far as that goes without a server, SQL Server."""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from sqlalchemy import create_engine, make_url

from manta import Sql
from manta.connectors import databases
from manta.connectors.databases import others
from manta.definitions.sources import Ask
from manta.errors import ExtraMissing, SourceUnreadable

Run = Callable[..., list[Any]]


@pytest.fixture
def run(mariadb_url: str) -> Iterator[Run]:
    """Executes statements in a new MariaDB database, each at once committed."""
    engine = create_engine(
        make_url(mariadb_url).set(drivername="mysql+pymysql"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:

        def execute(statement: str, *values: Any) -> list[Any]:
            result = connection.exec_driver_sql(statement, values)
            return list(result) if result.returns_rows else []

        yield execute
    engine.dispose()


def asked(*columns: str, cursor: Any = None, root: Path = Path(".")) -> Ask:
    return Ask(root, columns, cursor)


def frame(source: Sql, ask: Ask) -> pl.DataFrame:
    with source.opened(ask) as reading:
        found = [
            batch.values for piece in reading.pieces for batch in source.read(piece, ask) if batch.height
        ]
    return pl.concat(found) if found else pl.DataFrame()


# --- MariaDB ----------------------------------------------------------------------------------------------

TYPES = {
    "bigint unsigned": ("18446744073709551615", 2**64 - 1),
    "mediumint": ("-8388608", -8388608),
    "decimal(38,10)": ("1234567890123456789.0123456789", "1234567890123456789.0123456789"),
    "double": ("0.1", 0.1),
    "float": ("1.5", 1.5),
    "bool": ("1", 1),
    "bit(3)": (5, 5),
    "year": ("2024", 2024),
    "datetime(6)": ("2024-01-01 00:00:00.123456", "2024-01-01 00:00:00.123456"),
    "timestamp(3) null": ("2024-01-01 05:00:00.5", "2024-01-01 00:00:00.500"),
    "date": ("0000-00-00", "0000-00-00"),
    "time(3)": ("-101:02:03.5", "-101:02:03.500"),
    "json": ('{"a":  1}', '{"a":  1}'),
    "varchar(20)": ("naïve 😀 100%", "naïve 😀 100%"),
    "varchar(9) charset latin1": ("café", "café"),
    "text": ("", ""),
    "enum('a','b')": ("b", "b"),
    "uuid": ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    "blob": (b"\x00\xff'", b"\x00\xff'"),
    "varbinary(3)": (b"", b""),
}


def test_mariadb_types(mariadb_url: str, run: Run) -> None:
    columns = {f"{kind} `Column": kind for kind in TYPES}
    declared = ", ".join(f"`{name.replace('`', '``')}` {kind}" for name, kind in columns.items())
    run("set time_zone = '+05:00', sql_mode = ''")
    run(f"create table `Odd.Name` ({declared})")
    run(f"insert into `Odd.Name` values ({', '.join(['%s'] * len(TYPES))})", *(v for v, _ in TYPES.values()))
    run("insert into `Odd.Name` values ()")
    found = frame(Sql(url=mariadb_url, table='"Odd.Name"'), asked(*columns, "not there"))
    assert found.columns == list(columns)
    for name, (_, expected) in zip(columns, TYPES.values(), strict=True):
        assert found[name].to_list() == [expected, None], name
    assert found.schema["blob `Column"] == pl.Binary()
    # Through PyMySQL, as when the url says more than ConnectorX knows: the same, typed by Python.
    slow = frame(
        Sql(url=mariadb_url.replace("mysql:", "mysql+pymysql:"), table='"Odd.Name"'), asked(*columns)
    )
    plain = dict(zip(TYPES, slow.row(0), strict=True))
    assert plain["decimal(38,10)"] == "1234567890123456789.0123456789"
    assert plain["timestamp(3) null"] == datetime(2024, 1, 1, 0, 0, 0, 500_000)
    assert plain["time(3)"] == "-101:02:03.500000"
    assert plain["blob"] == b"\x00\xff'"


def test_mariadb_cursor_and_ranges(mariadb_url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run("create table t (id int, name varchar(20), at datetime(6))")
    run(
        "insert into t select seq, concat('%% ', seq), timestamp('2024-01-01') + interval seq second"
        " from seq_0_to_999"
    )
    source = Sql(url=mariadb_url, table="t", cursor="at")
    with source.opened(asked("id")) as reading:
        cursor = reading.cursor
        assert len(reading.pieces) == 1
    assert cursor == {"column": "at", "value": {"timestamp": "2024-01-01T00:16:39"}}
    with source.opened(asked("id", cursor=cursor)) as reading:
        assert list(reading.pieces) == []
        assert reading.cursor == cursor
    run(
        "insert into t values (1001, 'new', '2024-01-01 00:16:40.5'),"
        " (1000, 'new', '2024-01-01 00:16:39.000001')"
    )
    assert frame(source, asked("id", cursor=cursor))["id"].to_list() == [1000, 1001]
    late = frame(source.replace(lateness=2.5), asked("id", cursor=cursor))
    assert late["id"].to_list() == [997, 998, 999, 1000, 1001]

    monkeypatch.setattr(others, "PIECE_ROWS", 100)
    run("insert into t values (null, 'nobody', now())")
    parts = Sql(
        url=mariadb_url, query="select * from t where name like '%'", partition_on="id", consistent=False
    )
    ask = asked("id", "name")
    with parts.opened(ask) as reading:
        batches = [[*parts.read(piece, ask)] for piece in reading.pieces]
    found = [[row for batch in piece for row in batch.values.rows()] for piece in batches]
    assert len(found) > 9
    assert max(map(len, found)) <= 110
    assert found[-1] == [(None, "nobody")]
    assert sorted(row[0] for rows in found[:-1] for row in rows) == list(range(1002))
    assert frame(parts.replace(consistent=True), ask).height == 1003
    run("update t set at = null where id = 1")
    with pytest.raises(SourceUnreadable, match="never be read"):
        frame(source, asked("id"))


def test_mariadb_errors(mariadb_url: str, run: Run) -> None:
    run("create table t as select 1 as id")
    url = make_url(mariadb_url)
    wrong = url.set(password="hunter22/x").render_as_string(hide_password=False)
    for source, told, hint in [
        (Sql(url=wrong, table="t"), "Access denied", "user and the password"),
        (Sql(url=mariadb_url, table="nosuch"), r"nosuch' doesn't exist", "correct `table`"),
        (Sql(url=mariadb_url, query="select wrong from t"), "Unknown column", "correct the columns"),
        (Sql(url=mariadb_url, query="selec"), "error in your SQL syntax", "correct the query"),
        (Sql(url="mysql://u:hunter22@127.0.0.1:1/d", table="t"), "refused", "host and port"),
        (Sql(url="mysql://u@127.0.0.1/d?unix_socket=/nowhere", table="t"), "Can't connect", "host and port"),
    ]:
        with pytest.raises(SourceUnreadable, match=told) as failed:
            frame(source, asked("id"))
        assert hint in failed.value.hint
        assert "hunter22" not in str(failed.value)
        assert str(url.password) not in str(failed.value)
    # An error in the middle, in the task.
    source = Sql(url=mariadb_url, table="t")
    with source.opened(asked("id")) as reading:
        run("drop table t")
        with pytest.raises(SourceUnreadable, match="doesn't exist"):
            list(source.read(reading.pieces[0], asked("id")))


def test_mariadb_is_left_alone(mariadb_url: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "PIECE_BYTES", 2**30)  # one piece, of several batches
    run("create table t as select seq as id, repeat('x', 1000) as name from seq_1_to_50000")
    mine = (
        "select count(*) from information_schema.processlist where db = database() and id <> connection_id()"
    )
    source, ask = Sql(url=mariadb_url, table="t"), asked("id", "name")
    with source.opened(ask) as reading:
        batches = source.read(reading.pieces[0], ask)
        assert [next(batches).height > 0, next(batches).height > 0] == [False, True]
        assert run(mine) == [(1,)]
        batches.close()
    until = time.monotonic() + 120
    while run(mine) != [(0,)]:
        assert time.monotonic() < until
        time.sleep(0.05)


# --- SQLite -----------------------------------------------------------------------------------------------


def test_sqlite_columns_of_any_type(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute('create table t (id integer, "mixed %s" , bytes blob, real real, empty)')
        connection.executemany(
            "insert into t values (?, ?, ?, ?, null)",
            [(1, 5, b"\x00", 0.5), (2, 1.5, None, None), (3, "x", b"", 2.5), (4, b"\xff", b"a", 1.0)],
        )
    ask = asked("id", "mixed %s", "bytes", "real", "empty", root=tmp_path)
    found = frame(Sql(url="sqlite:///shop.db", table="t"), ask)
    assert found.rows() == [
        (1, "5", b"\x00", 0.5, None),
        (2, "1.5", None, None, None),
        (3, "x", b"", 2.5, None),
        (4, "\\xff", b"a", 1.0, None),
    ]
    some = Sql(url="sqlite:///shop.db", query="select id from t where 'a%' like '%' order by id limit 2;")
    assert frame(some, asked("id", root=tmp_path)).rows() == [(1,), (2,)]


@pytest.mark.parametrize(
    ("values", "lateness", "expected"),
    [
        ([1, 5, 9], 0, [10]),
        ([1, 5, 9], 4, [9, 10]),
        ([0.5, 8.75, 9.0], 0.25, [9.0, 10.5]),
        (["a", "o'b", "z"], 0, ["zz"]),
        (["2024-01-01", "2024-01-05"], 86_400, ["2024-01-05", "zz"]),
        (["2024-01-01 09:59:00", "2024-01-01 10:00:00"], 30, ["2024-01-01 10:00:00", "zz"]),
        (
            ["2024-01-01T09:59:00.5Z", "2024-01-01T10:00:00.5Z"],
            60,
            ["2024-01-01T09:59:00.5Z", "2024-01-01T10:00:00.5Z", "zz"],
        ),
        ([b"\x00\x01", b"\x00\x02"], 0, [b"\x01"]),
    ],
)
def test_sqlite_cursors(tmp_path: Path, values: list[Any], lateness: float, expected: list[Any]) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("create table t (at)")
        connection.executemany("insert into t values (?)", [(value,) for value in values])
        connection.commit()
        source = Sql(url=f"sqlite:///{tmp_path}/shop.db", table="t", cursor="at", lateness=lateness)
        with source.opened(asked("at")) as reading:
            cursor = reading.cursor
        connection.execute("insert into t values (?)", [expected[-1]])
        connection.commit()
    assert frame(source, asked("at", cursor=cursor))["at"].to_list() == expected


def test_sqlite_errors(tmp_path: Path) -> None:
    (tmp_path / "not.db").write_text("no database at all, but long enough to look like a header of one" * 9)
    for source, told in [
        (Sql(url="sqlite:///nowhere.db", table="t"), "is no file"),
        (Sql(url="sqlite:///not.db", table="t"), "not a database"),
    ]:
        with pytest.raises(SourceUnreadable, match=told) as failed:
            frame(source, asked("id", root=tmp_path))
        assert failed.value.hint
    assert not (tmp_path / "nowhere.db").exists()


# --- values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2**63, 1], pl.Series(["9223372036854775808", "1"])),
        ([Decimal("1.10"), None], pl.Series(["1.10", None])),
        ([date(2024, 1, 1), None], pl.Series([date(2024, 1, 1), None])),
        ([datetime(2024, 1, 1), date(2024, 1, 1)], pl.Series(["2024-01-01T00:00:00", "2024-01-01"])),
        ([{"a": [1]}, None], pl.Series(['{"a": [1]}', None])),
        ([True, None], pl.Series([True, None])),
        ([memoryview(b"\x01"), None], pl.Series(["\\x01", None])),
    ],
)
def test_values_of_drivers(values: list[Any], expected: pl.Series) -> None:
    found = others._series("", values)
    assert found.dtype == expected.dtype
    assert found.to_list() == expected.to_list()


def test_moments_with_a_zone_are_in_utc() -> None:
    moment = datetime.fromisoformat("2024-01-01T05:00:00+05:00")
    found = others._series("at", [moment, None])
    assert found.dtype == pl.Datetime("us", "UTC")
    assert found.to_list() == [datetime(2024, 1, 1, tzinfo=UTC), None]


# --- SQL Server: what can be seen without one -------------------------------------------------------------


def test_sql_server_statements() -> None:
    source = Sql(url="mssql://u:${env:NOT_SET}@h/d", table='sales."Odd]Name"', cursor="at", partition_on="id")
    dialect = create_engine("mssql+pymssql://").dialect
    words = others._Words(source, dialect)
    columns = {name: words.name(name) for name in ("id", "at", "100%")}
    where = f"{words.name('at')} <= {words.mark}"
    [piece] = others._pieces(source, None, words, columns, where, (5,), asked("100%", "id", "x"))  # type: ignore[arg-type]
    assert piece.sql == (
        "select [100%], [id] from [sales].[Odd]]Name] q where [at] <= %s and 1 = 1 order by q.[at]"
    )
    assert piece.values == (5,)
    assert piece.wanted == ("100%", "id")
    assert (
        others._Words(Sql(url="mssql://h/d", query="select '5%' x;"), dialect).source == "(select '5%' x\n) q"
    )


def test_sql_server_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    source = Sql(url="mssql://sa:hunter22@127.0.0.1:1/d", table="t")
    with pytest.raises(SourceUnreadable, match=r"127\.0\.0\.1:1/d: .*Unable to connect") as failed:
        frame(source, asked("id"))
    assert "host and port" in failed.value.hint
    assert "hunter22" not in str(failed.value)


@pytest.mark.parametrize(
    ("url", "module", "extra"),
    [
        ("mssql://h/d", "pymssql", "sqlserver"),
        ("mysql://h/d", "connectorx", "mysql"),
        ("mariadb://h/d", "pymysql", "mysql"),
        ("postgresql://h/d", "psycopg", "postgres"),
        ("postgresql://h/d", "adbc_driver_postgresql", "postgres"),
    ],
)
def test_a_driver_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ExtraMissing, match=module.partition(".")[0]) as failed:
        frame(Sql(url=url, table="t"), asked("id"))
    assert failed.value.hint == f"pip install 'manta-ml[{extra}]'"


def test_databases_without_a_dialect_or_driver() -> None:
    with pytest.raises(SourceUnreadable, match=r"sqlalchemy\.dialects:nosuch"):
        frame(Sql(url="nosuch://u:hunter22@h/d", table="t"), asked("id"))
    with pytest.raises(ExtraMissing, match="oracledb"):
        frame(Sql(url="oracle+oracledb://u:hunter22@h/d", table="t"), asked("id"))
