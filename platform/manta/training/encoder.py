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
    """Encoded rows: ``categories`` int64 [n, C]; ``numbers`` float32 [n, 2·D], values then missing flags."""

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
    numbers = [name for name in rows.columns if name not in categories]
    if not rows.columns:
        raise TrainingInvalid("the feature service has no features", hint="name some in the FeatureService")
    for name in numbers:
        if not (rows.schema[name].is_numeric() or rows.schema[name] in (pl.Boolean, pl.Null)):
            raise TrainingInvalid(
                f"feature {name} is of type {rows.schema[name]}, which is neither a number nor a category",
                hint="compute a number from it in an on-demand view, or leave it out of the FeatureService",
            )
    return Encoding(
        vocabularies={name: _vocabulary(rows[name]) for name in categories},
        moments={name: _moments(_float32(rows[name])) for name in numbers},
        types={name: _type(rows[name]) for name in categories},
    )


def encode(encoding: Encoding, rows: pl.DataFrame) -> Arrays:
    """Raises:
    TrainingInvalid: a column is missing.
    """
    missing = [name for name in encoding.inputs if name not in rows.columns]
    if missing:
        raise TrainingInvalid(f"the training set lacks {', '.join(missing)}")
    categories = np.zeros((rows.height, len(encoding.vocabularies)), dtype=np.int64)
    for at, (name, values) in enumerate(encoding.vocabularies.items()):
        categories[:, at] = _indices(_text(rows[name]), values)
    width = len(encoding.moments)
    numbers = np.zeros((rows.height, 2 * width), dtype=np.float32)
    for at, (name, (mean, deviation)) in enumerate(encoding.moments.items()):
        raw = _float32(rows[name])
        absent = ~np.isfinite(raw)
        raw[absent] = mean
        numbers[:, at] = (raw - np.float32(mean)) / np.float32(deviation)
        numbers[absent, at] = 0
        numbers[:, width + at] = absent
    return Arrays(categories, numbers)


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
