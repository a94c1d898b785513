"""Executes an ingest: the source as it is now becomes one new version of the dataset.

Read, check and stage in parallel tasks; then keys, the share of refused rows, and one commit.
"""

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

from manta.data.connectors import Rows, connector
from manta.data.contract import REFUSED, check, require_columns
from manta.data.keys import Part, refuse_repeated
from manta.data.lake import Lake, quarantine_of, write_part
from manta.data.parallel import each
from manta.data.values import arrow_schema
from manta.definitions import Ingest
from manta.definitions.base import digest
from manta.errors import ContractBroken, SourceUnreadable
from manta.ledger.context import RunContext

SHOWN_RULES = 5
TASK_MEGABYTES = 4  # at least, where there are many small files


@dataclass
class _Landed:
    """What became of a piece, or of all."""

    parts: list[Part] = field(default_factory=list)
    refused: list[pl.DataFrame] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    height: int = 0


def execute(context: RunContext) -> None:
    """Land the source and commit it, or commit nothing.

    A run that had committed before it was killed reports what it made.

    Raises:
        SourceUnreadable: a file is missing, damaged, or changed while it was read.
        ContractBroken: a column is missing, or too many rows are refused.
        NotFound: no connector reads this kind of source.
    """
    ingest: Ingest = context.definition
    lake = Lake(context.settings.datasets)
    version = lake.committed(ingest.dataset, context.run_key)
    if version is None:
        version = _ingest(context, ingest, lake)
    made = lake.metadata(ingest.dataset, version)
    rows, refused = int(made["rows"]), int(made["refused"])
    context.measured(rows=rows, refused=refused)
    context.produced("dataset", ingest.dataset, version, rows=rows, refused=refused)


def _ingest(context: RunContext, ingest: Ingest, lake: Lake) -> int:
    source, contract = ingest.source, ingest.contract
    token = source.observe(context.settings.root)
    context.read_source(ingest.name, token)
    folder = lake.stage(ingest.dataset, context.run_key)
    try:
        landed = _land(context, ingest, folder)
        if source.observe(context.settings.root) != token:
            raise SourceUnreadable(
                f"the source of {ingest.dataset!r} changed while it was read",
                hint="run the ingest again when whoever writes the files has finished",
            )
        if landed.height:
            require_columns(contract, landed.columns, f"the source of {ingest.dataset!r}")
        if contract.key:
            landed.parts, repeated = refuse_repeated(landed.parts, contract.key, folder)
            landed.refused += repeated
        refused = pl.concat([pl.DataFrame(schema=REFUSED), *landed.refused])
        _tolerate(ingest, landed.height, refused)
    except BaseException:
        lake.discard(folder)
        raise
    metadata = {
        "source": token,
        "schema": digest(contract.model_dump(mode="json")["columns"]),
        "rows": str(landed.height - refused.height),
        "refused": str(refused.height),
    }
    # First what was refused: once the dataset has its version, nothing of the run is left to do. The run may
    # have got this far before, and have found another source then.
    quarantine = quarantine_of(ingest.dataset)
    if refused.height or lake.version(quarantine) is not None:
        held = refused.select(pl.lit(context.run_key).alias("run"), pl.all())
        lake.replace(quarantine, held, run_key=f"{context.run_key}-{token}", metadata={"source": token})
    return lake.commit(
        ingest.dataset,
        [part.path for part in landed.parts if part.rows],
        run_key=context.run_key,
        schema=arrow_schema(contract),
        metadata=metadata,
    )


def _land(context: RunContext, ingest: Ingest, folder: str) -> _Landed:
    """Read, check and stage every piece; rows are numbered through each file."""
    pieces = connector(ingest.source.kind).pieces(ingest.source, context.settings.root)
    total = sum(piece.size for piece in pieces) / 1e6
    work = partial(_land_piece, ingest, folder)
    by_piece: dict[int, _Landed] = {}
    done = 0.0
    context.progress(0, total, "MB")
    for index, landed in each(work, list(enumerate(pieces)), tasks=math.ceil(total / TASK_MEGABYTES) or 1):
        by_piece[index] = landed
        done += pieces[index].size / 1e6
        context.progress(done, total, "MB")
    whole = _Landed()
    before: Counter[str] = Counter()  # rows of the file in its earlier pieces
    for index, piece in enumerate(pieces):
        landed, shift = by_piece[index], before[piece.file]
        whole.parts += [replace(part, first=part.first + shift) for part in landed.parts]
        whole.refused += [rows.with_columns(pl.col("row") + shift) for rows in landed.refused]
        whole.columns |= landed.columns
        whole.height += landed.height
        before[piece.file] += landed.height
    return whole


def _land_piece(ingest: Ingest, folder: str, numbered: tuple[int, Any]) -> _Landed:
    """In a task: what it stages is named so that the order of names is the order of the source's rows."""
    index, piece = numbered
    landed = _Landed()
    batches = connector(ingest.source.kind).read(ingest.source, piece, list(ingest.contract.columns))
    for batch, rows in zip(count(), batches, strict=False):
        good, refused = _check(ingest, piece.file, landed.height, rows)
        path = f"{folder}/{index:06d}-{batch:04d}.parquet"
        if good.height:
            write_part(good, path)
            left_out = (refused["row"] - landed.height - 1).to_numpy()
            landed.parts.append(
                Part(path, piece.file, landed.height + 1, good.height, left_out.astype(np.int64))
            )
        if refused.height:
            landed.refused.append(refused)
        landed.columns.update(rows.columns)
        landed.height += rows.height
    return landed


def _check(ingest: Ingest, file: str, before: int, rows: Rows) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Check a batch; rows are numbered from 1 at the beginning of the piece."""
    if not set(ingest.contract.columns) <= set(rows.values.columns):
        require_columns(ingest.contract, rows.columns, file)
    broken = np.array([row.row for row in rows.broken], dtype=np.int64)
    whole = np.setdiff1d(np.arange(rows.height), broken, assume_unique=True)
    positions = pl.DataFrame({"row": whole + before + 1}).select(pl.lit(file).alias("file"), "row")
    checked = check(rows.values, ingest.contract, positions)
    lost = pl.DataFrame(
        [(file, before + row.row + 1, row.reason, [row.rule], row.text) for row in rows.broken],
        schema=REFUSED,
        orient="row",
    )
    return checked.good, pl.concat([checked.refused, lost]).sort("row")


def _tolerate(ingest: Ingest, total: int, refused: pl.DataFrame) -> None:
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
