"""Databases that are read through their Python driver: SQLite, SQL Server, and what else SQLAlchemy knows.

One statement on one connection reads all, which is one state of MySQL, MariaDB and SQLite; of SQL Server
where the database allows snapshot isolation. Rows are typed by their values, batch by batch: a column whose
values are of several types (SQLite allows it) is text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from manta.connectors.databases import (
    CONNECT_SECONDS,
    Piece,
    address,
    between,
    gathered,
    identifiers,
    last_value,
    no_cursor,
    place,
    range_token,
    reading,
    require,
)
from manta.definitions.sources import Ask, Reading, Rows, driver
from manta.errors import ExtraMissing, SourceUnreadable

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import URL, Connection, CursorResult, Dialect, Engine

    from manta.connectors.sql import Sql

BATCH_ROWS = 10_000
PIECE_ROWS = 500_000
ROW_BYTES = 64  # a guess, for telling how far a run is
DRIVERS = {"mysql": ("pymysql", "mysql"), "mariadb": ("pymysql", "mysql"), "mssql": ("pymssql", "sqlserver")}


class Fast(NamedTuple):
    """What a faster reader than the Python driver needs of a statement.

    Attributes:
        expressions: from the driver's cursor over no rows: what to select instead of which column.
        statement: from a cursor, a statement and its parameters: the statement with them in it.
    """

    expressions: Callable[[Any], dict[str, str]]
    statement: Callable[[Any, str, Sequence[Any]], str]


@contextmanager
def opened(source: Sql, ask: Ask, fast: Fast | None = None) -> Iterator[Reading]:
    from sqlalchemy.exc import SQLAlchemyError

    url, engine = _engine(source, ask.root)
    try:
        with reading(source, url, SQLAlchemyError), _connected(engine) as connection:
            found = _reading(source, connection, url, ask, fast)
        yield found
    finally:
        engine.dispose()


def _engine(source: Sql, root: Path) -> tuple[URL, Engine]:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.pool import NullPool

    url = address(source)
    if url.drivername in DRIVERS:
        module, extra = DRIVERS[url.drivername]
        driver(module, extra)
        url = url.set(drivername=f"{url.drivername}+{module}")
    try:
        found = url.get_driver_name()
        if found == "pymysql":
            url = url.update_query_dict({"charset": "utf8mb4", **url.query})
        elif found == "pysqlite":
            url = _existing(source, url, root)
        seconds = {"pymysql": "connect_timeout", "pymssql": "login_timeout"}.get(found)
        arguments = {seconds: CONNECT_SECONDS} if seconds else {}
        return url, create_engine(url, poolclass=NullPool, connect_args=arguments)
    except ArgumentError as error:
        raise SourceUnreadable(
            f"{place(url)} cannot be read: {error}", hint="install the database's SQLAlchemy dialect"
        ) from error
    except ImportError as error:
        raise ExtraMissing(
            f"reading {place(url)} needs a driver that is not installed: {error}", hint="install it with pip"
        ) from error


def _existing(source: Sql, url: URL, root: Path) -> URL:
    """The URL of an SQLite file, to be read and never made."""
    path = root / (url.database or "")
    if not path.is_file():
        raise SourceUnreadable(
            f"{source.what} cannot be read: {url.database!r} in {root} is no file",
            hint="correct the url of Sql(…): sqlite:///path, relative to the project folder",
        )
    return url.set(database=path.absolute().as_uri()).update_query_dict({"mode": "ro", "uri": "true"})


@contextmanager
def _connected(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements see one state, where there is a way to have that."""
    with engine.connect() as connection:
        if engine.dialect.name == "mssql":
            allowed = "select snapshot_isolation_state from sys.databases where name = db_name()"
            if connection.exec_driver_sql(allowed).scalar() == 1:
                connection.rollback()
                connection = connection.execution_options(isolation_level="SNAPSHOT")
        elif engine.dialect.name in ("mysql", "mariadb"):
            connection.exec_driver_sql("set time_zone = '+00:00'")
            connection.exec_driver_sql("start transaction with consistent snapshot, read only")
        yield connection


# --- splitting --------------------------------------------------------------------------------------------


class _Part(NamedTuple):
    """Some of the rows: a condition with its parameters, and what to call them."""

    condition: str
    values: tuple[Any, ...] = ()
    shown: str = ""


class _Words:
    """How this dialect writes names, parameters and subqueries."""

    def __init__(self, source: Sql, dialect: Dialect) -> None:
        self.name = dialect.identifier_preparer.quote_identifier
        style = dialect.paramstyle
        self.mark = {"qmark": "?", "format": "%s", "pyformat": "%s"}.get(style, "")
        if not self.mark:
            raise SourceUnreadable(
                f"{dialect.driver} takes its parameters in the style {style!r}, which is not supported",
                hint="name another driver in the url of Sql(…): dialect+driver://…",
            )
        if source.table is not None:
            self.source = f"{identifiers(source.table, self.name)} q"
        else:
            query = (source.query or "").strip().rstrip(";")
            # Where the driver looks for parameters, a percent sign must be written twice.
            query = query.replace("%", "%%") if "%%" in self.name("%") else query
            self.source = f"({query}\n) q"


def _reading(source: Sql, connection: Connection, url: URL, ask: Ask, fast: Fast | None) -> Reading:
    words = _Words(source, connection.dialect)
    nothing = connection.exec_driver_sql(f"select * from {words.source} where 1 = 0")
    columns = tuple(nothing.keys())
    selected = {name: words.name(name) for name in columns}
    if fast is not None:
        selected |= fast.expressions(nothing.cursor)
    nothing.close()
    require(source, columns, url)
    last = _decoded(last_value(source, ask))
    where, cursor = "1 = 1", None
    values: tuple[Any, ...] = ()
    if source.cursor is not None:
        until = _until(source, connection, words, last)
        if until is None:
            return Reading([], range_token(source, last, last), cursor=ask.cursor)
        name = words.name(source.cursor)
        where, values = f"{name} <= {words.mark}", (until,)
        if last is not None:
            where, values = f"{name} > {words.mark} and {where}", (_earlier(source, last), until)
        cursor = {"column": source.cursor, "value": _coded(source, until)}
        token = range_token(source, last, until)
    else:
        token = f"read-{datetime.now(UTC):%Y%m%dT%H%M%S.%f}"
    pieces = _pieces(source, connection, words, selected, where, values, ask)
    if fast is not None:
        driven: Any = connection.connection.cursor()
        pieces = [
            replace(each, sql=fast.statement(driven, each.sql, each.values), values=()) for each in pieces
        ]
    return Reading(pieces, token, cursor=cursor)


def _until(source: Sql, connection: Connection, words: _Words, last: Any) -> Any:
    """As in PostgreSQL: the greatest value, ``last`` when only late rows may be new, None when nothing is."""
    name = words.name(source.cursor or "")
    if connection.exec_driver_sql(f"select 1 from {words.source} where {name} is null").first():
        raise no_cursor(source)
    beyond, values = ("", ()) if last is None else (f" where {name} > {words.mark}", (last,))
    until = connection.exec_driver_sql(f"select max({name}) from {words.source}{beyond}", values).scalar()
    return until if until is not None or not source.lateness else last


def _pieces(
    source: Sql,
    connection: Connection,
    words: _Words,
    columns: Mapping[str, str],
    where: str,
    values: tuple[Any, ...],
    ask: Ask,
) -> list[Piece]:
    wanted = tuple(name for name in ask.columns if name in columns)
    selected = ", ".join(columns[name] for name in wanted) or "1"
    # By the column, not by what is selected under its name.
    order = f" order by q.{words.name(source.cursor)}" if source.cursor else ""
    parts, size = [_Part("1 = 1")], 1  # of one piece there is no telling how far it is
    if source.partition_on is not None and not source.consistent:
        counted = f"select count(*) from {words.source} where {where}"
        rows = connection.exec_driver_sql(counted, values).scalar() or 0
        parts = _ranges(connection, words, where, values, rows, source.partition_on)
        size = rows * ROW_BYTES // len(parts)
    return [
        Piece(
            f"{source.what} {part.shown}".strip(),
            size,
            f"select {selected} from {words.source} where {where} and {part.condition}{order}",
            tuple(columns),
            wanted,
            values=(*values, *part.values),
        )
        for part in parts
    ]


def _ranges(
    connection: Connection, words: _Words, where: str, values: tuple[Any, ...], rows: int, key: str
) -> list[_Part]:
    """Ranges of the key with about as many rows in each, cut at its quantiles."""
    name, number = words.name(key), math.ceil(rows / PIECE_ROWS)
    if number <= 1:
        return [_Part("1 = 1")]
    places = ", ".join(str(rows * part // number) for part in range(1, number))
    found = connection.exec_driver_sql(
        f"select distinct k from (select {name} k, row_number() over (order by {name}) n from {words.source}"
        f" where {where} and {name} is not null) ranked where n in ({places}) order by k",
        values,
    )
    bounds = [row[0] for row in found]
    ranges = []
    for low, high in pairwise([None, *bounds, None]):
        terms = [(f"{name} > {words.mark}", low)] if low is not None else []
        terms += [(f"{name} <= {words.mark}", high)] if high is not None else []
        condition = " and ".join(term for term, _ in terms) or f"{name} is not null"
        shown = between(key, low, high) if terms else ""
        ranges.append(_Part(condition, tuple(value for _, value in terms), shown))
    return [*ranges, _Part(f"{name} is null", shown=f"{key} is null")]


# --- cursors ----------------------------------------------------------------------------------------------


def _coded(source: Sql, value: Any) -> Any:
    """A cursor's value as JSON."""
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Decimal):
        return {"decimal": str(value)}
    if isinstance(value, datetime):
        return {"timestamp": value.isoformat()}
    if isinstance(value, date):
        return {"date": value.isoformat()}
    if isinstance(value, bytes | bytearray | memoryview):
        return {"bytes": bytes(value).hex()}
    raise SourceUnreadable(
        f"{source.cursor!r} of {source.what} holds a {type(value).__name__}, which cannot be a cursor",
        hint="take a column of numbers, times or texts",
    )


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    [(kind, text)] = value.items()
    parse: dict[str, Any] = {
        "decimal": Decimal,
        "timestamp": datetime.fromisoformat,
        "date": date.fromisoformat,
        "bytes": bytes.fromhex,
    }
    return parse[kind](text)


def _earlier(source: Sql, last: Any) -> Any:
    """``last`` less the lateness."""
    if not source.lateness:
        return last
    if isinstance(last, datetime):
        return last - timedelta(seconds=source.lateness)
    if isinstance(last, date):
        return last - timedelta(days=math.ceil(source.lateness / 86_400))
    if isinstance(last, int):
        return last - math.ceil(source.lateness)
    if isinstance(last, Decimal):
        return last - Decimal(str(source.lateness))
    if isinstance(last, float):
        return last - source.lateness
    try:
        moment = datetime.fromisoformat(last) - timedelta(seconds=source.lateness)
    except (TypeError, ValueError):
        raise SourceUnreadable(
            f"lateness is for a cursor of numbers or times, and {source.cursor!r} holds {last!r}",
            hint="take another cursor, or lateness=0",
        ) from None
    # Compared as text, and so written as it is there; what is cut off at its end makes it earlier.
    return moment.strftime(f"%Y-%m-%d{last[10:11]}%H:%M:%S") if len(last) > 10 else f"{moment:%Y-%m-%d}"


# --- reading ----------------------------------------------------------------------------------------------


def read(source: Sql, piece: Piece, ask: Ask) -> Iterator[Rows]:
    from sqlalchemy.exc import SQLAlchemyError

    url, engine = _engine(source, ask.root)
    # What the driver raises when rows are fetched does not go through SQLAlchemy.
    failures = (SQLAlchemyError, engine.dialect.loaded_dbapi.Error)
    with reading(source, url, *failures):
        connecting = _connected(engine)
        connection = connecting.__enter__()
    try:
        with reading(source, url, *failures):
            result = connection.execution_options(stream_results=True).exec_driver_sql(
                piece.sql, piece.values
            )
        yield Rows(0, _frame([], piece), [], piece.columns)
        fetched = _fetched(source, url, result, failures)
        for values in gathered(_frame(rows, piece) for rows in fetched):
            yield Rows(values.height, values, [], piece.columns)
    finally:
        # Not back to where rows that were never fetched would be read first.
        connection.invalidate()
        connection.close()
        engine.dispose()


def _fetched(
    source: Sql, url: URL, result: CursorResult, failures: tuple[type[BaseException], ...]
) -> Iterator[Sequence[Any]]:
    while True:
        with reading(source, url, *failures):
            rows = result.fetchmany(BATCH_ROWS)
        if not rows:
            return
        yield rows


def _frame(rows: Sequence[Sequence[Any]], piece: Piece) -> pl.DataFrame:
    import polars as pl

    if not piece.wanted:
        return pl.DataFrame(height=len(rows))
    columns = zip(*rows, strict=True) if rows else [[] for _ in piece.wanted]
    return pl.DataFrame([_series(name, values) for name, values in zip(piece.wanted, columns, strict=True)])


def _series(name: str, values: Sequence[Any]) -> pl.Series:
    """The values in the type that all of them have; else as texts."""
    import polars as pl

    kinds = {type(value) for value in values} - {type(None)}
    if not kinds:
        return pl.Series(name, [None] * len(values), dtype=pl.String)
    plain = {int: pl.Int64(), float: pl.Float64(), bool: pl.Boolean(), str: pl.String(), bytes: pl.Binary()}
    [kind, *others] = kinds
    try:
        if not others and kind in plain:
            return pl.Series(name, values, dtype=plain[kind])
        if not others and kind is date:
            return pl.Series(name, values, dtype=pl.Date())
        if not others and kind is datetime:
            return _moments(name, values)
    except (OverflowError, TypeError, pl.exceptions.PolarsError):
        pass  # an integer beyond 64 bits, say
    return pl.Series(name, [None if value is None else text_of(value) for value in values], dtype=pl.String)


def _moments(name: str, values: Sequence[datetime | None]) -> pl.Series:
    import polars as pl

    zones = {value.tzinfo is not None for value in values if value is not None}
    if zones == {True}:
        utc = [None if value is None else value.astimezone(UTC) for value in values]
        return pl.Series(name, utc, dtype=pl.Datetime("us", "UTC"))
    if zones == {False}:
        return pl.Series(name, values, dtype=pl.Datetime("us"))
    raise TypeError("some have a zone, some have none")


def text_of(value: Any) -> str:
    """A value as the text by which the contract knows it."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"\\x{bytes(value).hex()}"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):  # how drivers give MySQL's TIME, which may be below zero
        seconds, micros = divmod(abs(value) // timedelta(microseconds=1), 1_000_000)
        clock = f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
        return f"{'-' if value < timedelta() else ''}{clock}{f'.{micros:06}' if micros else ''}"
    if isinstance(value, dict | list):
        return json.dumps(value, default=text_of)
    return str(value)
