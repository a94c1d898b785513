"""What a dataset's values are like, found on the way in: each batch gives a sketch of bounded size, and
sketches are merged in any order and grouping. :mod:`manta.data.profile` tells of the whole.

Exact: rows, nulls, NaN and infinite values, least, greatest, mean, standard deviation; distinct values while
they are fewer than 2,048; counts of values, quantiles and histograms while they are at most 256. Estimated,
beyond: the count of distinct values from the least 2,048 hashes (standard error 2.2 %; Bar-Yossef et al.,
Counting distinct elements in a data stream, 2002); counts, quantiles and histograms from a uniform sample of
4,096 rows (standard error of a share of the rows: at most 0.8 percentage points).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import polars as pl

from manta.errors import ContractBroken

HASHES = 2048
TALLIED = 256
SAMPLED = 4096
MANY = 50_000  # rows from which on threads are worth their start
TEXT = 200  # characters: longer texts are shown, and compared where they are sampled, by their beginning
ALL_HASHES = 2**64
DRAWN = "\0drawn"


@dataclass(frozen=True)
class Column:
    """Of the values that are not null; of floats, the figures are of the finite ones.

    Times and dates are numbers here, as Arrow keeps them. ``squares`` is the sum of squared distances from
    ``mean``. ``shortest`` and ``longest`` are numbers of elements, of lists. ``hashes`` are the least
    distinct ones, ascending; ``tally`` has the values and how often each came, by hash. Both are None where
    they cannot be had; the tally also once its values are too many.
    """

    type: pl.DataType
    rows: int
    nulls: int = 0
    nan: int = 0
    infinite: int = 0
    least: Any = None
    greatest: Any = None
    mean: float = 0.0
    squares: float = 0.0
    shortest: int | None = None
    longest: int | None = None
    hashes: np.ndarray | None = None
    tally: dict[int, tuple[Any, int]] | None = None

    @property
    def finite(self) -> int:
        return self.rows - self.nulls - self.nan - self.infinite


@dataclass(frozen=True)
class Sketch:
    """What is known of some rows: it can be pickled, and has a bounded size for each column.

    Attributes:
        sample: the rows whose numbers in the column :data:`DRAWN`, exponential random ones, are the least,
            ascending; without the columns that have no order.
        hashing: what this build of Polars makes of known values: hashes of another do not compare.
    """

    rows: int
    columns: dict[str, Column]
    sample: pl.DataFrame
    hashing: int


def sketch(frame: pl.DataFrame) -> Sketch:
    """Of the rows of a batch, of any types. The same rows in the same order give the same sketch."""
    values = {each.name: _plain(each) for each in frame}
    columns = dict(zip(values, _each_column(frame.height, frame.dtypes, values.values()), strict=True))
    positions, draws = _draw(frame.height, columns.values())
    kept = [each[positions] for name, each in values.items() if _compared(frame.schema[name])]
    cut = [each.str.slice(0, TEXT) if each.dtype == pl.String else each for each in kept]
    return Sketch(frame.height, columns, pl.DataFrame([pl.Series(DRAWN, draws), *cut]), _hashing())


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """Of all their rows together; an exact figure does not depend on how they were cut into sketches. A
    column that some of them lack is null there.

    Raises:
        ContractBroken: a column has one type in one of them and another in another.
    """
    parts = list(sketches)
    names = list(dict.fromkeys(name for part in parts for name in part.columns))
    alike = len({part.hashing for part in parts}) <= 1
    columns = {
        name: _merged(
            name, [part.columns.get(name, Column(pl.Null(), part.rows, part.rows)) for part in parts], alike
        )
        for name in names
    }
    sampled = [part.sample for part in parts] or [pl.DataFrame({DRAWN: []}, {DRAWN: pl.Float64})]
    sample = pl.concat(sampled, how="diagonal_relaxed").sort(DRAWN, maintain_order=True).head(SAMPLED)
    return Sketch(sum(part.rows for part in parts), columns, sample, _hashing())


# --- a batch ------------------------------------------------------------------------------------------


def _plain(values: pl.Series) -> pl.Series:
    """As it is compared and hashed: categories as texts, for their codes differ from batch to batch, and
    times as numbers, for not all of them are Python's."""
    if isinstance(values.dtype, (pl.Categorical, pl.Enum)):
        return values.cast(pl.String)
    return values.to_physical() if values.dtype.is_temporal() else values


def _compared(kind: pl.DataType) -> bool:
    """Whether values have an order and a short form: all but nested and binary ones."""
    text = isinstance(kind, (pl.String, pl.Categorical, pl.Enum))
    return text or kind.is_numeric() or kind.is_temporal() or kind == pl.Boolean()


def _each_column(rows: int, types: Iterable[pl.DataType], values: Iterable[pl.Series]) -> list[Column]:
    if rows < MANY:
        return list(map(_column, types, values))
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:  # Polars lets go of Python while it computes
        return list(pool.map(_column, types, values))


def _column(kind: pl.DataType, values: pl.Series) -> Column:
    nulls = values.null_count()
    held = values.drop_nulls() if nulls else values
    hashes, tally = _hashed(held)
    finite, nan, infinite = _finite(held)
    shortest, longest = _lengths(held)
    counted = Column(
        kind,
        len(values),
        nulls,
        nan,
        infinite,
        shortest=shortest,
        longest=longest,
        hashes=hashes,
        tally=tally,
    )
    if finite.is_empty() or not _compared(kind):
        return counted
    least, greatest = _range(finite, tally)
    mean, squares = 0.0, 0.0
    if finite.dtype.is_numeric():
        numbers = finite.cast(pl.Float64) if finite.dtype.is_decimal() else finite
        mean = float(numbers.mean())  # type: ignore[arg-type]
        squares = float(numbers.var(ddof=0)) * len(numbers)  # type: ignore[arg-type]
    return replace(counted, least=least, greatest=greatest, mean=mean, squares=squares)


def _lengths(held: pl.Series) -> tuple[int | None, int | None]:
    if isinstance(held.dtype, pl.Array):
        held = held.arr.to_list()
    if not isinstance(held.dtype, pl.List):
        return None, None
    lengths = held.list.len()
    return lengths.min(), lengths.max()  # type: ignore[return-value]


def _range(values: pl.Series, tally: dict[int, tuple[Any, int]] | None) -> tuple[Any, Any]:
    """The least and the greatest. Of texts that come again and again, their few different ones are compared:
    Polars compares texts ten times as slowly as numbers."""
    if tally and values.dtype == pl.String() and len(values) > TALLIED:
        told = [value for value, _ in tally.values()]
        return min(told), max(told)
    return _cut(values.min()), _cut(values.max())


def _finite(values: pl.Series) -> tuple[pl.Series, int, int]:
    """The finite values, and how many are NaN and infinite."""
    if not values.dtype.is_float():
        return values, 0, 0
    finite = values.is_finite()
    if finite.all():
        return values, 0, 0
    nan = int(values.is_nan().sum())
    kept = values.filter(finite)
    return kept, nan, len(values) - len(kept) - nan


def _hashed(values: pl.Series) -> tuple[np.ndarray | None, dict[int, tuple[Any, int]] | None]:
    """The least distinct hashes of values that are not null, and the tally where there are few."""
    if values.dtype == pl.Object():
        return None, None
    hashes = values.hash(seed=11)
    # Where there are many distinct values, a share of the hashes is enough to find the least.
    share = 4 * HASHES / max(len(hashes), 1)
    while share < 1:
        found = hashes.filter(hashes < int(share * ALL_HASHES)).unique()
        if len(found) >= HASHES:
            return np.sort(found.to_numpy())[:HASHES], None
        # As many more as there must be, for all that is known by now, and some to spare.
        share *= 1.5 * HASHES / max(len(found), 1)
    first = hashes.arg_unique()
    distinct = hashes.gather(first)
    tally = None
    if len(distinct) <= TALLIED and _compared(values.dtype):
        shown = map(_cut, values.gather(first))
        tally = dict(zip(distinct, zip(shown, hashes.unique_counts(), strict=True), strict=True))
    return np.sort(distinct.to_numpy())[:HASHES], tally


def _draw(rows: int, columns: Iterable[Column]) -> tuple[np.ndarray, np.ndarray]:
    """Positions of a uniform sample, and what these rows drew: as if every row had drawn a number, and those
    with the least were kept. What is drawn depends on the content, so that batches draw apart."""
    seed = sum(int(each.hashes[:8].sum()) for each in columns if each.hashes is not None)
    random = np.random.default_rng([rows, seed])
    size = min(rows, SAMPLED)
    # The least of n exponential variables is one of rate n; the next comes after one of rate n - 1 …
    draws = np.cumsum(random.exponential(size=size) / (rows - np.arange(size)))
    return random.choice(rows, size, replace=False), draws


def _cut(value: Any) -> Any:
    return value[:TEXT] if isinstance(value, str) else value


@cache
def _hashing() -> int:
    return int(pl.Series([1, 2]).hash(seed=11)[0] ^ pl.Series(["a"]).hash(seed=11)[0])


# --- merging ------------------------------------------------------------------------------------------


def _merged(name: str, parts: Sequence[Column], alike: bool) -> Column:
    types = {str(part.type): part.type for part in parts if part.type != pl.Null()}
    if len(types) > 1:
        raise ContractBroken(
            f"column {name!r} is {' and '.join(sorted(types))} in different parts of the rows",
            hint="cast it to one type before it is written",
        )
    counted = [part for part in parts if part.type != pl.Null()] or list(parts)
    held = [part for part in parts if part.finite and part.least is not None]
    numbers = sum(part.finite for part in held)
    mean = sum(part.mean * (part.finite / numbers) for part in held)
    return Column(
        type=next(iter(types.values()), pl.Null()),
        rows=sum(part.rows for part in parts),
        nulls=sum(part.nulls for part in parts),
        nan=sum(part.nan for part in parts),
        infinite=sum(part.infinite for part in parts),
        least=min((part.least for part in held), default=None),
        greatest=max((part.greatest for part in held), default=None),
        mean=mean,
        squares=sum(part.squares + part.finite * (part.mean - mean) ** 2 for part in held),
        shortest=min((part.shortest for part in parts if part.shortest is not None), default=None),
        longest=max((part.longest for part in parts if part.longest is not None), default=None),
        hashes=_least([part.hashes for part in counted]) if alike else None,
        tally=_tally([part.tally for part in counted]) if alike else None,
    )


def _least(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    known = [part for part in parts if part is not None]
    return np.unique(np.concatenate(known))[:HASHES] if len(known) == len(parts) else None


def _tally(parts: Sequence[dict[int, tuple[Any, int]] | None]) -> dict[int, tuple[Any, int]] | None:
    values: dict[int, Any] = {}
    counts: Counter[int] = Counter()
    for part in parts:
        if part is None:
            return None
        for number, (value, count) in part.items():
            values[number] = value
            counts[number] += count
        if len(counts) > TALLIED:
            return None
    return {number: (values[number], count) for number, count in counts.items()}
