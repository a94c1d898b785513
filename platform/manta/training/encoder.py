"""Fits the encoding of a training's features, and applies it with Polars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from manta.errors import TrainingInvalid
from manta.models.encoding import Encoding

SEEN_AT_LEAST = 2  # a value seen once teaches nothing but itself: such rows train index 0, "unknown"


@dataclass(frozen=True)
class Arrays:
    """Encoded rows: ``categories`` int64 [n, C]; ``numbers`` float32 [n, N], values then missing flags, as
    :class:`~manta.models.encoding.Encoding` lays them out."""

    categories: np.ndarray
    numbers: np.ndarray

    def take(self, rows: np.ndarray) -> Arrays:
        return Arrays(self.categories[rows], self.numbers[rows])


def fit(rows: pl.DataFrame, categories: Sequence[str] | None = None) -> Encoding:
    """The encoding of the features in ``rows``, which must be the training rows alone.

    Vocabularies are ordered by frequency (ties by value); a value seen fewer than :data:`SEEN_AT_LEAST`
    times is left to index 0. A numeric feature without two different values gets a deviation of 1.

    Args:
        categories: the columns taken as categories; None takes those of type string.

    Raises:
        TrainingInvalid: a category that is not a column, or a column of a type that cannot be encoded.
    """
    if categories is None:
        categories = [name for name, kind in rows.schema.items() if kind == pl.String]
    unknown = [name for name in categories if name not in rows.columns]
    if unknown:
        raise TrainingInvalid(
            f"categories names features that the service does not have: {', '.join(unknown)}",
            hint=f"its features are {', '.join(rows.columns)}",
        )
    vectors = [name for name, kind in rows.schema.items() if _is_vector(kind) and name not in categories]
    numbers = [name for name in rows.columns if name not in categories and name not in vectors]
    if not rows.columns:
        raise TrainingInvalid("the feature service has no features", hint="name some in the FeatureService")
    for name in numbers:
        if not (rows.schema[name].is_numeric() or rows.schema[name] in (pl.Boolean, pl.Null)):
            raise TrainingInvalid(
                f"feature {name} is of type {rows.schema[name]}, which is neither a number, a vector nor a "
                "category",
                hint="compute a number from it in an on-demand view, or leave it out of the FeatureService",
            )
    types = {name: _type(rows[name]) for name in categories}
    return Encoding(
        vocabularies={name: _vocabulary(rows[name]) for name in categories},
        moments={name: _moments(_float32(rows[name])) for name in numbers},
        types=types,
        vectors={name: _vector_moments(rows[name]) for name in vectors},
    )


def encode(encoding: Encoding, rows: pl.DataFrame) -> Arrays:
    """Raises:
    TrainingInvalid: a column is missing, or a vector is of another length.
    """
    missing = [name for name in encoding.inputs if name not in rows.columns]
    if missing:
        raise TrainingInvalid(f"the training set lacks {', '.join(missing)}")
    categories = np.zeros((rows.height, len(encoding.vocabularies)), dtype=np.int64)
    for at, (name, values) in enumerate(encoding.vocabularies.items()):
        categories[:, at] = _indices(_text(rows[name]), values)
    shape = encoding.shape
    numbers = np.zeros((rows.height, shape["numbers"]), dtype=np.float32)
    flags = numbers[:, numbers.shape[1] - len(encoding.moments) - len(encoding.vectors) :]
    for at, (name, (mean, deviation)) in enumerate(encoding.moments.items()):
        numbers[:, at], absent = _standardised(_float32(rows[name]), mean, deviation)
        flags[:, at] = absent
    for at, (name, (means, deviations)) in enumerate(encoding.vectors.items(), start=len(encoding.moments)):
        start, length = shape["vectors"][name]
        elements, absent = _standardised(vectors_of(rows[name], length), means, deviations)
        numbers[:, start : start + length] = elements
        flags[:, at] = absent.sum(axis=1, dtype=np.float32) / np.float32(length)
    return Arrays(categories, numbers)


def vectors_of(column: pl.Series, length: int) -> np.ndarray:
    """A column of lists of numbers as float32 [n, length]; NaN where a list, or an element of it, is null.

    Raises:
        TrainingInvalid: a list is of another length.
    """
    lists = _lists(column)
    there = lists.is_not_null()
    held = lists.filter(there)
    others = held.list.len().filter(held.list.len() != length)
    if len(others):
        raise TrainingInvalid(
            f"feature {column.name} is a vector of {length} numbers, and has {others[0]} in {len(others):,} "
            f"of {len(column):,} rows",
            hint="a vector has one length in all rows: pad it, or cut it, where it is made",
        )
    found = np.full((len(column), length), np.nan, dtype=np.float32)
    if len(held):
        found[there.to_numpy()] = _float32(held.explode()).reshape(-1, length)
    return found


def _standardised(raw: np.ndarray, mean: object, deviation: object) -> tuple[np.ndarray, np.ndarray]:
    """The values, and where they are missing."""
    absent = ~np.isfinite(raw)
    with np.errstate(invalid="ignore"):  # infinite, less than a number
        values = (raw - np.asarray(mean, dtype=np.float32)) / np.asarray(deviation, dtype=np.float32)
    values[absent] = 0
    return values, absent


def _is_vector(kind: pl.DataType) -> bool:
    inner = kind.inner if isinstance(kind, pl.List | pl.Array) else None
    return inner is not None and inner.is_numeric()


def _lists(column: pl.Series) -> pl.Series:
    return column.arr.to_list() if isinstance(column.dtype, pl.Array) else column


def _vector_moments(column: pl.Series) -> tuple[tuple[float, ...], tuple[float, ...]]:
    lengths = _lists(column).drop_nulls().list.len().unique().sort()
    if not len(lengths):
        raise TrainingInvalid(
            f"feature {column.name} is missing in every training row, so that its length is not known",
            hint="leave it out of the FeatureService, or see what its view reads",
        )
    if len(lengths) > 1 or not lengths[0]:
        told = ", ".join(map(str, lengths.head(5)))
        raise TrainingInvalid(
            f"feature {column.name} has {told} numbers in its training rows, and a vector has one length",
            hint="pad it, or cut it, where it is made",
        )
    elements = np.ascontiguousarray(vectors_of(column, lengths[0]).T)
    means, deviations = zip(*map(_moments, elements), strict=True)
    return means, deviations


def _type(column: pl.Series) -> str:
    if column.dtype == pl.String:
        return "string"
    if column.dtype == pl.Boolean:
        return "bool"
    if column.dtype.is_integer():
        return "int64"
    raise TrainingInvalid(
        f"feature {column.name} is of type {column.dtype} and cannot be a category",
        hint="categories are strings, whole numbers or booleans; leave it out of Training(categories=…)",
    )


def _text(column: pl.Series) -> pl.Series:
    return column.cast(pl.String)


def _float32(column: pl.Series) -> np.ndarray:
    # Null becomes NaN; what float32 cannot hold becomes infinite, and so is missing too.
    with np.errstate(over="ignore"):
        return np.array(column.cast(pl.Float64).to_numpy(), dtype=np.float64).astype(np.float32)


def _vocabulary(column: pl.Series) -> tuple[str, ...]:
    values = _text(column).drop_nulls().rename("value")
    counted = values.filter(values != "").value_counts(name="times").filter(pl.col("times") >= SEEN_AT_LEAST)
    return tuple(counted.sort(["times", "value"], descending=[True, False])["value"])


def _indices(column: pl.Series, values: tuple[str, ...]) -> np.ndarray:
    if not values:
        return np.zeros(len(column), dtype=np.int64)
    found = column.replace_strict(
        list(values), list(range(1, len(values) + 1)), default=0, return_dtype=pl.Int64
    )
    return found.fill_null(0).to_numpy()


def _moments(raw: np.ndarray) -> tuple[float, float]:
    # As float32 numbers, for they are applied as such; summed in float64.
    held = raw[np.isfinite(raw)].astype(np.float64)
    if not len(held):
        return 0.0, 1.0
    mean, deviation = np.float32(held.mean()), np.float32(held.std())
    if not np.isfinite(deviation) or deviation <= abs(mean) * np.finfo(np.float32).eps:
        deviation = np.float32(1.0)
    return float(mean), float(deviation)
