"""Executes an ingest: what its source holds, or holds anew, becomes at most one new version of the dataset.

Read, check and stage in parallel tasks; then keys, the share of refused rows, and one commit, which holds the
rows and the cursor from which the next run reads on. So whoever dies, and whenever, rows and cursor agree.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

import polars as pl

from manta.data import bounds, checks, cursors, evolution, keys, profile, upsert
from manta.data.contract import REFUSED
from manta.data.keys import Part
from manta.data.lake import Change, Head, Lake, quarantine_of
from manta.data.landing import Landed, land, tolerate
from manta.data.parallel import Spread, each
from manta.data.sketch import sketch
from manta.data.values import arrow_schema, schema
from manta.definitions import Ingest
from manta.definitions.base import digest
from manta.definitions.sources import Ask, Reading, Table
from manta.errors import Conflict, SourceUnreadable
from manta.ledger.context import RunContext

READ_TRIES = 10


class _Overtaken(Exception):
    """Another run has committed what this one read too, or other rows with keys of its own."""


@dataclass(frozen=True)
class _Rows:
    """What is to be committed."""

    ingest: Ingest
    reading: Reading
    before: Head  # the version at which reading began
    parts: list[Part]
    folder: str
    refused: int
    profile: str


def execute(context: RunContext) -> None:
    """Land what there is to read and commit it, or commit nothing.

    A run that had committed before it was killed reports what it made; one that finds nothing new reports
    the version there is. When another run of the ingest commits first, it reads again from where that ended.

    Raises:
        SourceUnreadable: the source is missing, damaged, cannot be reached, or changed while it was read.
        ContractBroken: a column is missing, too many rows are refused, or a bound of the whole is broken;
            SchemaChanged when the contract is not that of the dataset's versions.
        Conflict: other runs were faster every time.
    """
    ingest: Ingest = context.definition
    checks.require(ingest.contract)
    taken = take(context, ingest, Lake(context.settings.datasets))
    context.measured(rows=taken.rows, refused=taken.refused)
    context.produced("dataset", ingest.dataset, taken.version, rows=taken.rows, refused=taken.refused)


class Taken(NamedTuple):
    """The version with all that there was to read, and the rows that were committed for it: none where
    nothing was new."""

    version: int
    rows: int
    refused: int


def take(context: RunContext, ingest: Ingest, lake: Lake, spread: Spread = each) -> Taken:
    """Land and commit what there is to read, as :func:`execute`, once for a ``context.run_key``; ``spread``
    has the pieces read."""
    version = lake.committed(ingest.dataset, context.run_key)
    for _ in range(READ_TRIES):
        if version is not None:
            break
        try:
            version = _ingest(context, ingest, lake, spread)
        except _Overtaken:
            continue
    else:
        raise Conflict(
            f"dataset {ingest.dataset!r} is being written by others all the time",
            hint="let the other runs of this ingest end, and run it again",
        )
    made = lake.metadata(ingest.dataset, version)
    own = made.get("run_key") == context.run_key
    return Taken(version, *(int(made[name]) if own else 0 for name in ("rows", "refused")))


def _ingest(context: RunContext, ingest: Ingest, lake: Lake, spread: Spread) -> int:
    """The version made, or the newest where nothing is new."""
    before = lake.head(ingest.dataset)
    if before.version is not None:
        evolution.require(ingest, lake.schema(ingest.dataset, before.version))
    if context.run.replay_of is not None and ingest.source.incremental:
        raise SourceUnreadable(
            f"run {context.run.replay_of} read only what was new then, which a source does not keep apart",
            hint=f"what it added is in its version of {ingest.dataset!r}",
        )
    ask = Ask(
        root=context.settings.root,
        columns=tuple(ingest.contract.columns),
        cursor=cursors.read(lake, ingest.dataset, before.metadata, ingest.name),
        each=spread,
        tables={name: _table(context, lake, name) for name in ingest.source.datasets()},
        types={name: column.type for name, column in ingest.contract.columns.items()},
    )
    with ingest.source.opened(ask) as reading:
        if not ask.tables:
            context.read_source(ingest.name, reading.token)
        # A first reading is committed though it has found nothing: the next begins where it ended.
        first = ask.cursor is None and reading.cursor is not None
        if before.version is not None and not reading.pieces and ingest.source.incremental and not first:
            return before.version
        with lake.staged(ingest.dataset, context.run_key) as folder:
            landed = land(context, ingest, reading, ask, folder, spread)
            reading.verify()
            refused = _settle_keys(ingest, lake, before, landed, folder)
            tolerate(ingest, landed.height, refused)
            bounds.require(ingest, lake, before, landed.parts, datetime.now(UTC))
            _quarantine(context, ingest, lake, refused, reading.token)
            parts = [part for part in landed.parts if part.rows]
            sketches = [sketch(pl.DataFrame(schema=schema(ingest.contract)))]
            sketches += [part.sketch for part in parts if part.sketch is not None]
            told = profile.keep(sketches, folder)
            rows = _Rows(ingest, reading, before, parts, folder, refused.height, told)
            return lake.change(
                ingest.dataset,
                lambda head: _change(lake, head, rows),
                run_key=context.run_key,
                schema=arrow_schema(ingest.contract),
            )


def _table(context: RunContext, lake: Lake, name: str) -> Table:
    version = context.read("dataset", name).version
    files = tuple(f"{lake.path(name)}/{file}" for file in lake.files(name, version))
    return Table(version, files, lake.schema(name, version), sum(os.path.getsize(file) for file in files))


def _settle_keys(ingest: Ingest, lake: Lake, before: Head, landed: Landed, folder: str) -> pl.DataFrame:
    """See to it that ``landed`` holds each key once; gives all that is refused, as REFUSED."""
    key = ingest.contract.key
    if key and ingest.mode == "upsert":
        landed.parts = keys.keep_last(landed.parts, key, folder)
    elif key:
        landed.parts, repeated = keys.refuse_repeated(landed.parts, key, folder)
        landed.refused += repeated
        if ingest.mode == "append" and before.version is not None:
            held = upsert.held_keys(lake, ingest.dataset, before.version, landed.parts, key)
            landed.parts, repeated = keys.refuse_held(landed.parts, key, held, before.version, folder)
            landed.refused += repeated
    return landed.quarantined()


def _quarantine(context: RunContext, ingest: Ingest, lake: Lake, refused: pl.DataFrame, token: str) -> None:
    """Keep what was refused, before the dataset has its version: then nothing of the run is left to do.

    The rows of a reading that was never committed may stay in the quarantine: they count when a version of
    the dataset names their run and reading.
    """
    quarantine = quarantine_of(ingest.dataset)
    if not refused.height and (ingest.mode != "replace" or lake.version(quarantine) is None):
        return
    held = refused.select(
        pl.lit(context.run_key).alias("run"), pl.lit(token).alias("reading"), pl.col(list(REFUSED))
    )
    key = f"{context.run_key}-{token}"
    put = lake.replace if ingest.mode == "replace" else lake.append
    put(quarantine, held, run_key=key, metadata={"source": token})


def _change(lake: Lake, head: Head, rows: _Rows) -> Change:
    """What is to be done to the newest version.

    Raises:
        _Overtaken: it is not one that the rows can be added to.
    """
    ingest, held = rows.ingest, dict(head.metadata.get("cursors", {}))
    add: list[str] = [part.path for part in rows.parts]
    remove: list[str] | None = []
    now, then = (cursors.kept(each.metadata, ingest.name) for each in (head, rows.before))
    if ingest.source.incremental and now != then:
        raise _Overtaken
    if ingest.mode == "replace":
        remove, held = None, {}
    elif ingest.mode == "upsert" and head.version is not None:
        changed = upsert.without(lake, ingest.dataset, head.version, add, ingest.contract.key, rows.folder)
        add, remove = [*changed.rewritten, *add], changed.removed
    elif ingest.contract.key and head.version != rows.before.version:
        raise _Overtaken
    if rows.reading.cursor is not None:
        held[ingest.name] = cursors.keep(lake, ingest.dataset, rows.reading.cursor, rows.folder)
    metadata = {
        "ingest": ingest.name,
        "mode": ingest.mode,
        "key": list(ingest.contract.key),
        "cursors": held,
        "source": rows.reading.token,
        "schema": digest(ingest.contract.model_dump(mode="json")["columns"]),
        "rows": sum(part.rows for part in rows.parts),
        "refused": rows.refused,
        "profile": lake.inside(ingest.dataset, rows.profile),
    }
    return Change(add, remove, metadata)
