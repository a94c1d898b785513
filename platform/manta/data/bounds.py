"""The bounds of a contract for all rows that a run brings: how many, how many nulls, how fresh."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from manta.data.keys import Part
from manta.data.lake import Head, Lake
from manta.definitions import Ingest
from manta.definitions.contracts import Contract
from manta.definitions.types import parse
from manta.errors import ContractBroken


def require(ingest: Ingest, lake: Lake, before: Head, parts: Sequence[Part], now: datetime) -> None:
    """Hold what a run is about to commit to the bounds of the whole.

    Args:
        before: the version there is.
        parts: the good rows, with their sketches.

    Raises:
        ContractBroken: with all that is out of bounds, and by how much.
    """
    rows = sum(part.rows for part in parts)
    wrong = [*_wrong_rows(ingest.contract, rows, before), *_wrong_nulls(ingest.contract, rows, parts)]
    wrong += _stale(ingest, lake, before, parts, now)
    if wrong:
        raise ContractBroken(
            f"{ingest.dataset}: {'; '.join(wrong)}; nothing was committed",
            hint="see what the source gives; or correct the contract",
        )


def _wrong_rows(contract: Contract, rows: int, before: Head) -> Iterator[str]:
    if contract.min_rows is not None and rows < contract.min_rows:
        yield f"{rows:,} good rows are fewer than min_rows={contract.min_rows:,}"
    if contract.max_rows is not None and rows > contract.max_rows:
        yield f"{rows:,} good rows are more than max_rows={contract.max_rows:,}"
    held = before.metadata.get("rows")
    if contract.max_change is not None and held and abs(rows - held) > contract.max_change * held:
        yield (
            f"{rows:,} good rows are {rows / held - 1:+.1%} beside the {held:,} that version "
            f"{before.version} was made with, max_change={contract.max_change:.1%}"
        )


def _wrong_nulls(contract: Contract, rows: int, parts: Sequence[Part]) -> Iterator[str]:
    for name, column in contract.columns.items():
        if column.max_null is None:
            continue
        nulls = sum(part.sketch.columns[name].nulls for part in parts if part.sketch is not None)
        if nulls > column.max_null * rows:
            share = f"{nulls:,} of {rows:,} rows ({nulls / rows:.3%})"
            yield f"{name} is missing in {share}, max_null={column.max_null:.3%}"


def _stale(ingest: Ingest, lake: Lake, before: Head, parts: Sequence[Part], now: datetime) -> Iterator[str]:
    for name, column in ingest.contract.columns.items():
        if column.fresh_within is None:
            continue
        kind = parse(column.type).name
        newest = [
            _moment(part.sketch.columns[name].greatest, kind)
            for part in parts
            if part.sketch is not None and part.sketch.columns[name].greatest is not None
        ]
        if ingest.mode != "replace" and before.version is not None:
            held = (
                lake.scan(ingest.dataset, before.version).select(pl.col(name).max().to_physical()).collect()
            )
            newest += [_moment(value, kind) for value in held.to_series() if value is not None]
        if not newest:
            yield f"{name} has no value that could be fresh"
        elif now - max(newest) > column.fresh_within:
            age = timedelta(seconds=round((now - max(newest)).total_seconds()))
            yield (
                f"the newest {name} is {max(newest):%Y-%m-%d %H:%M:%S} UTC, {age} ago, "
                f"fresh_within={column.fresh_within}"
            )


def _moment(held: int, kind: str) -> datetime:
    """Of a number of days or microseconds, as Arrow keeps them; not before or beyond Python's calendar."""
    beginning = datetime(1970, 1, 1, tzinfo=UTC)
    try:
        return beginning + (timedelta(days=held) if kind == "date" else timedelta(microseconds=held))
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC) if held > 0 else datetime.min.replace(tzinfo=UTC)
