"""Which values differ between the as-of join and what is served online, and why. Pure, and by columns.

A missing value, NaN and null are one. Everything else is compared exactly, in the type that is declared: as
`asof.py` and `wire.py` leave them, float32 is rounded once and instants are whole seconds on both sides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import polars as pl

from manta.features import asof
from manta.features.wire import item_type
from manta.ledger.parity import Cause

SECOND = 1_000_000  # microseconds

_PYTHON: dict[str, frozenset[type]] = {
    "string": frozenset({str}),
    "bytes": frozenset({bytes}),
    "bool": frozenset({bool}),
    "int32": frozenset({int}),
    "int64": frozenset({int}),
    "float32": frozenset({float, int}),
    "float64": frozenset({float, int}),
    "timestamp": frozenset({datetime}),
}
_LISTS: frozenset[type] = frozenset({list, tuple})


class Failed:
    """Stands for a value that could not be computed."""

    def __repr__(self) -> str:
        return "failed"


@dataclass(frozen=True)
class Values:
    """A column as a reader gave it. ``odd``: place → the value there, where it is none of the declared type
    (and null in ``column``)."""

    column: pl.Series
    odd: Mapping[int, Any] = field(default_factory=dict)

    @property
    def odd_mask(self) -> pl.Series:
        mask = pl.repeat(False, len(self.column), eager=True)
        return mask.scatter(list(self.odd), True) if self.odd else mask

    def at(self, place: int) -> Any:
        return self.odd[place] if place in self.odd else self.column[place]

    def gather(self, places: list[int]) -> Values:
        odd = {new: self.odd[old] for new, old in enumerate(places) if old in self.odd} if self.odd else {}
        return Values(self.column.gather(places), odd)


def typed(values: Sequence[Any], kind: str) -> Values:
    """Python values as a column of a type of `wire.py`."""
    allowed = _LISTS if item_type(kind) else _PYTHON[kind]
    odd: dict[int, Any] = {}
    if not {type(value) for value in values} <= allowed | {type(None)}:
        odd = {at: v for at, v in enumerate(values) if v is not None and type(v) not in allowed}
    try:
        return Values(_column(values, odd, kind), odd)
    except (TypeError, OverflowError, pl.exceptions.PolarsError):
        # Of the right Python type, and still none of the declared one: an integer too wide, items of a list.
        for at, value in enumerate(values):
            if at not in odd:
                try:
                    _column([value], {}, kind)
                except (TypeError, OverflowError, pl.exceptions.PolarsError):
                    odd[at] = value
        return Values(_column(values, odd, kind), odd)


def _column(values: Sequence[Any], odd: Mapping[int, Any], kind: str) -> pl.Series:
    kept = [None if at in odd else value for at, value in enumerate(values)] if odd else values
    return pl.Series(kept, dtype=asof.dtype(kind), strict=True)


def differ(expected: pl.Series, served: Values) -> pl.Series:
    """Where the two are not the same value."""
    ours, theirs = _without_nan(expected), _without_nan(served.column)
    return ours.ne_missing(theirs) | served.odd_mask


def _without_nan(values: pl.Series) -> pl.Series:
    return values.fill_nan(None) if values.dtype.is_float() else values


def same_in_another_type(expected: pl.Series, served: Values) -> pl.Series:
    """Where the two are one value, but for a type: as text, of less precision, cut to an integer, wrapped
    into 32 bits, with less of a second."""
    theirs = served.column
    same = served.odd_mask
    held = expected.dtype
    there = expected.is_not_null() & theirs.is_not_null()
    if held == pl.Float64:
        same |= there & (expected.cast(pl.Float32).cast(pl.Float64) == theirs)
    if held.is_float():
        whole = pl.DataFrame({"x": expected}).select(
            cut=pl.col("x").sign() * pl.col("x").abs().floor(), near=pl.col("x").round()
        )
        same |= there & ((whole["cut"] == theirs) | (whole["near"] == theirs))
    if held == pl.Int64:
        wrapped = pl.select(((expected + 2**31) & 0xFFFFFFFF) - 2**31).to_series()
        through_float = expected.cast(pl.Float32).cast(pl.Int64, strict=False)
        same |= there & ((wrapped == theirs) | (through_float == theirs))
    if held == pl.Datetime("us", "UTC"):
        same |= there & (expected.dt.truncate("1s") == theirs.dt.truncate("1s"))
    if held == pl.List(pl.Float64):
        single = expected.cast(pl.List(pl.Float32)).cast(pl.List(pl.Float64))
        same |= there & single.eq_missing(theirs)
    return same.fill_null(False)


@dataclass(frozen=True)
class Facts:
    """What is known of some rows of one view, in both places, whatever its age. Columns of one length.

    Attributes:
        lake: the newest row of each key, up to the watermark: the features.
        lake_event: its event time in microseconds; null: the lake has no row of the key.
        late: it came after rows of later times.
        held: what the online store holds under the key.
        held_event: its event time in microseconds; null: nothing is held.
        anothers: what is held is the newest row of another key.
        earlier: by feature, the lake has a row of this key and event time with the value that is held,
            beside the one that counts.
        newest_held: the latest event time that was seen in the view online; null: nothing.
    """

    lake: pl.DataFrame
    lake_event: pl.Series
    late: pl.Series
    held: Mapping[str, Values]
    held_event: pl.Series
    anothers: pl.Series
    earlier: pl.DataFrame
    newest_held: int | None


def causes_of(feature: str, facts: Facts, watermark: int) -> pl.Series:
    """Why the values of a view's feature differ: one :class:`Cause` for each row of ``facts``."""
    lake, held = facts.lake[feature], facts.held[feature]
    table = pl.DataFrame(
        {
            "e_lake": facts.lake_event,
            "e_held": facts.held_event // SECOND * SECOND,
            "late": facts.late,
            "anothers": facts.anothers,
            "earlier": facts.earlier[feature],
            "same": ~differ(lake, held),
            "typed": same_in_another_type(lake, held),
            "odd": held.odd_mask,
        }
    )
    second = pl.col("e_lake") // SECOND * SECOND
    behind = pl.lit(facts.newest_held, dtype=pl.Int64) < second
    cause = (
        pl.when(pl.col("odd"))
        .then(pl.lit(Cause.TYPE))
        .when(pl.col("e_held").is_null() & pl.col("late"))
        .then(pl.lit(Cause.LATE))
        .when(pl.col("e_held").is_null() & behind)
        .then(pl.lit(Cause.STALE))
        .when(pl.col("e_held").is_null() | pl.col("anothers"))
        .then(pl.lit(Cause.JOIN))
        .when(pl.col("e_lake").is_null() & (pl.col("e_held") > watermark))
        .then(pl.lit(Cause.LATE))
        .when(pl.col("e_lake").is_null())
        .then(pl.lit(Cause.STALE))
        .when(pl.col("same"))  # so that only their age can have made the difference
        .then(pl.lit(Cause.TTL))
        .when((pl.col("e_held") < second) & ~pl.col("late"))
        .then(pl.lit(Cause.STALE))
        .when((pl.col("e_held") != second) | pl.col("earlier"))
        .then(pl.lit(Cause.LATE))
        .when(pl.col("typed"))
        .then(pl.lit(Cause.TYPE))
        .otherwise(pl.lit(Cause.TRANSFORM))
    )
    return table.select(cause.alias("cause"))["cause"]


def on_demand_causes(expected: pl.Series, served: Values) -> pl.Series:
    """The same of an on-demand feature all of whose inputs are equal."""
    failed = [place for place, value in served.odd.items() if isinstance(value, Failed)]
    typed = same_in_another_type(expected, served).scatter(failed, False)
    cause = pl.when(typed).then(pl.lit(Cause.TYPE)).otherwise(pl.lit(Cause.TRANSFORM))
    return pl.select(cause.alias("cause")).to_series()


def allowed_by_the_second(
    at: pl.Series, event: pl.Series, ttl_seconds: float, expected: pl.Series, served: Values
) -> pl.Series:
    """Where a value is missing online only because its event time is kept in whole seconds: it ran out less
    than a second early."""
    edge = at - round(ttl_seconds * SECOND)
    kept = event // SECOND * SECOND
    missing = served.column.is_null() & ~served.odd_mask & expected.is_not_null()
    return missing & (kept < edge).fill_null(False) & (event >= edge).fill_null(False)
