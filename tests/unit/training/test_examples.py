"""Examples and their split by time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.definitions import Examples, TimeSplit
from manta.errors import TrainingInvalid
from manta.training.examples import labelled, split

EXAMPLES = Examples(dataset="flights", label="late", time="at")
START = datetime(2013, 1, 1, tzinfo=UTC)


def frame(labels: Any, days: int = 10) -> pl.DataFrame:
    return pl.DataFrame({"at": [START + timedelta(days=day) for day in range(days)], "late": labels})


def test_rows_without_a_label_are_left_out_and_counted() -> None:
    found = labelled(frame([True, None, False] + [True] * 7), EXAMPLES)
    assert found.dropped == 1
    assert found.labels.tolist() == [1, 0] + [1] * 7
    assert found.rows.columns == ["at"]


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        (frame([None] * 10), "no row"),
        (frame([0.0] * 9 + [float("nan")]), "1 labels in late are NaN"),
        (frame([0, 1, 2] + [0] * 7), "holds 2"),
        (frame(["yes"] * 10), "neither boolean nor 0/1"),
        (frame([True] * 10).drop("late"), "no column 'late'"),
        (frame([True] * 10).drop("at"), "no column 'at'"),
        (frame([True] * 10).with_columns(at=pl.lit("2013-01-01")), "not a timestamp"),
        (frame([True] * 10).with_columns(at=pl.lit(None, dtype=pl.Datetime("us", "UTC"))), "have no at"),
    ],
)
def test_examples_that_cannot_be_trained_with(rows: pl.DataFrame, match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        labelled(rows, EXAMPLES)
    assert error.value.hint


def test_bounds_are_the_first_instants_of_their_parts() -> None:
    at = TimeSplit(test_from=datetime(2013, 1, 8), validation_from=datetime(2013, 1, 4))  # naive: UTC
    found = split(frame([0] * 10)["at"], np.array([0, 1] * 5, dtype=np.float32), at)
    assert {name: rows.tolist() for name, rows in found.items()} == {
        "train": [0, 1, 2],
        "validation": [3, 4, 5, 6],
        "test": [7, 8, 9],
    }


@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), min_size=30, max_size=120),
    st.one_of(st.none(), st.integers(1, 29)),
)
def test_parts_are_all_rows_and_share_no_instant(
    rows: list[tuple[int, bool]], validation: int | None
) -> None:
    time = pl.Series("at", [START + timedelta(hours=hour) for hour, _ in rows])
    labels = np.array([label for _, label in rows], dtype=np.float32)
    start = None if validation is None else START + timedelta(hours=validation)
    try:
        parts = split(time, labels, TimeSplit(test_from=START + timedelta(hours=30), validation_from=start))
    except TrainingInvalid:
        return
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(rows)))
    reach = {name: (time[held].min(), time[held].max()) for name, held in parts.items()}
    assert reach["train"][1] < reach["validation"][0]
    assert reach["validation"][1] < reach["test"][0]
    assert all(len(set(labels[held])) == 2 for held in parts.values())


def test_without_a_bound_validation_is_the_last_tenth_before_the_test() -> None:
    time = frame([0] * 100, days=100)["at"]
    parts = split(
        time, np.array([0, 1] * 50, dtype=np.float32), TimeSplit(test_from=START + timedelta(days=80))
    )
    assert [len(parts[name]) for name in ("train", "validation", "test")] == [72, 8, 20]


@pytest.mark.parametrize(
    ("test_from", "labels", "match"),
    [
        (START - timedelta(days=1), [0, 1] * 5, "no example falls into train"),
        (START + timedelta(days=20), [0, 1] * 5, "no example falls into test"),
        (START + timedelta(days=5), [0] * 10, "all 4 labels in train are 0"),
        (START + timedelta(days=5), [0, 1, 0, 1, 0] + [1] * 5, "all 1 labels in validation are 0"),
        (START + timedelta(days=6), [0, 1, 0, 1, 0, 1] + [1] * 4, "all 1 labels in validation are 1"),
    ],
)
def test_a_part_that_is_empty_or_of_one_class_is_refused(
    test_from: datetime, labels: list[int], match: str
) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        split(frame([0] * 10)["at"], np.array(labels, dtype=np.float32), TimeSplit(test_from=test_from))
    assert "2013-01-01" in error.value.hint


# --- other tasks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "indices"),
    [
        (["b", "a", None, "b"] + ["ü"] * 6, ("a", "b", "ü"), [1, 0, 1] + [2] * 6),
        ([10, 9, 10, 2] + [9] * 6, ("2", "9", "10"), [2, 1, 2, 0] + [1] * 6),
        ([True, False] * 5, ("false", "true"), [1, 0] * 5),
        (pl.Series(["x", "w"] * 5, dtype=pl.Categorical), ("w", "x"), [1, 0] * 5),
        (pl.Series(["x", "w"] * 5, dtype=pl.Enum(["x", "w"])), ("w", "x"), [1, 0] * 5),
    ],
)
def test_classes_are_text_in_order(labels: Any, classes: tuple[str, ...], indices: list[int]) -> None:
    found = labelled(frame(labels), EXAMPLES, "multiclass")
    assert found.classes == classes
    assert found.labels.dtype == np.int64
    assert found.labels.tolist() == indices


def test_a_number_is_predicted_as_it_is() -> None:
    found = labelled(frame([1.5, None, -2] + [7] * 7), EXAMPLES, "regression")
    assert (found.labels.dtype, found.classes, found.dropped) == (np.float32, (), 1)
    assert found.labels.tolist() == [1.5, -2] + [7] * 7
    decimal = pl.Series([1, 2] * 5).cast(pl.Decimal(10, 2)) / 4
    assert labelled(frame(decimal), EXAMPLES, "regression").labels.tolist() == [0.25, 0.5] * 5


@pytest.mark.parametrize(
    ("task", "labels", "match"),
    [
        ("multiclass", [0.5] * 10, "Float64, which names no classes"),
        ("multiclass", ["a", ""] * 5, "5 labels in late are empty"),
        ("multiclass", [None] * 10, "no row"),
        ("regression", ["a"] * 10, "which is no number"),
        ("regression", [True] * 10, "which is no number"),
        ("regression", [float("nan"), 1.0] * 5, "5 labels in late are NaN"),
        ("regression", [float("inf"), -1e300] + [1.0] * 8, "2 labels in late are infinite"),
    ],
)
def test_labels_that_are_not_what_is_predicted(task: Any, labels: Any, match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        labelled(frame(labels), EXAMPLES, task)
    assert error.value.hint


def test_a_column_that_is_no_label_has_too_many_classes() -> None:
    with pytest.raises(TrainingInvalid, match="1,001 different values") as error:
        labelled(frame(list(range(1001)), days=1001), EXAMPLES, "multiclass")
    assert "regression" in error.value.hint
    assert len(labelled(frame(list(range(1000)), days=1000), EXAMPLES, "multiclass").classes) == 1000


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, 1, 2, 0, 1, 0, 2, 0, 3, 4], "test has labels that no training row has: d, e"),
        ([0, 1, 0, 1, 0, 2, 1, 0, 1, 0], "validation has labels that no training row has: c"),
        ([2, 2, 2, 2, 1, 0, 2, 1, 0, 2], "all 4 labels in train are c"),
        ([0, 1, 2, 0, 1, 2, 1, 1, 1, 1], "all 3 labels in test are b"),
    ],
)
def test_every_class_is_seen_in_training(labels: list[int], match: str) -> None:
    at = TimeSplit(validation_from=START + timedelta(days=4), test_from=START + timedelta(days=7))
    with pytest.raises(TrainingInvalid, match=match) as error:
        split(frame([0] * 10)["at"], np.array(labels), at, tuple("abcde"))
    assert "2013-01-01" in error.value.hint
    fine = split(frame([0] * 10)["at"], np.array([0, 1, 2, 0, 1, 2, 2, 0, 1, 0]), at, tuple("abc"))
    assert [len(fine[part]) for part in ("train", "validation", "test")] == [4, 3, 3]
