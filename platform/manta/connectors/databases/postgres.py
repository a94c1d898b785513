"""PostgreSQL: one session holds an exported snapshot, tasks read under it by binary COPY (ADBC).

Values come in PostgreSQL's binary form where that says the same as its text, else as text: numbers of any
precision (``numeric``), times of day, intervals, UUIDs, JSON, enums, addresses and the like are text, for the
contract to type. ``timestamptz`` is a moment in UTC. A date or time that is infinite has no value in Arrow:
its row is refused. Arrays come as lists, those declared with several dimensions as text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from manta.connectors.databases import (
    BATCH_BYTES,
    CONNECT_SECONDS,
    Piece,
    address,
    between,
    cuts,
    identifiers,
    last_value,
    no_cursor,
    pieces_for,
    range_token,
    reading,
    require,
)
from manta.definitions.sources import Ask, Broken, Reading, Rows, driver
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa
    from sqlalchemy import URL

    from manta.connectors.sql import Sql

EXTRA = "postgres"
SAMPLE_ROWS = 30_000
# A session whose process has died is noticed within this time, whatever it is at.
CHECK_MILLISECONDS = 2_000
# The types whose binary form says what their text says; with a leading _: lists of them.
_BINARY = {"bool", "int2", "int4", "int8", "float4", "float8", "text", "varchar", "bytea"}
_MOMENTS = {"date", "timestamp", "timestamptz"}
BINARY = _BINARY | _MOMENTS | {"numeric"} | {f"_{name}" for name in _BINARY | _MOMENTS}
# What infinity becomes in the driver: its lowest numbers, which no finite date or time has.
INFINITE = {"date": -2_000_000_000, "moment": -9_000_000_000_000_000_000}
# Of both the session that cuts and those that read, so that texts mean the same in all.
SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "extra_float_digits": "1",
    "standard_conforming_strings": "on",
    "client_connection_check_interval": str(CHECK_MILLISECONDS),
}


class _Column(NamedTuple):
    type: str  # the name of its base type; of a list with a leading _
    spelled: str  # as one writes the type in SQL
    flat: bool  # whether it is no list of lists


class _Table(NamedTuple):
    """What is read: as SQL, and where it is a plain table, how many pages it has."""

    sql: str
    columns: dict[str, _Column]
    sampled: bool  # whether the server can give a sample of its pages
    pages: int | None


@contextmanager
def opened(source: Sql, ask: Ask) -> Iterator[Reading]:
    psycopg = driver("psycopg", EXTRA)
    driver("adbc_driver_postgresql", EXTRA)
    url = address(source)
    with reading(source, url, psycopg.Error):
        session = psycopg.connect(_libpq(url), autocommit=False)
    try:
        with reading(source, url, psycopg.Error):
            session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            session.read_only = True
            session.execute(_settings(idle_in_transaction_session_timeout="0"))
            found = _reading(source, session, url, ask)
        yield found
    finally:
        session.close()


def _settings(**more: str) -> str:
    # Of this transaction only, so that it also holds behind a pooler; what an older server does not know is
    # left out, for naming it would be an error.
    given = ", ".join(f"('{name}', '{value}')" for name, value in {**SETTINGS, **more}.items())
    return (
        f"select set_config(s.name, v.value, true) from (values {given}) as v (name, value)"
        " join pg_settings s on lower(s.name) = lower(v.name)"
    )


def _libpq(url: URL) -> str:
    """The URL as libpq reads it."""
    defaults = {
        "connect_timeout": str(CONNECT_SECONDS),
        "application_name": "manta",
        "keepalives_idle": "30",
        "tcp_user_timeout": "60000",
    }
    return (
        url.set(drivername="postgresql")
        .update_query_dict({**defaults, **url.query})
        .render_as_string(hide_password=False)
    )


# --- splitting --------------------------------------------------------------------------------------------


def _reading(source: Sql, session: Any, url: URL, ask: Ask) -> Reading:
    table = _table(source, session)
    require(source, tuple(table.columns), url)
    last = last_value(source, ask)
    where, cursor = "true", None
    if source.cursor is not None:
        until = _until(source, session, table, last)
        if until is None:
            return Reading([], range_token(source, last, last), cursor=ask.cursor)
        where = _new(source, table, last, until)
        cursor = {"column": source.cursor, "value": until}
        token = range_token(source, last, until)
    else:
        state = _one(session, "select pg_current_snapshot()::text")
        token = f"snapshot-{state.replace(':', '-').replace(',', '.')}"
    return Reading(_pieces(source, session, table, where, ask), token, cursor=cursor)


def _table(source: Sql, session: Any) -> _Table:
    sampled, pages, kinds = False, None, {}
    if source.table is not None:
        name = identifiers(source.table, _name)
        sql = f"{name} as q"
        kind, method, pages = session.execute(
            "select relkind, amname, pg_relation_size(c.oid) / current_setting('block_size')::int"
            " from pg_class c left join pg_am a on a.oid = relam where c.oid = %s::regclass",
            [name],
        ).fetchone()
        kinds = dict(
            session.execute(
                "select attname, attndims from pg_attribute where attrelid = %s::regclass and attnum > 0",
                [name],
            ).fetchall()
        )
        sampled = kind in ("r", "m")
        # Ranges of rows' places are read as such from version 14 on, and mean something in a heap.
        if not sampled or method != "heap" or session.info.server_version < 140_000:
            pages = None
    else:
        sql = f"({(source.query or '').strip().rstrip(';')}\n) as q"
    described = session.execute(f"select * from {sql} limit 0").description
    types = {
        oid: (name, spelled)
        for oid, name, spelled in session.execute(
            "with recursive base as ("
            " select oid as id, oid, typtype, typbasetype, typname from pg_type where oid = any(%s)"
            " union all select b.id, t.oid, t.typtype, t.typbasetype, t.typname from base b"
            " join pg_type t on t.oid = b.typbasetype where b.typtype = 'd')"
            " select id, typname, format_type(oid, null) from base where typtype <> 'd'",
            [[column.type_code for column in described]],
        ).fetchall()
    }
    columns = {
        column.name: _Column(*types[column.type_code], flat=kinds.get(column.name, 0) < 2)
        for column in described
    }
    return _Table(sql, columns, sampled, pages)


def _until(source: Sql, session: Any, table: _Table, last: str | None) -> str | None:
    """The greatest value of the cursor; None when nothing is beyond ``last``.

    With lateness it is ``last`` again when nothing is: rows may have come late.
    """
    name, kind = _name(source.cursor or ""), table.columns[source.cursor or ""].spelled
    if _one(session, f"select exists (select from {table.sql} where {name} is null)"):
        raise no_cursor(source)
    beyond = "" if last is None else f" where {name} > cast({_text(last)} as {kind})"
    until = _one(session, f"select max({name})::text from {table.sql}{beyond}")
    if until in ("infinity", "Infinity", "NaN"):
        raise SourceUnreadable(
            f"the greatest {source.cursor!r} of {source.what} is {until}: nothing could come after it",
            hint="correct that row, or leave it out with a query",
        )
    return cast("str | None", until if until is not None or not source.lateness else last)


def _new(source: Sql, table: _Table, last: str | None, until: str) -> str:
    """The condition that a row is of this reading."""
    name = _name(source.cursor or "")
    column = table.columns[source.cursor or ""]
    upper = f"{name} <= cast({_text(until)} as {column.spelled})"
    if last is None:
        return upper
    start = f"cast({_text(last)} as {column.spelled})"
    if source.lateness and column.type in _MOMENTS:
        start += f" - interval '{source.lateness} seconds'"
    elif source.lateness and column.type in ("int2", "int4", "int8"):
        start = f"cast({_text(last)} as int8) - {math.ceil(source.lateness)}"
    elif source.lateness and column.type in ("float4", "float8", "numeric"):
        start += f" - {source.lateness!r}"
    elif source.lateness:
        raise SourceUnreadable(
            f"lateness is for a cursor of numbers or times, and {source.cursor!r} is {column.spelled}",
            hint="take another cursor, or lateness=0",
        )
    return f"{name} > {start} and {upper}"


def _pieces(source: Sql, session: Any, table: _Table, where: str, ask: Ask) -> list[Piece]:
    wanted = tuple(name for name in ask.columns if name in table.columns)
    selected = ", ".join(_selected(name, table.columns[name]) for name in wanted)
    # By the column, not by what is selected under its name.
    order = f" order by q.{_name(source.cursor)}" if source.cursor else ""
    # Also of a reading of no columns there is something to count.
    base = f"select {selected or 'true'} from {table.sql} where "
    plan = _one(session, f"explain (format json) {base}{where}")[0]["Plan"]
    rows, size = plan["Plan Rows"], plan["Plan Rows"] * plan["Plan Width"]
    parts = _parts(source, session, table, where, rows, pieces_for(size))
    snapshot = _one(session, "select pg_export_snapshot()")
    return [
        Piece(
            f"{source.what} {shown}".strip(),
            size // len(parts),
            f"{base}{where} and {condition}{order}",
            tuple(table.columns),
            wanted,
            snapshot=snapshot,
        )
        for condition, shown in parts
    ]


def _parts(
    source: Sql, session: Any, table: _Table, where: str, rows: int, number: int
) -> Sequence[tuple[str, str]]:
    """Conditions that each row meets one of, in the order of the rows, and what to call them."""
    if number == 1:
        return [("true", "")]
    key = source.partition_on or source.cursor
    if key is not None:
        found = _ranges(source, session, table, where, rows, number, key)
        if key != source.cursor:
            found.append((f"{_name(key)} is null", f"{key} is null"))
        return found
    if table.pages is not None:
        starts = sorted({0, *(int(share * table.pages) for share in cuts(number))})
        # The last has no end: whoever cut the pages before this snapshot, all rows are in some piece.
        return [
            (
                f"ctid >= '({start},0)'" + (f" and ctid < '({stop},0)'" if stop else ""),
                f"pages {start:,}-{stop:,}" if stop else f"pages from {start:,}",
            )
            for start, stop in pairwise([*starts, None])
            if start is not None
        ]
    return [("true", "")]


def _ranges(
    source: Sql, session: Any, table: _Table, where: str, rows: int, number: int, key: str
) -> list[tuple[str, str]]:
    """As many ranges of the key, with about as many rows in each: cut where a sample's quantiles are. A value
    that very many rows share is not cut."""
    share = min(1.0, SAMPLE_ROWS / max(1, rows))
    sample = ""
    if share < 0.5 and table.sampled:
        sample = f" tablesample system ({100 * share})"
    elif share < 0.5:
        where = f"random() < {share} and {where}"
    quantiles = ", ".join(map(str, cuts(number)))
    sampled: list[str] | None = _one(
        session,
        f"select percentile_disc(array[{quantiles}]) within group (order by {_name(key)})::text[]"
        f" from {table.sql}{sample} where {where} and {_name(key)} is not null",
    )
    bounds = list(dict.fromkeys(cut for cut in sampled or [] if cut is not None))
    name, kind = _name(key), table.columns[key].spelled
    found = []
    for low, high in pairwise([None, *bounds, None]):
        terms = [f"{name} > cast({_text(low)} as {kind})"] if low is not None else []
        terms += [f"{name} <= cast({_text(high)} as {kind})"] if high is not None else []
        found.append(
            (" and ".join(terms) or f"{name} is not null", between(key, low, high) if bounds else "")
        )
    return found


def _selected(name: str, column: _Column) -> str:
    if column.type in BINARY and column.flat:
        return _name(name)
    as_text = "text[]" if column.type.startswith("_") and column.flat else "text"
    return f"{_name(name)}::{as_text} as {_name(name)}"


def _name(name: str) -> str:
    quoted = name.replace('"', '""')
    return f'"{quoted}"'


def _text(value: str) -> str:
    quoted = value.replace("'", "''")
    return f"'{quoted}'"


def _one(session: Any, sql: str) -> Any:
    return session.execute(sql).fetchone()[0]


# --- reading ----------------------------------------------------------------------------------------------


def read(source: Sql, piece: Piece, _ask: Ask) -> Iterator[Rows]:
    import pyarrow as pa

    adbc = driver("adbc_driver_manager", EXTRA)
    url = address(source)
    failures = (adbc.Error, pa.ArrowException, OSError)
    with reading(source, url, *failures):
        session = adbc.AdbcConnection(_database(_libpq(url)))
    statement = adbc.AdbcStatement(session)
    try:
        with reading(source, url, *failures):
            _run(statement, "begin isolation level repeatable read read only").read_all()
            if piece.snapshot:
                _run(statement, f"set transaction snapshot {_text(piece.snapshot)}").read_all()
            _run(statement, _settings()).read_all()
            statement.set_options(**{"adbc.postgresql.batch_size_hint_bytes": str(BATCH_BYTES)})
            batches = _run(statement, piece.sql)
        schema = batches.schema
        yield _rows(pa.record_batch([pa.nulls(0, field.type) for field in schema], schema=schema), piece)
        while (batch := _next(source, url, batches, failures)) is not None:
            yield _rows(batch, piece)
    except GeneratorExit:
        statement.cancel()  # else the server would go on until it finds nobody there
        raise
    finally:
        statement.close()
        session.close()


@lru_cache(maxsize=8)
def _database(url: str) -> Any:
    """One for each URL and process: whenever the driver makes one, it asks the server for all types that it
    has, which takes as long as reading 40,000 rows. It holds no connection."""
    return driver("adbc_driver_postgresql", EXTRA).connect(url)


def _run(statement: Any, sql: str) -> pa.RecordBatchReader:
    import pyarrow as pa

    statement.set_sql_query(sql)
    stream, _ = statement.execute_query()
    return pa.RecordBatchReader.from_stream(stream)


def _next(source: Sql, url: URL, batches: Any, failures: tuple[type[BaseException], ...]) -> Any:
    with reading(source, url, *failures):
        return next(iter(batches), None)


def _rows(batch: pa.RecordBatch, piece: Piece) -> Rows:
    import polars as pl
    import pyarrow as pa

    if not piece.wanted:
        return Rows(batch.num_rows, pl.DataFrame(height=batch.num_rows), [], piece.columns)
    columns = [_stored(column) for column in batch.columns]
    values = cast("pl.DataFrame", pl.from_arrow(pa.table(columns, names=list(piece.wanted))))
    values, broken = _finite(values)
    return Rows(batch.num_rows, values, broken, piece.columns)


def _stored(column: Any) -> Any:
    """Without the name of PostgreSQL's type, which Polars does not know."""
    return column.storage if hasattr(column, "storage") else column


def _finite(values: pl.DataFrame) -> tuple[pl.DataFrame, list[Broken]]:
    """Without the rows in which a date or time is infinite."""
    import polars as pl

    infinite = pl.Series([False]).new_from_index(0, values.height)
    for column in values.iter_columns():
        if column.dtype.is_temporal():
            lowest = INFINITE["date" if column.dtype == pl.Date() else "moment"]
            number = column.to_physical()
            if (number.min() or 0) < lowest:  # type: ignore[operator]
                infinite |= (number < lowest).fill_null(False)
    if not infinite.any():
        return values, []
    rows = values.filter(infinite).with_columns(pl.selectors.temporal().to_physical())
    reason = "a date or time in it is infinite"
    broken = [
        Broken(at, reason, "infinite", json.dumps(row, default=str))
        for at, row in zip(infinite.arg_true(), rows.iter_rows(named=True), strict=True)
    ]
    return values.filter(~infinite), broken
