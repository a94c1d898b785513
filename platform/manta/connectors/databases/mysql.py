"""MySQL and MariaDB: split as other databases are, and read by ConnectorX, many times as fast as PyMySQL.

Decimals, dates, times and what else has no exact counterpart in ConnectorX are sent as text, for the contract
to type; a ``timestamp`` is in UTC. Where the url says more than host, user and database (TLS, a socket), or
names a driver, that driver reads, which alone understands it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, cast

from manta.connectors.databases import Piece, address, gathered, others, unreadable
from manta.definitions.sources import Ask, Reading, Rows, driver

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import URL

    from manta.connectors.sql import Sql

EXTRA = "mysql"
BATCH_ROWS = 10_000
PORT = 3306
# How the protocol numbers types, and the character set that means bytes.
EXACT, WHOLE, REAL, TEXTS, BYTES = {5, 8}, {1, 2, 3, 9, 13, 16}, {4}, {15, 249, 250, 251, 252, 253, 254}, 63
HEXADECIMAL = "hex of "  # so begins the name of a column whose bytes are sent as digits


def opened(source: Sql, ask: Ask) -> AbstractContextManager[Reading]:
    if _beyond(address(source)):
        return others.opened(source, ask)
    driver("connectorx", EXTRA)
    return others.opened(source, ask, others.Fast(_expressions, _statement))


def _beyond(url: URL) -> bool:
    """Whether the url says what ConnectorX does not understand."""
    return bool(set(url.query) - {"charset"}) or "+" in url.drivername


def _expressions(cursor: Any) -> dict[str, str]:
    # PyMySQL tells the columns' character sets nowhere else.
    return {field.name: _expression(_name(field.name), field) for field in cursor._result.fields}


def _expression(name: str, field: Any) -> str:
    kind, holds_bytes = field.type_code, field.charsetnr == BYTES
    if kind in EXACT or (kind in TEXTS and not holds_bytes):
        return name
    if kind in TEXTS:
        return f"hex({name}) as {_name(HEXADECIMAL + field.name)}"
    if kind in WHOLE:
        return f"cast({name} as signed) as {name}"
    return f"({name} + 0e0) as {name}" if kind in REAL else f"cast({name} as char) as {name}"


def _name(name: str) -> str:
    quoted = name.replace("`", "``")
    return f"`{quoted}`"


def _statement(cursor: Any, sql: str, values: Sequence[Any]) -> str:
    return str(cursor.mogrify(sql, tuple(values)))


def read(source: Sql, piece: Piece, ask: Ask) -> Iterator[Rows]:
    url = address(source)
    if _beyond(url):
        yield from others.read(source, piece, ask)
        return
    connectorx = driver("connectorx", EXTRA)
    whole = url.set(drivername="mysql", port=url.port or PORT, query={}).render_as_string(hide_password=False)
    with _failures(source, url):
        batches = iter(
            connectorx.read_sql(
                whole,
                piece.sql,
                return_type="arrow_stream",
                batch_size=BATCH_ROWS,
                pre_execution_query="set time_zone = '+00:00'",
            )
        )
    yield Rows(0, _frame(batches.schema.empty_table(), piece), [], piece.columns)
    for values in gathered(_frame(batch, piece) for batch in _batches(source, url, batches)):
        yield Rows(values.height, values, [], piece.columns)


def _batches(source: Sql, url: URL, batches: Iterator[Any]) -> Iterator[Any]:
    while True:
        with _failures(source, url):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _failures(source: Sql, url: URL) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise unreadable(source, url, error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # how ConnectorX fails at a value; no Exception
            raise
        raise unreadable(source, url, error) from None


def _frame(batch: Any, piece: Piece) -> pl.DataFrame:
    import polars as pl

    if not piece.wanted:
        return pl.DataFrame(height=batch.num_rows)
    values = cast(pl.DataFrame, pl.from_arrow(batch))
    digits = [name for name in values.columns if name.startswith(HEXADECIMAL)]
    values = values.with_columns(pl.col(digits).cast(pl.String).str.decode("hex"))
    return values.rename({name: name.removeprefix(HEXADECIMAL) for name in digits})
