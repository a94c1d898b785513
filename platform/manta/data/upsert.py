"""Finds rows of a version by their keys: to leave them out where new ones take their place, or to refuse
the new ones. Files that hold none of the keys are left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import polars as pl

from manta.data.keys import Part
from manta.data.lake import Lake, write_part
from manta.data.parallel import cpus, each
from manta.definitions import digest

FILES_PER_TASK = 16


class Changed(NamedTuple):
    """Files of a version that hold rows to be replaced, and the same without them, staged."""

    removed: list[str]
    rewritten: list[str]


class _Work(NamedTuple):
    """What a task needs to know: ``files`` by their path inside ``table``, the staged rows, their key."""

    table: str
    staged: tuple[str, ...]
    key: tuple[str, ...]
    folder: str


def without(
    lake: Lake, dataset: str, version: int, staged: Sequence[str], key: Sequence[str], folder: str
) -> Changed:
    """Rewrite the files of ``version`` that hold keys of the staged rows, without the rows that have them."""
    removed, rewritten = [], []
    work = _Work(lake.path(dataset), tuple(staged), tuple(key), folder)
    if staged:
        files = _groups(lake.files(dataset, version))
        for _, changed in each(partial(_without, work), files, name=f"upsert {dataset}"):
            removed += changed.removed
            rewritten += changed.rewritten
    return Changed(removed, rewritten)


def held_keys(
    lake: Lake, dataset: str, version: int, parts: Sequence[Part], key: Sequence[str]
) -> pl.DataFrame:
    """The keys of the staged ``parts`` that rows of ``version`` have."""
    staged = tuple(part.path for part in parts if part.rows)
    empty = lake.scan(dataset, version).select(*key).head(0).collect()
    if not staged:
        return empty
    work = _Work(lake.path(dataset), staged, tuple(key), "")
    files = _groups(lake.files(dataset, version))
    found = [keys for _, keys in each(partial(_held, work), files, name=f"keys of {dataset}")]
    keys: pl.DataFrame = pl.concat([empty, *found]).unique()
    return keys


def _groups(files: list[str]) -> list[list[str]]:
    size = max(1, min(FILES_PER_TASK, -(-len(files) // (2 * cpus()))))
    return [files[start : start + size] for start in range(0, len(files), size)]


# --- in a task ----------------------------------------------------------------------------------------


def _without(work: _Work, files: list[str]) -> Changed:
    removed, rewritten = [], []
    keys = _keys(work)
    for file in files:
        path = f"{work.table}/{file}"
        replaced = pl.read_parquet(path, columns=list(work.key), glob=False).join(
            keys, on=work.key, how="semi"
        )
        if replaced.is_empty():
            continue
        rest = pl.read_parquet(path, glob=False).join(keys, on=work.key, how="anti", maintain_order="left")
        removed.append(file)
        if rest.height:
            # Not the file's own name: one from another run's folder may have the same. Nor that with more to
            # it, for what is left of it may be rewritten again and again.
            kept = f"{work.folder}/kept-{digest(file)}.parquet"
            write_part(rest, kept)
            rewritten.append(kept)
    return Changed(removed, rewritten)


def _held(work: _Work, files: list[str]) -> pl.DataFrame:
    keys = _keys(work)
    found = [
        pl.read_parquet(f"{work.table}/{file}", columns=list(work.key), glob=False).join(
            keys, on=work.key, how="semi", nulls_equal=True
        )
        for file in files
    ]
    return pl.concat(found).unique()


def _keys(work: _Work) -> pl.DataFrame:
    keys: pl.DataFrame = pl.scan_parquet(list(work.staged), glob=False).select(work.key).unique().collect()
    return keys
