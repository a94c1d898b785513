"""The as-of join of more rows than memory holds: the same answer as `asof.join`, partition by partition.

    spool      the entity rows are written to disk, in blocks
    split      each block, and each slice of a view, is cut into partitions by a hash of the join keys
    match      partition by partition: its entity rows meet its rows of the views; what they get is cut into
               blocks again
    assemble   block by block: the features beside the entity rows, every row once and in its place

Each step is many tasks that share nothing but files. A task holds one block, one slice or one partition, so
memory is a matter of their size (:attr:`Limits.partition_rows`) and not of how many there are. Where Ray is
connected, its workers do the tasks, and the folder of the files must be one that all nodes see; elsewhere
this process does, one after the other, and Polars gives each all cores.

Two things are as large as they are: all rows of one key meet in one partition, and a view without keys is
joined to each block as a whole, its rows between the block's times.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from manta.data.lake import Lake
from manta.features import asof
from manta.features.asof import Side
from manta.features.asof_search import Asked

SPILL = ".spill"  # the folder inside the lake
ROW, WHEN = "__row", "when"
_SPILL = pa.ipc.IpcWriteOptions(compression="lz4")


@dataclass(frozen=True)
class Limits:
    """How much is held in memory.

    Attributes:
        in_process_rows: entity rows and rows of all views together, up to which they are joined at once in
            this process: some 300 bytes a row at the peak, so the default stays below 2 GB.
        partition_rows: entity rows of a block, rows of a slice, and about the rows of one view in a
            partition; a task holds some 500 bytes for each.
        folder: where what does not fit is written: a disk, and with Ray on several nodes one that all see.
            The system's folder for temporary files unless given, which may be memory.
    """

    in_process_rows: int = 5_000_000
    partition_rows: int = 1_000_000
    folder: str | None = None


def limits_of(lake: Lake) -> Limits:
    """What is spilled goes into the lake: it is on a disk of the right size, and all nodes see it."""
    return Limits(folder=str(lake.folder / SPILL))


@dataclass(frozen=True)
class Spool:
    """Entity rows on disk.

    Attributes:
        path: an Arrow file, of one batch for each block.
        rows: of all blocks.
        block: rows of each block but the last.
    """

    path: str
    rows: int
    block: int

    @property
    def blocks(self) -> range:
        return range(math.ceil(self.rows / self.block))

    def read(self, block: int) -> pa.Table:
        return _read([self.path], block)


def spool(batches: Iterator[pa.RecordBatch], schema: pa.Schema, folder: Path, block: int) -> Spool:
    """Write rows down as they come; no more than a block of them is held."""
    path, rows, held, kept = str(folder / "rows.arrow"), 0, 0, list[pa.RecordBatch]()
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, schema, options=_SPILL) as writer:
        for batch in batches:
            while batch.num_rows:
                part = batch.slice(0, block - held)
                batch = batch.slice(part.num_rows)
                kept.append(part)
                rows, held = rows + part.num_rows, held + part.num_rows
                if held == block:
                    writer.write_batch(_one(pa.Table.from_batches(kept)))
                    held, kept = 0, []
        if kept:
            writer.write_batch(_one(pa.Table.from_batches(kept)))
    return Spool(path, rows, block)


@dataclass(frozen=True)
class Joined:
    """What :func:`join` leaves on disk: the entity rows, and for each group of sides what they got."""

    spool: Spool
    time: str
    sides: tuple[Side, ...]
    hide_late: bool
    folder: str
    partitions: int = 1
    bounds: asof.Bounds = (None, None)
    # Sides that are joined by the same keys share the entity rows' partitions.
    groups: tuple[tuple[int, ...], ...] = ()
    slices: tuple[tuple[int, int], ...] = field(default=(), repr=False)

    def assemble(self, block: int) -> tuple[pa.Table, list[pl.DataFrame]]:
        """A block of the entity rows, and the features of each side beside them."""
        rows = self.spool.read(block)
        found: dict[int, pl.DataFrame] = {}
        for number, group in enumerate(self.groups):
            got = pl.DataFrame(_read(self._files("match", number, range(self.partitions)), block)).sort(ROW)
            first = block * self.spool.block
            if not got[ROW].equals(pl.select(_range(first, rows.num_rows)).to_series()):
                raise RuntimeError(f"block {block}: {got.height} answers to {rows.num_rows} rows")
            for side in group:
                prefix = f"{side}:"
                mine = [name for name in got.columns if name.startswith(prefix)]
                found[side] = got.select(pl.col(name).alias(name.removeprefix(prefix)) for name in mine)
        keyless = [number for number, side in enumerate(self.sides) if not side.keys]
        if keyless:
            times = pl.DataFrame(rows.select([self.time]))
            answers = asof.join(times, self.time, [self.sides[n] for n in keyless], hide_late=self.hide_late)
            found |= zip(keyless, answers, strict=True)
        return rows, [found[number] for number in range(len(self.sides))]

    # --- the tasks --------------------------------------------------------------------------------------

    def split_rows(self, block: int) -> asof.Bounds:
        """Cut a block of the entity rows; gives its first and last time."""
        entity = pl.DataFrame(self.spool.read(block).select(self._asked()))
        at = asof.instants(entity, self.time)
        for number, group in enumerate(self.groups):
            keys = asof.entity_keys(entity, self.sides[group[0]])
            row = pl.select(_range(block * self.spool.block, entity.height)).to_series()
            rows = keys.with_columns(row, at.alias(WHEN))
            _write(self._files("rows", number, [block])[0], rows, self._partition(keys), self.partitions)
        return at.min(), at.max()  # type: ignore[return-value]

    def split_slice(self, piece: tuple[int, int]) -> None:
        """Cut a slice of a side: its number, and where in its frame the slice begins."""
        number, start = piece
        side = self.sides[number]
        side = replace(side, frame=side.frame.slice(start, self.spool.block))
        rows = asof.collect(side, asof.typed(side, self.bounds, self.hide_late))
        keys = rows.select(asof.key_names(side))
        _write(self._files(f"view-{number}", start)[0], rows, self._partition(keys), self.partitions)

    def match(self, piece: tuple[int, int]) -> None:
        """Join a partition of a group: the group's number, and the partition's."""
        number, partition = piece
        group = self.groups[number]
        rows = self._files("rows", number, self.spool.blocks)
        left = pl.DataFrame(_read(rows, partition))
        asked = Asked(left.select(asof.key_names(self.sides[group[0]])), left[WHEN])
        got = left.select(ROW)
        for each in group:
            side = self.sides[each]
            starts = [start for view, start in self.slices if view == each]
            files = [self._files(f"view-{each}", start)[0] for start in starts]
            if not files:  # a view without rows: an empty frame of its columns
                held = asof.collect(side, asof.typed(side, self.bounds, self.hide_late))
            else:
                held = pl.DataFrame(_read(files, partition)).rechunk()
            features = asof.taken(asked, side, held, self.hide_late)
            got = got.hstack(features.rename({name: f"{each}:{name}" for name in features.columns}))
        block = got[ROW] // self.spool.block
        _write(self._files("match", number, [partition])[0], got, block, len(self.spool.blocks))

    # --- inside -----------------------------------------------------------------------------------------

    def _asked(self) -> list[str]:
        return list(dict.fromkeys([self.time, *(key for side in self.sides for key in side.keys)]))

    def _partition(self, keys: pl.DataFrame) -> pl.Series:
        """The same number for equal keys, in every task."""
        mixed = pl.lit(0, dtype=pl.UInt64)
        for at, name in enumerate(keys.columns):
            mixed = mixed ^ pl.col(name).hash(seed=at + 1)
        return keys.select(partition=mixed % self.partitions).to_series().cast(pl.Int64)

    def _files(self, kind: str, number: int, pieces: Sequence[int] = (0,)) -> list[str]:
        return [f"{self.folder}/{kind}-{number}-{piece}.arrow" for piece in pieces]


def join(
    rows: Spool, time: str, sides: Sequence[Side], folder: Path, *, hide_late: bool, on_ray: bool
) -> Joined:
    """As :func:`manta.features.asof.join`, all but its last step: see :meth:`Joined.assemble`.

    Raises:
        InvalidInput, DefinitionInvalid: as `asof.join`.
    """
    asof.require_entity(rows.read(0).column_names, time, sides)
    keyed: dict[tuple[tuple[str, str], ...], list[int]] = {}
    heights = {number: height_of(side.frame) for number, side in enumerate(sides) if side.keys}
    for number in heights:
        keyed.setdefault(sides[number].join_columns, []).append(number)
    work = Joined(
        spool=rows,
        time=time,
        sides=tuple(sides),
        hide_late=hide_late,
        folder=str(folder),
        partitions=math.ceil(max([rows.rows, *heights.values()]) / rows.block),
        groups=tuple(map(tuple, keyed.values())),
        slices=tuple((n, start) for n, rows_of in heights.items() for start in range(0, rows_of, rows.block)),
    )
    times = [each for each in do(work.split_rows, rows.blocks, on_ray) if each[0] is not None]
    if times:
        work = replace(work, bounds=(min(t[0] for t in times), max(t[1] for t in times)))  # type: ignore[type-var]
    do(work.split_slice, work.slices, on_ray)
    do(work.match, [(g, p) for g in range(len(work.groups)) for p in range(work.partitions)], on_ray)
    for used in folder.glob("[rv]*-*.arrow"):  # the partitions: what was matched is all that is read from now
        used.unlink()
    return work


def do(function: Callable[[Any], Any], items: Sequence[Any], on_ray: bool) -> list[Any]:
    """What the function gives for each item, in order: by Ray's workers, or one after the other here."""
    if not on_ray:
        return [function(item) for item in items]
    from manta.data import parallel

    return [value for _, value in sorted(parallel.each(function, items, name="asof"), key=lambda got: got[0])]


def ray_connected() -> bool:
    """Whether this process is connected to a Ray cluster. Does not import Ray."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


@contextmanager
def spilled(limits: Limits) -> Iterator[Path]:
    """A new folder for what does not fit in memory, for as long as the context lasts."""
    if limits.folder is not None:
        Path(limits.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="asof-", dir=limits.folder, ignore_cleanup_errors=True) as made:
        yield Path(made)


def height_of(frame: pl.LazyFrame) -> int:
    return int(frame.select(pl.len()).collect().item())


# --- files of buckets ---------------------------------------------------------------------------------------


def _write(path: str, rows: pl.DataFrame, bucket: pl.Series, buckets: int) -> None:
    """An Arrow file of so many batches, each with the rows of one bucket, in their order."""
    order = bucket.alias("bucket").to_frame().with_row_index("row").sort("bucket", maintain_order=True)
    counts = dict(order.group_by("bucket").len().iter_rows())
    rows, at = rows[order["row"]], 0
    empty = _batch(rows.head(0))
    with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, empty.schema, options=_SPILL) as writer:
        for number in range(buckets):
            count = counts.get(number, 0)
            writer.write_batch(_batch(rows.slice(at, count)) if count else empty)
            at += count


def _read(paths: Sequence[str], number: int) -> pa.Table:
    """One bucket of several files, in the order of the files."""
    batches = []
    for path in paths:
        with pa.OSFile(path) as file:
            batches.append(pa.ipc.open_file(file).get_batch(number))
    return pa.Table.from_batches(batches)


def _batch(rows: pl.DataFrame) -> pa.RecordBatch:
    return _one(rows.to_arrow())


def _one(table: pa.Table) -> pa.RecordBatch:
    batches = table.combine_chunks().to_batches()
    return batches[0] if batches else pa.RecordBatch.from_pylist([], schema=table.schema)


def _range(first: int, count: int) -> pl.Expr:
    return pl.int_range(first, first + count, dtype=pl.Int64).alias(ROW)
