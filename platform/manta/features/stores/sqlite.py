"""Feast's SQLite layout: one table per view, one row per (entity key, feature).

The event time of a row is kept in whole seconds, and as if UTC were the local time of the machine: Feast
writes it that way, and reads it back with the same local time.

A view is written in one transaction: readers see the values of before until it commits, and all of the new
ones from then on.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manta.errors import FeaturesUnavailable
from manta.features.compiled import View
from manta.features.stores import Held
from manta.features.stores._held import held_of, place_of
from manta.words import quoted

if TYPE_CHECKING:
    import polars as pl

KEYS_PER_QUERY = 512
KEYS_PER_BATCH = 20_000
BUSY_SECONDS = 30.0


def open_store(store: dict[str, Any]) -> SqliteStore:
    """``store``: the `path` of the file."""
    return SqliteStore(store["path"])


class SqliteStore:
    """The file is opened when first used."""

    def __init__(self, path: str) -> None:
        self.path = path

    def rows(self, views: Sequence[View]) -> SqliteRows:
        return SqliteRows(self.path, views)

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

    def __init__(self, path: str, views: Sequence[View]) -> None:
        self.path = path
        self._views = [(quoted(view.table), place_of(view)) for view in views]
        self._query = lru_cache(128)(_query)
        self._local = threading.local()

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        """All is read at one instant.

        Raises:
            FeaturesUnavailable: the store, or a table, is not there.
        """
        try:
            read = self._read(keys)
        except sqlite3.Error as error:
            raise FeaturesUnavailable(
                f"the online store {self.path} cannot be read: {error}",
                hint="materialize the features: `manta run` with the name of their Materialize",
            ) from error
        return [
            held_of(cells, 4, places, _micros) for cells, (_, places) in zip(read, self._views, strict=True)
        ]

    async def fetch_async(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        """In this thread: a file's pages are in memory, and another thread would take longer to wake."""
        return self.fetch(keys)

    def _read(self, keys: Sequence[Sequence[bytes]]) -> list[list[Any]]:
        """The rows of each view, cell by cell."""
        connection, found = self._connection(), []
        if len(keys) > 1 or len(keys[0]) > KEYS_PER_QUERY:
            connection.execute("BEGIN")  # or each statement would see its own instant
        try:
            for (table, _), column in zip(self._views, keys, strict=True):
                cells: list[Any] = []
                for start in range(0, len(column), KEYS_PER_QUERY):
                    some = column[start : start + KEYS_PER_QUERY]
                    # Padded with nulls, which match nothing, to powers of two: few statements to prepare.
                    size = 1 << (len(some) - 1).bit_length()
                    asked = (*some, *(None,) * (size - len(some)))
                    cells.extend(chain.from_iterable(connection.execute(self._query(table, size), asked)))
                found.append(cells)
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")
        return found

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            uri = f"{Path(self.path).absolute().as_uri()}?mode=ro"
            connection = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
            self._local.connection = connection
        return connection


def _query(table: str, keys: int) -> str:
    return (
        f"SELECT entity_key, feature_name, ifnull(value, x''), event_ts FROM {table} "
        f"WHERE entity_key IN ({','.join('?' * keys)})"
    )


def _write(connection: sqlite3.Connection, view: View, rows: pl.DataFrame, whole: bool) -> int:
    from manta.features.stores._columns import in_order, keys_of  # they load Polars: readers do without

    keys, rows = in_order(keys_of(view, rows), rows)
    connection.execute("BEGIN IMMEDIATE")
    try:
        create_table(connection, view.table)
        # Feast makes this index beside the primary key, which begins with the same column and serves as well.
        connection.execute(f"DROP INDEX IF EXISTS {quoted(f'{view.table}_ek')}")
        connection.executemany(_upsert(view, whole), _rows(view, keys, rows))
        if whole:
            _remove_others(connection, view, keys)
        _check_counts(connection, view, keys, whole)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return rows.height


def _upsert(view: View, whole: bool) -> str:
    """One statement for all features of a key: key, event and created time, then a value and a text each, in
    the order of the features' names, which is that of the table."""
    names = sorted(feature.name for feature in view.features)
    values = ", ".join(
        f"(?1, {_literal(name)}, ?{4 + 2 * at}, ?{5 + 2 * at}, ?2, ?3)" for at, name in enumerate(names)
    )
    return (
        f"INSERT INTO {quoted(view.table)} "
        f"(entity_key, feature_name, value, value_text, event_ts, created_ts) VALUES {values} "
        "ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
        "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts "
        f"WHERE {_REPLACED[whole]}"
    )


_REPLACED = {
    # What is there already is left, not rewritten.
    True: "value IS NOT excluded.value OR event_ts IS NOT excluded.event_ts "
    "OR created_ts IS NOT excluded.created_ts",
    False: "excluded.event_ts > event_ts OR (excluded.event_ts = event_ts "
    "AND (excluded.created_ts IS NULL OR created_ts IS NULL OR excluded.created_ts >= created_ts))",
}


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _rows(view: View, keys: list[bytes], rows: pl.DataFrame) -> Iterator[tuple[object, ...]]:
    """What the statement takes, for each key."""
    from manta.features.stores._columns import batches, texts_of, values_of

    features = sorted(view.features, key=lambda feature: feature.name)
    for number, batch in enumerate(batches(rows, KEYS_PER_BATCH)):
        first = number * KEYS_PER_BATCH
        columns: list[Iterable[object]] = [keys[first : first + batch.height]]
        columns += [_seconds(batch["__ts"].to_list()), _seconds(batch["__created"].to_list())]
        for feature in features:
            columns.append(values_of(feature.type, batch[feature.name]))
            columns.append(texts_of(feature.type, batch[feature.name]))
        yield from zip(*columns, strict=False)  # texts may be nothing for ever


def _seconds(micros: list[int | None]) -> list[int | None]:
    """As Feast keeps instants: whole seconds, cut."""
    if _LOCAL_IS_UTC:
        return [None if at is None else int(at / 1_000_000) for at in micros]
    return [None if at is None else seconds_kept(datetime.fromtimestamp(at / 1e6, UTC)) for at in micros]


def _remove_others(connection: sqlite3.Connection, view: View, keys: list[bytes]) -> None:
    there = _counts(connection, view)
    if all(there.get(feature.name) == len(keys) for feature in view.features):
        return  # these are there, and so nothing else is
    _note(connection, keys)
    connection.execute(
        f"DELETE FROM {quoted(view.table)} WHERE entity_key NOT IN (SELECT entity_key FROM now_there)"
    )


def _note(connection: sqlite3.Connection, keys: list[bytes]) -> None:
    """A table of the keys, which goes with the connection."""
    connection.execute(
        "CREATE TEMP TABLE IF NOT EXISTS now_there (entity_key BLOB PRIMARY KEY) WITHOUT ROWID"
    )
    connection.executemany("INSERT OR IGNORE INTO now_there VALUES (?)", zip(keys))


def _counts(connection: sqlite3.Connection, view: View, noted: bool = False) -> dict[str, int]:
    """Feature → how many keys have it; of those that were noted, or of all."""
    source = f"now_there CROSS JOIN {quoted(view.table)} USING (entity_key)" if noted else quoted(view.table)
    return dict(connection.execute(f"SELECT feature_name, count(*) FROM {source} GROUP BY feature_name"))


def _check_counts(connection: sqlite3.Connection, view: View, keys: list[bytes], whole: bool) -> None:
    """Raises:
    FeaturesUnavailable: a feature is there under fewer keys than were written, or under others.
    """
    if not whole:
        _note(connection, keys)
    there = _counts(connection, view, noted=not whole)
    for feature in view.features:
        found = there.get(feature.name, 0)
        if found != len(keys):
            raise FeaturesUnavailable(
                f"view {view.name!r} has {feature.name!r} under {found} keys online, and should under "
                f"{len(keys)}",
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
        connection.execute("PRAGMA cache_size=-65536")  # KiB
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


def _micros(kept: Sequence[int]) -> list[int]:
    if _LOCAL_IS_UTC:
        return [1_000_000 * at for at in kept]
    return [1_000_000 * seconds_utc(at) for at in kept]


def _local_is_utc() -> bool:
    year = 365 * 86400
    return all(seconds_utc(at) == at for at in range(0, 60 * year, year // 4))


_LOCAL_IS_UTC = _local_is_utc()
