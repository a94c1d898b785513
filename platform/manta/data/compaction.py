"""Puts the rows of a dataset into fewer files.

Delta Lake's own `optimize.compact` reads files side by side and mixes their rows, whatever it says of their
order; here each run of small files becomes one whose name sorts where theirs did, which is the order in which
the lake reads.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from pydantic import BaseModel, ConfigDict

from manta.data.lake import Change, Head, Lake

TARGET_BYTES = 128 * 2**20


class Compacted(BaseModel):
    """What a compaction did; ``version`` is the one before where there was nothing to do.

    Attributes:
        before, after: how many files the dataset had and has.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    before: int
    after: int


class _Merged(NamedTuple):
    """Neighbouring files of a version, and a new one for their rows in their order."""

    files: tuple[str, ...]
    made: str


class _Nothing(Exception):
    """There is nothing to do."""


def compact(lake: Lake, name: str, target_bytes: int = TARGET_BYTES) -> Compacted:
    """See :meth:`manta.data.reading.Datasets.compact`. What others commit meanwhile stays: only files that
    are still there are merged.

    Raises:
        Conflict: others were writing all the time.
    """
    before = lake.version(name)
    assert before is not None
    held = lake.files(name, before)
    key = f"compact-{secrets.token_hex(8)}"
    merged: list[_Merged] = []
    schema = lake.schema(name, before)

    def change(head: Head) -> Change:
        there = set(lake.files(name, head.version))
        valid = [each for each in merged if there.issuperset(each.files)]
        if not valid or lake.schema(name, head.version) != schema:
            raise _Nothing
        removed = [file for each in valid for file in each.files]
        return Change([each.made for each in valid], removed, {**head.metadata, "mode": "compact"})

    try:
        for files in _neighbours(lake, name, before, target_bytes):
            merged.append(_Merged(files, _place(lake, name, files[0], key)))
            _write(lake, name, merged[-1], schema)
        version = lake.change(name, change, run_key=key, schema=schema)
    except _Nothing:
        version = before
    except BaseException:
        if lake.committed(name, key) is None:  # it may have been interrupted just after its commit
            _discard(merged)
        raise
    after = lake.files(name, version)
    _discard([each for each in merged if lake.inside(name, each.made) not in after])
    return Compacted(name=name, version=version, before=len(held), after=len(after))


def _neighbours(lake: Lake, name: str, version: int, target: int) -> Iterator[tuple[str, ...]]:
    """Runs of two or more small files that follow one another and are together no larger than ``target``. A
    file of half of it is not small: or else every compaction would write the large ones anew."""
    actions = pa.table(DeltaTable(lake.path(name), version=version).get_add_actions())
    sizes = dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))
    run: list[str] = []
    together = 0
    for file in lake.files(name, version):
        large = sizes[file] >= target / 2
        if large or together + sizes[file] > target:
            yield from [tuple(run)] if len(run) > 1 else []
            run, together = [], 0
        if not large:
            run.append(file)
            together += sizes[file]
    yield from [tuple(run)] if len(run) > 1 else []


def _place(lake: Lake, name: str, first: str, key: str) -> str:
    """A new file that sorts after the ``first`` of those that it stands for, and before what follows them."""
    path = Path(lake.path(name), first)
    return str(path.with_name(f"{path.stem.partition('.compact-')[0]}.{key}.parquet"))


def _write(lake: Lake, name: str, merged: _Merged, schema: pa.Schema) -> None:
    rows = pl.scan_parquet(
        [Path(lake.path(name), file) for file in merged.files],
        glob=False,
        hive_partitioning=False,
        schema=pl.DataFrame(schema.empty_table()).schema,
        missing_columns="insert",
    )
    rows.sink_parquet(merged.made, compression="zstd", compression_level=1, maintain_order=True)


def _discard(merged: Sequence[_Merged]) -> None:
    for each in merged:
        Path(each.made).unlink(missing_ok=True)
