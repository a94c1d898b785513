"""Materialization: the newest values of a service's views, from the lake into the online store.

For each view, in one transaction, the store is made to hold what the dataset holds: the newest row of every
key, by the order of the as-of join. Readers see the values of before until the transaction commits, and all
of the new ones from then on. A key that the dataset no longer has is removed, as a training set would not
find it either; so is a value later than the newest, if the row that brought it is gone. Of a view that is
also pushed to, nothing is removed and nothing newer is overwritten.

What the service does not use of a view is not written. Feast's own record of materialized intervals is left
alone: the ledger knows which versions are online.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import repeat

import polars as pl

from manta.data.lake import Lake
from manta.definitions import digest
from manta.errors import FeaturesUnavailable
from manta.features import asof
from manta.features.compiled import Service, View, read_manifest, service_of
from manta.features.historical import side_of
from manta.features.online_sqlite import create_table, seconds_kept, writable
from manta.features.wire import key_encoder, value_encoder
from manta.ledger.context import RunContext
from manta.words import quoted

KEYS_PER_BATCH = 20_000


def execute(context: RunContext) -> None:
    """Materialize the newest version of a feature service from the newest versions of its datasets.

    A failure leaves each view as it was before or as it is to be; running it again completes it.

    Raises:
        NotFound: the service has not been applied, or a dataset has no version.
        FeaturesUnavailable: the store cannot be written, or holds another count than was written.
        DefinitionInvalid: a dataset does not hold what a view declares.
    """
    name = context.definition.features
    applied = context.read("features", name)
    path = applied.detail["manifest"]
    service = service_of(read_manifest(path), name)
    datasets = dict.fromkeys(view.dataset for view in service.views)
    versions = {dataset: int(context.read("dataset", dataset).version) for dataset in datasets}
    context.progress(0, len(service.views), "views")
    rows = materialize(service, context.settings.datasets, versions, told=context.progress)
    version = digest([applied.version, versions])
    context.produced(
        "online", name, version, manifest=path, rows=sum(rows.values()), views=rows, datasets=versions
    )
    context.measured(keys=rows)


def materialize(
    service: Service,
    lake: str,
    versions: Mapping[str, int],
    until: datetime | None = None,
    told: Callable[[float, float, str], None] | None = None,
) -> dict[str, int]:
    """Make the service's views hold what those versions of the datasets hold up to ``until`` (now, unless
    given); gives the number of keys of each view.

    Raises:
        NotFound, FeaturesUnavailable, DefinitionInvalid: as :func:`execute`.
    """
    end = round((until or datetime.now(UTC)).timestamp() * 1e6)
    counts: dict[str, int] = {}
    with writable(service.store["path"]) as connection:
        for view in service.views:
            began = time.monotonic()
            side = side_of(view, Lake(lake).scan(view.dataset, versions[view.dataset]))
            newest = asof.newest(side, end)
            try:
                counts[view.name] = write_view(connection, view, newest)
            except sqlite3.Error as error:
                raise FeaturesUnavailable(
                    f"view {view.name!r} could not be written online: {error}",
                    hint="nothing of it has changed; run the materialization again",
                ) from error
            if told:
                told(len(counts), len(service.views), "views")
            took = time.monotonic() - began
            print(f"manta: {view.name}: {counts[view.name]} keys online in {took:.2f} s", flush=True)
    return counts


def write_view(connection: sqlite3.Connection, view: View, newest: pl.DataFrame) -> int:
    """Write what :func:`manta.features.asof.newest` gave, in one transaction; gives the number of keys."""
    table = quoted(view.table)
    connection.execute("BEGIN IMMEDIATE")
    try:
        create_table(connection, view.table)
        connection.execute("CREATE TEMP TABLE now_there (entity_key BLOB PRIMARY KEY) WITHOUT ROWID")
        for start in range(0, newest.height, KEYS_PER_BATCH):
            batch = newest.slice(start, KEYS_PER_BATCH)
            keys = _keys(view, batch)
            connection.executemany("INSERT INTO now_there VALUES (?)", zip(keys))
            connection.executemany(_UPSERT[view.pushed].format(table=table), _rows(view, batch, keys))
        if not view.pushed:
            connection.execute(
                f"DELETE FROM {table} WHERE entity_key NOT IN (SELECT entity_key FROM now_there)"
            )
        _check_counts(connection, view, newest.height)
        connection.execute("DROP TABLE now_there")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    return newest.height


_WRITE = (
    "INSERT INTO {table} (entity_key, feature_name, value, value_text, event_ts, created_ts) "
    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
    "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts WHERE "
)
_UPSERT = {
    # What is there already is left, not rewritten.
    False: _WRITE + "value IS NOT excluded.value OR event_ts IS NOT excluded.event_ts "
    "OR created_ts IS NOT excluded.created_ts",
    True: _WRITE + "excluded.event_ts >= event_ts",
}


def _keys(view: View, batch: pl.DataFrame) -> list[bytes]:
    encode = key_encoder([(key.join_key, key.type) for key in view.keys])
    if not view.keys:
        return [key for key in [encode(())] * batch.height if key is not None]
    parts = batch.select(pl.col("^__key_.*$"))
    return [key for key in map(encode, parts.iter_rows()) if key is not None]


def _rows(view: View, batch: pl.DataFrame, keys: list[bytes]) -> Iterator[tuple[object, ...]]:
    """Feature by feature, the rows of Feast's layout."""
    event, created = _times(batch[asof.TS]), _times(batch[asof.CREATED])
    for feature in view.features:
        values = batch[feature.name].to_list()
        encoded = map(value_encoder(feature.type), values)
        yield from zip(keys, repeat(feature.name), encoded, _texts(feature.type, values), event, created)


def _times(micros: pl.Series) -> list[int | None]:
    instants = micros.cast(pl.Datetime("us", "UTC")).to_list()
    return [None if at is None else seconds_kept(at) for at in instants]


def _texts(kind: str, values: list[object]) -> Iterator[str | None]:
    """What Feast keeps beside a value for its filters: strings, numbers and booleans as text."""
    if kind.startswith("list[") or kind in ("timestamp", "bytes"):
        return repeat(None, len(values))
    return (None if value is None else str(value) for value in values)


def _check_counts(connection: sqlite3.Connection, view: View, keys: int) -> None:
    """Raises:
    FeaturesUnavailable: a feature is there under fewer keys than were written, or under others.
    """
    table = quoted(view.table)
    for feature in view.features:
        query = (
            f"SELECT count(*) FROM now_there JOIN {table} USING (entity_key) WHERE feature_name = ?"
            if view.pushed
            else f"SELECT count(*) FROM {table} WHERE feature_name = ?"
        )
        (there,) = connection.execute(query, (feature.name,)).fetchone()
        if there != keys:
            raise FeaturesUnavailable(
                f"view {view.name!r} has {feature.name!r} under {there} keys online, and should under {keys}",
                hint="nothing of it has changed; run the materialization again",
            )
