"""Examples: the labelled rows of a training, and their split by time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from manta.definitions import Examples, TimeSplit
from manta.errors import TrainingInvalid

PARTS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Labelled:
    """Examples whose label is known, in the dataset's order.

    Attributes:
        rows: all columns but the label.
        labels: float32, 0 or 1.
        dropped: how many rows had no label.
    """

    rows: pl.DataFrame
    labels: np.ndarray
    dropped: int


def labelled(dataset: pl.DataFrame, examples: Examples) -> Labelled:
    """Raises:
    TrainingInvalid: a column is missing, the label is not boolean or 0/1, or a time is missing.
    """
    for name in (examples.label, examples.time):
        if name not in dataset.columns:
            raise TrainingInvalid(
                f"dataset {examples.dataset} has no column {name!r}",
                hint=f"Examples(label=…, time=…) name columns among {', '.join(dataset.columns)}",
            )
    known = dataset.filter(pl.col(examples.label).is_not_null())
    label, time = known[examples.label], known[examples.time]
    if not known.height:
        raise TrainingInvalid(
            f"no row of dataset {examples.dataset} has a label in {examples.label!r}",
            hint="look at its quarantine, and at the ingest's contract",
        )
    _check_label(label)
    if not isinstance(time.dtype, pl.Datetime):
        raise TrainingInvalid(
            f"{examples.time} is of type {time.dtype}, not a timestamp",
            hint='give it Column("timestamp") in the contract',
        )
    if time.null_count():
        raise TrainingInvalid(
            f"{time.null_count()} labelled rows have no {examples.time}",
            hint="refuse them in the contract: the column must not be nullable",
        )
    return Labelled(
        rows=known.drop(examples.label),
        labels=label.cast(pl.Float32).to_numpy(),
        dropped=dataset.height - known.height,
    )


def _check_label(label: pl.Series) -> None:
    if label.dtype == pl.Boolean:
        return
    if not label.dtype.is_numeric():
        raise TrainingInvalid(
            f"label {label.name} is of type {label.dtype}, neither boolean nor 0/1",
            hint="derive a boolean column in a feature table",
        )
    if label.dtype.is_float() and label.is_nan().any():
        raise TrainingInvalid(
            f"{label.is_nan().sum()} labels in {label.name} are NaN",
            hint="make them null where the outcome is not known; such rows are left out",
        )
    others = label.filter(~label.is_in([0, 1])).unique().sort()
    if len(others):
        raise TrainingInvalid(
            f"label {label.name} holds {', '.join(map(str, others.head(5)))}: neither 0 nor 1",
            hint="derive a boolean column in a feature table",
        )


def split(time: pl.Series, labels: np.ndarray, at: TimeSplit) -> dict[str, np.ndarray]:
    """The row numbers of ``train``, ``validation`` and ``test``, ascending; every row is in exactly one, and
    no instant in two: all of train is before all of validation, and that before all of test.

    Raises:
        TrainingInvalid: a part is empty, or all its labels are the same.
    """
    instant = utc(time)
    test_from = _instant(at.test_from)
    before = instant.filter(instant < test_from)
    if at.validation_from is not None:
        validation_from: datetime | None = _instant(at.validation_from)
    else:
        validation_from = before.sort()[int(len(before) * (1 - VALIDATION_SHARE))] if len(before) else None
    later = (instant >= test_from).to_numpy()
    middle = ~later & (instant >= validation_from).to_numpy() if validation_from is not None else ~later
    parts = {"train": ~later & ~middle, "validation": middle, "test": later}
    reach = f"the labelled examples reach from {instant.min()!s} to {instant.max()!s}"
    hint = f"{reach}; test_from is {at.test_from}, validation_from {at.validation_from}: choose other bounds"
    for name, held in parts.items():
        if not held.any():
            raise TrainingInvalid(f"no example falls into {name}", hint=hint)
    for name, held in parts.items():
        if labels[held].min() == labels[held].max():
            first = f"{labels[held][0]:g}"
            raise TrainingInvalid(f"all {held.sum()} labels in {name} are {first}", hint=hint)
    return {name: np.flatnonzero(held) for name, held in parts.items()}


def utc(time: pl.Series) -> pl.Series:
    """Instants as such in UTC; naive ones are."""
    zone = getattr(time.dtype, "time_zone", None)
    return time.dt.convert_time_zone("UTC") if zone else time.dt.replace_time_zone("UTC")


def _instant(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
