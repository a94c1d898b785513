"""Feast's SQLite layout: one table per view, one row per (entity key, feature).

The event time of a row is kept in whole seconds, and as if UTC were the local time of the machine: Feast
writes it that way, and reads it back with the same local time.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path

from manta.errors import FeaturesUnavailable
from manta.words import quoted

KEYS_PER_QUERY = 512
MOST_VARIABLES = 30_000  # SQLite takes 32,766 in one statement
BUSY_SECONDS = 30.0

Row = tuple[int, bytes, str, bytes, int]
"""Which of the tables asked, entity key, feature, value, event time in seconds since 1970 UTC."""


class SqliteRows:
    """Reads rows, from any number of threads. The file is opened when first read, and kept open."""

    def __init__(self, path: str, tables: Sequence[str]) -> None:
        self.path = path
        self._tables = tables
        self._keys = min(KEYS_PER_QUERY, MOST_VARIABLES // max(1, 2 * len(tables)))
        self._query = lru_cache(128)(self._compose)
        self._local = threading.local()

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> list[Row]:
        """All that is held under some keys of each table, in any order. Of up to 512 keys, all is read at one
        instant.

        Raises:
            FeaturesUnavailable: the store, or a table, is not there.
        """
        found: list[Row] = []
        try:
            for start in range(0, max(map(len, keys), default=0), self._keys):
                some = [column[start : start + self._keys] for column in keys]
                # Padded with nulls, which match nothing, to powers of two: few statements to prepare.
                sizes = tuple([1 << (len(column) - 1).bit_length() if column else 1 for column in some])
                padded = [
                    key
                    for column, size in zip(some, sizes, strict=True)
                    for key in (*column, *(None,) * (size - len(column)))
                ]
                found += self._connection().execute(self._query(sizes), padded)
        except sqlite3.Error as error:
            raise FeaturesUnavailable(
                f"the online store {self.path} cannot be read: {error}",
                hint="materialize the features: `manta run` with the name of their Materialize",
            ) from error
        return found if _LOCAL_IS_UTC else [(*row[:4], seconds_utc(row[4])) for row in found]

    def _compose(self, sizes: tuple[int, ...]) -> str:
        """One statement for all tables, each asked for that many keys."""
        return " UNION ALL ".join(
            f"SELECT {place}, entity_key, feature_name, value, event_ts FROM {quoted(table)} "
            f"WHERE entity_key IN ({','.join('?' * size)})"
            for place, (table, size) in enumerate(zip(self._tables, sizes, strict=True))
        )

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            uri = f"{Path(self.path).absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
            self._local.connection = connection
        return connection


@contextmanager
def writable(path: str) -> Iterator[sqlite3.Connection]:
    """A connection for writing, in autocommit mode, to a file in WAL mode: readers go on meanwhile."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        yield connection
    finally:
        connection.close()


def create_table(connection: sqlite3.Connection, table: str) -> None:
    """As Feast makes it when a repository is applied."""
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {quoted(table)} (entity_key BLOB, feature_name TEXT, value BLOB, "
        "value_text TEXT, vector_value BLOB, event_ts timestamp, created_ts timestamp, "
        "PRIMARY KEY(entity_key, feature_name))"
    )


def seconds_kept(at: datetime) -> int:
    """How Feast keeps an instant."""
    return int(at.astimezone(UTC).replace(tzinfo=None).timestamp())


def seconds_utc(kept: int) -> int:
    """The instant that Feast reads from what it kept, in seconds since 1970 UTC."""
    return int(datetime.fromtimestamp(kept).replace(tzinfo=UTC).timestamp())


def _local_is_utc() -> bool:
    year = 365 * 86400
    return all(seconds_utc(at) == at for at in range(0, 60 * year, year // 4))


_LOCAL_IS_UTC = _local_is_utc()
