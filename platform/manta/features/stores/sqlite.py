"""Feast's SQLite layout: one table per view, one row per (entity key, feature).

The event time of a row is kept in whole seconds, and as if UTC were the local time of the machine: Feast
writes it that way, and reads it back with the same local time.

A view is written in one transaction: readers see the values of before until it commits, and all of the new
ones from then on.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manta.errors import FeaturesUnavailable
from manta.features.compiled import View
from manta.features.stores import Row
from manta.features.wire import key_encoder, value_encoder
from manta.words import quoted

if TYPE_CHECKING:
    import polars as pl

KEYS_PER_QUERY = 512
KEYS_PER_BATCH = 20_000
MOST_VARIABLES = 30_000  # SQLite takes 32,766 in one statement
BUSY_SECONDS = 30.0


def open_store(store: dict[str, Any]) -> SqliteStore:
    """``store``: the `path` of the file."""
    return SqliteStore(store["path"])


class SqliteStore:
    """The file is opened when first used."""

    def __init__(self, path: str) -> None:
        self.path = path

    def rows(self, views: Sequence[View]) -> SqliteRows:
        return SqliteRows(self.path, [view.table for view in views])

    def write(self, view: View, rows: pl.DataFrame, *, whole: bool = False) -> int:
        """In one transaction: a failure leaves the view as it was."""
        try:
            with writable(self.path) as connection:
                return _write(connection, view, rows, whole=whole and not view.pushed)
        except sqlite3.Error as error:
            raise FeaturesUnavailable(
                f"view {view.name!r} could not be written online: {error}",
                hint="nothing of it has changed; run the materialization again",
            ) from error

    def prepare(self) -> None:
        """Leaves the file in WAL mode, so that no reader ever waits for a writer."""
        with writable(self.path):
            pass

    def close(self) -> None:
        """Nothing is kept open for writing; a thread's connection for reading ends with it."""


class SqliteRows:
    """Reads rows, from any number of threads. The file is opened when first read, and kept open."""

    def __init__(self, path: str, tables: Sequence[str]) -> None:
        self.path = path
        self._tables = tables
        self._keys = min(KEYS_PER_QUERY, MOST_VARIABLES // max(1, 2 * len(tables)))
        self._query = lru_cache(128)(self._compose)
        self._local = threading.local()

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> list[Row]:
        """Of up to 512 keys, all is read at one instant.

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
        if _LOCAL_IS_UTC:
            return found
        return [(*row[:4], 1_000_000 * seconds_utc(row[4] // 1_000_000)) for row in found]

    async def fetch_async(self, keys: Sequence[Sequence[bytes]]) -> list[Row]:
        """In this thread: a file's pages are in memory, and another thread would take longer to wake."""
        return self.fetch(keys)

    def _compose(self, sizes: tuple[int, ...]) -> str:
        """One statement for all tables, each asked for that many keys."""
        return " UNION ALL ".join(
            f"SELECT {place}, entity_key, feature_name, value, event_ts * 1000000 FROM {quoted(table)} "
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


def _write(connection: sqlite3.Connection, view: View, rows: pl.DataFrame, whole: bool) -> int:
    table = quoted(view.table)
    connection.execute("BEGIN IMMEDIATE")
    try:
        create_table(connection, view.table)
        connection.execute("CREATE TEMP TABLE now_there (entity_key BLOB PRIMARY KEY) WITHOUT ROWID")
        for start in range(0, rows.height, KEYS_PER_BATCH):
            batch = rows.slice(start, KEYS_PER_BATCH)
            keys = _keys(view, batch)
            connection.executemany("INSERT INTO now_there VALUES (?)", zip(keys))
            connection.executemany(_UPSERT[whole].format(table=table), _rows(view, batch, keys))
        if whole:
            connection.execute(
                f"DELETE FROM {table} WHERE entity_key NOT IN (SELECT entity_key FROM now_there)"
            )
        _check_counts(connection, view, rows.height, whole)
        connection.execute("DROP TABLE now_there")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return rows.height


_WRITE = (
    "INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
    "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts WHERE "
)
_UPSERT = {
    # What is there already is left, not rewritten.
    True: _WRITE + "value IS NOT excluded.value OR event_ts IS NOT excluded.event_ts "
    "OR created_ts IS NOT excluded.created_ts",
    False: _WRITE + "excluded.event_ts > event_ts OR (excluded.event_ts = event_ts "
    "AND (excluded.created_ts IS NULL OR created_ts IS NULL OR excluded.created_ts >= created_ts))",
}


def _keys(view: View, batch: pl.DataFrame) -> list[bytes]:
    encode = key_encoder([(key.join_key, key.type) for key in view.keys])
    import polars as pl

    if not view.keys:
        return [key for key in [encode(())] * batch.height if key is not None]
    parts = batch.select(pl.col("^__key_.*$"))
    return [key for key in map(encode, parts.iter_rows()) if key is not None]


def _rows(view: View, batch: pl.DataFrame, keys: list[bytes]) -> Iterator[tuple[object, ...]]:
    """Feature by feature, the rows of Feast's layout."""
    from manta.features import asof  # it loads Polars, which readers do without

    event, created = _times(batch[asof.TS]), _times(batch[asof.CREATED])
    for feature in view.features:
        values = batch[feature.name].to_list()
        encoded = map(value_encoder(feature.type), values)
        yield from zip(keys, repeat(feature.name), encoded, _texts(feature.type, values), event, created)


def _times(micros: pl.Series) -> list[int | None]:
    import polars as pl

    instants = micros.cast(pl.Datetime("us", "UTC")).to_list()
    return [None if at is None else seconds_kept(at) for at in instants]


def _texts(kind: str, values: list[object]) -> Iterator[str | None]:
    """What Feast keeps beside a value for its filters: strings, numbers and booleans as text."""
    if kind.startswith("list[") or kind in ("timestamp", "bytes"):
        return repeat(None, len(values))
    return (None if value is None else str(value) for value in values)


def _check_counts(connection: sqlite3.Connection, view: View, keys: int, whole: bool) -> None:
    """Raises:
    FeaturesUnavailable: a feature is there under fewer keys than were written, or under others.
    """
    table = quoted(view.table)
    for feature in view.features:
        query = (
            f"SELECT count(*) FROM {table} WHERE feature_name = ?"
            if whole
            else f"SELECT count(*) FROM now_there JOIN {table} USING (entity_key) WHERE feature_name = ?"
        )
        (there,) = connection.execute(query, (feature.name,)).fetchone()
        if there != keys:
            raise FeaturesUnavailable(
                f"view {view.name!r} has {feature.name!r} under {there} keys online, and should under {keys}",
                hint="nothing of it has changed; run the materialization again",
            )


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
