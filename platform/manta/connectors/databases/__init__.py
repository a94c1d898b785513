"""Databases: how each kind is read. A module offers ``opened(source, ask)`` and ``read(source, piece, ask)``,
as a connector does (see :class:`manta.definitions.sources.Source`); here is what they share.
"""

from __future__ import annotations

import math
import re
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from manta.definitions.base import digest
from manta.definitions.sources import Ask
from manta.errors import SourceUnreadable
from manta.secrets import redactor, without_passwords

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import URL

    from manta.connectors.sql import Sql

PIECE_BYTES = 16 * 2**20
BATCH_BYTES = 16 * 2**20
CONNECT_SECONDS = 10
SHORTEST_PASSWORD = 3  # characters: what is shorter occurs in ordinary words


@dataclass(frozen=True)
class Piece:
    """A statement, and what of its result the ingest wants to know before.

    Attributes:
        columns: those that the table or query has; ``wanted`` of them are selected.
        values: the statement's parameters, where the database takes such.
        snapshot: the state to read, where the database names it.
    """

    file: str
    size: int
    sql: str
    columns: tuple[str, ...]
    wanted: tuple[str, ...]
    values: tuple[Any, ...] = ()
    snapshot: str = ""


# --- where ------------------------------------------------------------------------------------------------


def address(source: Sql) -> URL:
    """Its URL, with the secrets in it.

    Raises:
        SourceUnreadable: it is none. SecretUnreadable: a secret is not there.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    from manta.connectors.sql import resolved

    try:
        return make_url(resolved(source.url))
    except (ArgumentError, ValueError) as error:
        raise SourceUnreadable(
            "the url of Sql(…) cannot be understood",
            hint="write it as postgresql://user:${env:PASSWORD}@host:port/database",
        ) from (None if error else error)


def place(url: URL) -> str:
    """Host, port and database, for people."""
    if url.get_backend_name() == "sqlite":
        return f"{url.database}"
    where = f"{url.host}:{url.port}" if url.port else url.host or url.query.get("host", "")
    return f"{url.get_backend_name()} at {where}/{url.database}"


def identifiers(table: str, quote: Callable[[str], str]) -> str:
    """``schema.table`` as SQL, each part quoted; parts that are in double quotes already may hold dots."""
    parts = re.findall(r'"((?:[^"]|"")+)"|([^."]+)', table)
    return ".".join(quote(quoted.replace('""', '"') or plain) for quoted, plain in parts)


# --- errors -----------------------------------------------------------------------------------------------

HINTS: Sequence[tuple[str, str]] = (
    (
        r"password authentication|access denied|login failed|role .* does not exist|authentication failed",
        "check the user and the password in the url of Sql(…), and what the user may do",
    ),
    (
        r"snapshot .* does not exist|invalid snapshot identifier|could not import the requested snapshot",
        "the session that held the snapshot has ended: run the ingest again; if it ends each time, see what "
        "closes long transactions on the server",
    ),
    (
        r"refused|timed? ?out|could not translate|can't connect|unable to connect|not known|no route"
        r"|unreachable|closed the connection|lost connection|server has gone|name resolution|starting up"
        r"|is unavailable|adaptive server",
        "check host and port in the url of Sql(…), and that the database can be reached from the cluster",
    ),
    (r"permission denied|command denied|permission was denied", "grant the user the right to select from it"),
    (
        r"(relation|table|object|schema|database).*(does ?n.t|does not) exist|no such table"
        r"|unknown (database|table)|invalid object|unable to open database file|cannot open database",
        "correct `table`, `query` or the database's name in Sql(…); names are taken as written",
    ),
    (r"column|field list", "correct the columns that Sql(…) or its query names"),
)


def unreadable(source: Sql, url: URL, error: BaseException) -> SourceUnreadable:
    """What a database or its driver said, without passwords, and what to do about it."""
    said = _told(error)
    found = (hint for pattern, hint in HINTS if re.search(pattern, said, re.IGNORECASE))
    return SourceUnreadable(
        f"{source.what} cannot be read from {place(url)}: {shown(said, url)}",
        hint=next(found, "correct the query in Sql(…), or what it says of the database"),
    )


def _told(error: BaseException) -> str:
    """The driver's own words, not those in which SQLAlchemy repeats the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    arguments: Sequence[Any] = getattr(original, "args", ())
    if len(arguments) == 1 and isinstance(arguments[0], tuple):
        arguments = arguments[0]
    if len(arguments) == 2 and isinstance(arguments[0], int):  # as MySQL's drivers tell it, and SQL Server's
        number, said = arguments
        said = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        return f"{' '.join(said.split())} ({number})"
    return " ".join(str(original).split())


def shown(text: str, url: URL) -> str:
    """The text, without any password."""
    password = str(url.password or "")
    if len(password) >= SHORTEST_PASSWORD:
        for form in {password, urllib.parse.quote(password, safe=""), urllib.parse.quote_plus(password)}:
            text = text.replace(form, "***")
    return redactor.text(without_passwords(text))


@contextmanager
def reading(source: Sql, url: URL, *kinds: type[BaseException]) -> Iterator[None]:
    """Errors of these kinds become SourceUnreadable."""
    try:
        yield
    except kinds as error:
        # Not as the cause: what it says may hold the password.
        raise unreadable(source, url, error) from None


# --- columns, pieces, cursors -----------------------------------------------------------------------------


def require(source: Sql, columns: Sequence[str], url: URL) -> None:
    """Raises:
    SourceUnreadable: the columns that Sql(…) names are not there.
    """
    for field in ("cursor", "partition_on"):
        name = getattr(source, field)
        if name is not None and name not in columns:
            raise SourceUnreadable(
                f"{source.what} of {place(url)} has no column {name!r}, which is its {field}",
                hint=f"name one of {', '.join(columns)}; names are taken as written, case included",
            )


def last_value(source: Sql, ask: Ask) -> Any:
    """Where the last committed reading ended; None when there was none.

    Raises:
        SourceUnreadable: it read by another column.
    """
    if source.cursor is None or ask.cursor is None:
        return None
    if ask.cursor.get("column") != source.cursor:
        raise SourceUnreadable(
            f"the last reading of {source.what} ended at a value of {ask.cursor.get('column')!r}, and its "
            f"cursor is now {source.cursor!r}",
            hint="give the ingest another name or dataset, which begins anew, or take back the old cursor",
        )
    return ask.cursor["value"]


def no_cursor(source: Sql) -> SourceUnreadable:
    return SourceUnreadable(
        f"rows of {source.what} have no {source.cursor!r}: they would never be read",
        hint=f"fill it, or read a query that does: query='select …, coalesce({source.cursor}, …) as "
        f"{source.cursor} from …'",
    )


def range_token(source: Sql, last: Any, until: Any) -> str:
    """Names what is between two cursors, in characters that are safe in the name of a file."""
    told = [source.cursor, *("" if value is None else str(value) for value in (last, until))]
    text = re.sub(r"[^A-Za-z0-9.]+", "-", "{} {}..{}".format(*told))[:100].strip("-")
    return f"{text}-{digest(told)[:8]}"


def pieces_for(size: float) -> int:
    return max(1, math.ceil(size / PIECE_BYTES))


def cuts(number: int) -> list[float]:
    """Where to cut a whole into so many pieces, as shares of it. The last is cut into four: all CPUs then end
    at about the same time."""
    whole = [part / number for part in range(1, number)]
    return [*whole, *(1 - quarter / 4 / number for quarter in (3, 2, 1))] if whole else []


def gathered(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in fewer frames, of some ten megabytes: each becomes a file of the dataset."""
    import polars as pl

    held: list[pl.DataFrame] = []
    for frame in frames:
        if held and (held[0].schema != frame.schema or sum(map(_size, held)) >= BATCH_BYTES):
            yield pl.concat(held)
            held = []
        held.append(frame)
    if held:
        yield pl.concat(held)


def _size(frame: pl.DataFrame) -> int:
    return int(frame.estimated_size())


def between(name: str, low: Any, high: Any) -> str:
    """A range of a column, for people: above ``low``, up to ``high``."""
    if low is None:
        return f"{name} up to {high}"
    return f"{name} above {low}" if high is None else f"{name} ({low}, {high}]"
