"""Lands what a source gives: each piece is read, checked and staged in a parallel task."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import polars as pl

from manta.data.contract import REFUSED, check, require_columns
from manta.data.keys import Part, hashes
from manta.data.lake import write_part
from manta.data.parallel import Spread, each
from manta.data.sketch import sketch
from manta.definitions import Ingest
from manta.definitions.sources import Ask, Reading, Rows
from manta.errors import ContractBroken
from manta.ledger.context import RunContext

SHOWN_RULES = 5
TASK_MEGABYTES = 4  # at least, where there are many small files


@dataclass
class Landed:
    """What became of a piece, or of all.

    Attributes:
        parts: the good rows, staged, in the order of the source.
        refused: the others, as REFUSED.
        columns: those that the source has.
        height: how many rows there were.
        numbered: whether the source numbers them itself, so that their numbers are final.
    """

    parts: list[Part] = field(default_factory=list)
    refused: list[pl.DataFrame] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    height: int = 0
    numbered: bool = False

    def quarantined(self) -> pl.DataFrame:
        return pl.concat([pl.DataFrame(schema=REFUSED), *self.refused])


def land(
    context: RunContext, ingest: Ingest, reading: Reading, ask: Ask, folder: str, spread: Spread = each
) -> Landed:
    """Read, check and stage every piece into ``folder``, by ``spread``; rows are numbered through each
    file."""
    pieces = reading.pieces
    total = sum(piece.size for piece in pieces) / 1e6
    work = partial(_land_piece, ingest, replace(ask, each=Ask.each), folder)
    by_piece: dict[int, Landed] = {}
    done = 0.0
    context.progress(0, total, "MB")
    tasks = math.ceil(total / TASK_MEGABYTES) or 1
    for index, landed in spread(work, list(enumerate(pieces)), tasks=tasks, name=f"land {ingest.dataset}"):
        by_piece[index] = landed
        done += pieces[index].size / 1e6
        context.progress(done, total, "MB")
    whole = Landed()
    before: Counter[str] = Counter()  # rows of the file in its earlier pieces
    for index, piece in enumerate(pieces):
        landed = by_piece[index]
        shift = 0 if landed.numbered else before[piece.file]
        whole.parts += [part.shifted(shift) for part in landed.parts]
        whole.refused += [rows.with_columns(pl.col("row") + shift) for rows in landed.refused]
        whole.columns |= landed.columns
        whole.height += landed.height
        before[piece.file] += landed.height
    if whole.height:
        require_columns(ingest.contract, whole.columns, f"the source of {ingest.dataset!r}")
    return whole


def tolerate(ingest: Ingest, total: int, refused: pl.DataFrame) -> None:
    """Raises:
    ContractBroken: a larger share of the rows is refused than the contract allows.
    """
    if refused.height <= ingest.contract.max_refused * total:
        return
    raise ContractBroken(
        f"{ingest.dataset}: {refused.height:,} of {total:,} rows ({refused.height / total:.3%}) are refused, "
        f"the contract allows {ingest.contract.max_refused:.3%}; nothing was committed. "
        + "; ".join(_top_rules(refused)),
        hint="correct the source, or the contract (`nullable`, bounds, `max_refused`)",
    )


def _top_rules(refused: pl.DataFrame) -> Iterator[str]:
    """The rules that most rows broke, with how many and the first of them."""
    tally = (
        refused.explode("rules")
        .group_by("rules", maintain_order=True)
        .agg(pl.len(), pl.col("file", "row", "reason").first())
        .sort("len", descending=True, maintain_order=True)
    )
    for rule, rows, file, row, reason in tally.head(SHOWN_RULES).iter_rows():
        yield f"{rows:,} × {rule} ({file} row {row}: {reason})"
    if tally.height > SHOWN_RULES:
        yield f"and {tally.height - SHOWN_RULES} more rules"


# --- in a task ----------------------------------------------------------------------------------------


def _land_piece(ingest: Ingest, ask: Ask, folder: str, numbered: tuple[int, Any]) -> Landed:
    """What it stages is named so that the order of names is the order of the source's rows."""
    index, piece = numbered
    landed = Landed()
    for batch, rows in zip(count(), ingest.source.read(piece, ask), strict=False):
        numbers = _numbers(rows, landed.height)
        good, refused = _check(ingest, piece.file, rows, numbers)
        if good.height:
            path = f"{folder}/{index:06d}-{batch:04d}.parquet"
            write_part(good, path)
            part = _part(path, piece.file, good.height, numbers, refused, rows.numbers is None)
            keys = hashes(good, ingest.contract.key) if ingest.contract.key else None
            landed.parts.append(replace(part, sketch=sketch(good), hashes=keys))
        if refused.height:
            landed.refused.append(refused)
        landed.columns.update(rows.columns)
        landed.height += rows.height
        landed.numbered = rows.numbers is not None
    return landed


def _numbers(rows: Rows, before: int) -> np.ndarray:
    """The number of each row in its file: the source's own, or counted from 1 where the piece begins."""
    if rows.numbers is not None:
        return np.asarray(rows.numbers, dtype=np.int64)
    return np.arange(before + 1, before + rows.height + 1, dtype=np.int64)


def _part(
    path: str, file: str, height: int, numbers: np.ndarray, refused: pl.DataFrame, counted: bool
) -> Part:
    if not counted:
        kept = np.setdiff1d(numbers, refused["row"].to_numpy(), assume_unique=True)
        return Part(path, file, height, numbers=kept)
    left_out = refused["row"].to_numpy() - numbers[0]
    return Part(path, file, height, first=int(numbers[0]), left_out=left_out.astype(np.int64))


def _check(ingest: Ingest, file: str, rows: Rows, numbers: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame]:
    if not set(ingest.contract.columns) <= set(rows.values.columns):
        require_columns(ingest.contract, rows.columns, file)
    broken = np.array([row.row for row in rows.broken], dtype=np.int64)
    whole = np.delete(numbers, broken)
    positions = pl.DataFrame({"row": whole}).select(pl.lit(file).alias("file"), "row")
    checked = check(rows.values, ingest.contract, positions)
    if checked.refused.height and rows.texts is not None:
        bad = positions["row"].is_in(checked.refused["row"].implode())
        told = check(rows.texts().filter(bad), ingest.contract, positions.filter(bad))
        assert told.good.is_empty(), "a typed value was refused whose text is good"
        checked = checked._replace(refused=told.refused)
    lost = pl.DataFrame(
        [(file, int(numbers[row.row]), row.reason, [row.rule], row.text) for row in rows.broken],
        schema=REFUSED,
        orient="row",
    )
    return checked.good, pl.concat([checked.refused, lost]).sort("row")
