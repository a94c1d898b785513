"""The held-out rows, and the slices of them that a gate asks about."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.training.examples import utc

TIMES = {"day": "%Y-%m-%d", "week": "%G-W%V", "month": "%Y-%m"}
MISSING = "missing"
MOST = 1000


@dataclass(frozen=True)
class Held:
    """The held-out rows.

    Attributes:
        features: what the model takes, as it is.
        examples: the other columns of the same rows. time: the one with their instants.
        labels: as of :class:`manta.training.evaluate`. task: what they are of.
        classes: that they are indices into, of a multiclass training.
    """

    features: pl.DataFrame
    examples: pl.DataFrame
    time: str
    labels: np.ndarray
    task: Task = "binary"
    classes: tuple[str, ...] = ()

    def named(self, label: float) -> str:
        """A label, as it is in the dataset."""
        return self.classes[int(label)] if self.classes else f"{label:g}"


@dataclass(frozen=True)
class Slices:
    """``at[i]`` is the index into ``names`` of the slice that row i is in; ``rows`` is how many each has."""

    names: list[str]
    rows: np.ndarray
    at: np.ndarray


def slices(held: Held, by: str) -> Slices:
    """Those of a feature, of a column of the examples, or of a unit of time in :data:`TIMES`: the first of
    these that is called ``by``. Times are in order, all others by falling number of rows; a null is a slice
    of its own.

    Raises:
        TrainingInvalid: there is none, its type makes no slices, or it makes more than :data:`MOST`.
    """
    column = _column(held, by)
    # An empty text is what the model takes for missing, too.
    texts = column.cast(pl.String).replace("", None).fill_null(MISSING)
    in_order = column.dtype == pl.Date or by in TIMES
    counted = texts.rename("slice").value_counts(name="rows")
    counted = counted.sort("slice") if in_order else counted.sort(["rows", "slice"], descending=[True, False])
    if counted.height > MOST:
        raise TrainingInvalid(
            f"{by} would make {counted.height:,} slices of the held-out rows; {MOST:,} are the most",
            hint="slice by something with fewer values, or derive a coarser column in a feature table",
        )
    names = counted["slice"].to_list()
    at = texts.replace_strict(names, list(range(len(names))), return_dtype=pl.Int64)
    return Slices(names, counted["rows"].to_numpy(), at.to_numpy())


def _column(held: Held, by: str) -> pl.Series:
    for frame in (held.features, held.examples):
        if by in frame.columns:
            column = frame[by]
            kind = column.dtype
            if kind.is_integer() or kind in (pl.String, pl.Boolean, pl.Date, pl.Categorical, pl.Enum):
                return column
            raise TrainingInvalid(
                f"{by} is of type {kind}, which makes no slices",
                hint="slice by strings, whole numbers, booleans or dates, or by "
                f"{', '.join(TIMES)} of the examples' time",
            )
    if by in TIMES:
        return utc(held.examples[held.time]).dt.strftime(TIMES[by])
    raise TrainingInvalid(
        f"a gate asks by {by!r}, which is neither a feature nor a column of the examples",
        hint=f"one of {', '.join(dict.fromkeys([*held.features.columns, *held.examples.columns, *TIMES]))}",
    )
