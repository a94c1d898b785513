"""Examples: the labelled rows of a training, and their split by time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from manta.definitions import Examples, TimeSplit
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid

PARTS = ("train", "validation", "test")
VALIDATION_SHARE = 0.1
MOST_CLASSES = 1000
NAMED = 5  # of what is wrong, in a sentence


@dataclass(frozen=True)
class Labelled:
    """Examples whose label is known, in the dataset's order.

    Attributes:
        rows: all columns but the label.
        labels: float32, 0 or 1; of a multiclass training int64, the index into ``classes``; of a regression
            float32.
        dropped: how many rows had no label.
        classes: of a multiclass training, as text: numbers by value, all others by their letters.
    """

    rows: pl.DataFrame
    labels: np.ndarray
    dropped: int
    classes: tuple[str, ...] = ()


def labelled(dataset: pl.DataFrame, examples: Examples, task: Task = "binary") -> Labelled:
    """Raises:
    TrainingInvalid: a column is missing, the labels are not what the task predicts, or a time is missing.
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
    if task == "binary":
        labels, classes = _binary(label), tuple[str, ...]()
    elif task == "multiclass":
        labels, classes = _classes(label)
    else:
        labels, classes = _numbers(label), ()
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
        labels=labels,
        dropped=dataset.height - known.height,
        classes=classes,
    )


def _binary(label: pl.Series) -> np.ndarray:
    hint = 'derive a boolean column in a feature table, or say Training(task="multiclass" or "regression")'
    if label.dtype != pl.Boolean:
        if not label.dtype.is_numeric():
            raise TrainingInvalid(
                f"label {label.name} is of type {label.dtype}, neither boolean nor 0/1", hint=hint
            )
        _refuse(label, label.is_nan() if label.dtype.is_float() else None, "NaN")
        others = label.filter(~label.is_in([0, 1])).unique().sort()
        if len(others):
            raise TrainingInvalid(
                f"label {label.name} holds {', '.join(map(str, others.head(NAMED)))}: neither 0 nor 1",
                hint=hint,
            )
    return label.cast(pl.Float32).to_numpy()


def _classes(label: pl.Series) -> tuple[np.ndarray, tuple[str, ...]]:
    kind = label.dtype
    if not (kind.is_integer() or kind in (pl.String, pl.Boolean, pl.Categorical, pl.Enum)):
        raise TrainingInvalid(
            f"label {label.name} is of type {kind}, which names no classes",
            hint="classes are strings, whole numbers or booleans: derive such a column in a feature table",
        )
    if not (kind.is_integer() or kind == pl.Boolean):
        label = label.cast(pl.String)
        _refuse(label, label == "", "empty")
    values = label.unique().sort()
    if len(values) > MOST_CLASSES:
        raise TrainingInvalid(
            f"label {label.name} has {len(values):,} different values; {MOST_CLASSES:,} classes are the most",
            hint='is it a number to predict? Training(task="regression"); or derive a coarser column',
        )
    indices = label.replace_strict(values, pl.int_range(len(values), eager=True), return_dtype=pl.Int64)
    return indices.to_numpy(), tuple(values.cast(pl.String))


def _numbers(label: pl.Series) -> np.ndarray:
    if not label.dtype.is_numeric():
        raise TrainingInvalid(
            f"label {label.name} is of type {label.dtype}, which is no number",
            hint='a regression predicts numbers; classes are told apart by Training(task="multiclass")',
        )
    numbers = label.cast(pl.Float64)
    _refuse(label, numbers.is_nan(), "NaN")
    # What float32 cannot hold is infinite, too.
    with np.errstate(over="ignore"):
        found = numbers.to_numpy().astype(np.float32)
    _refuse(label, pl.Series(np.isinf(found)), "infinite")
    return found


def _refuse(label: pl.Series, wrong: pl.Series | None, what: str) -> None:
    count = int(wrong.sum() or 0) if wrong is not None else 0
    if count:
        raise TrainingInvalid(
            f"{count} labels in {label.name} are {what}",
            hint="make them null where the outcome is not known; such rows are left out",
        )


def split(
    time: pl.Series, labels: np.ndarray, at: TimeSplit, classes: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The row numbers of ``train``, ``validation`` and ``test``, ascending; every row is in exactly one, and
    no instant in two: all of train is before all of validation, and that before all of test.

    Args:
        classes: what the labels are indices into, if they are.

    Raises:
        TrainingInvalid: a part is empty, or all its labels are the same; or a later part has a class that
            the training rows do not have.
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
        _check_labels(name, labels[held], labels[parts["train"]], classes, hint)
    return {name: np.flatnonzero(held) for name, held in parts.items()}


def _check_labels(
    part: str, labels: np.ndarray, trained: np.ndarray, classes: Sequence[str], hint: str
) -> None:
    if labels.min() == labels.max():
        same = classes[labels[0]] if classes else f"{labels[0]:g}"
        raise TrainingInvalid(f"all {len(labels)} labels in {part} are {same}", hint=hint)
    unknown = [classes[each] for each in np.setdiff1d(labels, trained)] if classes else []
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        raise TrainingInvalid(
            f"{part} has labels that no training row has: {', '.join(unknown[:NAMED])}{more}",
            hint=f"{hint}; or leave such rows out, in a feature table",
        )


def utc(time: pl.Series) -> pl.Series:
    """Instants as such in UTC; naive ones are."""
    zone = getattr(time.dtype, "time_zone", None)
    return time.dt.convert_time_zone("UTC") if zone else time.dt.replace_time_zone("UTC")


def _instant(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
