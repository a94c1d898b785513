"""Fits on labels dealt anew: what they are given, and what they explain by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.tree import DecisionTreeClassifier

from manta.definitions import NoLeakage
from manta.definitions.metrics import Task
from manta.training.encoder import Arrays
from manta.training.refits import explained, most_by_chance, shuffled
from manta.training.trainers import Job, Part
from tests.unit.test_definitions import TRAINING


def rows(count: int, width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The label is told by the first number, mostly."""
    random = np.random.default_rng(seed)
    x = random.normal(0, 1, (count, width)).astype(np.float32)
    return x, (random.random(count) < 1 / (1 + np.exp(-2 * x[:, 0]))).astype(np.float32)


def job(count: int) -> Job:
    x, y = rows(count, 2, 1)
    part = Part(Arrays(np.zeros((count, 0), dtype=np.int64), x), y)
    params = {"epochs": 9, "rate": 1}
    return Job("run-1", Path("/f"), Path("/p"), TRAINING, params, {}, part, part, cast(Any, None))


def test_labels_are_dealt_anew_to_some_of_the_rows() -> None:
    given = job(2_000)
    made = shuffled(given, NoLeakage(rows=500, params={"epochs": 1}), 3)
    assert made.run_key == "run-1-shuffled-3"
    assert made.params == {"epochs": 1, "rate": 1}
    assert len(made.train.labels) == len(made.train.arrays.numbers) == len(made.validation.labels) == 500
    assert made.train.labels.mean() == pytest.approx(given.train.labels.mean(), abs=0.001)
    x = made.train.arrays.numbers[:, 0]
    assert abs(np.corrcoef(x, made.train.labels)[0, 1]) < 4 / np.sqrt(500)
    again = shuffled(given, NoLeakage(rows=500), 3)
    assert np.array_equal(again.train.labels, made.train.labels)
    assert np.array_equal(again.train.arrays.numbers, made.train.arrays.numbers)
    other = shuffled(given, NoLeakage(rows=500), 4)
    assert not np.array_equal(other.train.labels, made.train.labels)
    assert len(shuffled(given, NoLeakage(rows=9_000), 0).train.labels) == 2_000


def test_both_labels_are_dealt_even_where_one_is_rare() -> None:
    given = job(2_000)
    labels = np.zeros(2_000, dtype=np.float32)
    labels[7] = 1
    rare = Part(given.train.arrays, labels)
    made = shuffled(Job(**{**vars(given), "train": rare, "validation": rare}), NoLeakage(rows=100), 0)
    assert made.train.labels.sum() == made.validation.labels.sum() == 1


def test_a_constant_explains_nothing_and_the_truth_everything() -> None:
    y = np.array([0, 0, 0, 1], dtype=np.float32)
    assert explained(y, np.full(4, 0.25)) == pytest.approx(0)
    assert explained(y, np.full(4, 0.9)) < 0
    assert explained(y, y) == 1


@pytest.mark.parametrize("width", [1, 10])
@pytest.mark.parametrize("kind", ["linear", "trees"])
def test_chance_stays_below_the_bound_and_a_leak_does_not(kind: str, width: int) -> None:
    """Many fits to random labels; a model of one strong feature ranks by it whichever way chance has it, so
    its ROC AUC is far from 0.5, and says nothing."""
    make = (
        LogisticRegression
        if kind == "linear"
        else lambda: DecisionTreeClassifier(max_depth=4, min_samples_leaf=25, random_state=1)
    )
    held_x, held_y = rows(4_000, width, 2)
    real = make().fit(*rows(1_000, width, 3)).predict_proba(held_x)[:, 1]
    bound = most_by_chance(explained(held_y, real), 1_000, 4_000)
    assert bound < 0.5 * explained(held_y, real), "or it could tell nothing"
    random = np.random.default_rng(5)
    found = []
    for at in range(60):
        x, y = rows(1_000, width, 100 + at)
        fitted = make().fit(x, random.permutation(y))
        found.append(explained(held_y, fitted.predict_proba(held_x)[:, 1]))
    assert max(found) < bound
    half_leaked = make().fit(x, np.where(random.random(1_000) < 0.5, y, random.permutation(y)))
    assert explained(held_y, half_leaked.predict_proba(held_x)[:, 1]) > bound


# --- other tasks ----------------------------------------------------------------------------------------


def of_task(task: Task, labels: np.ndarray) -> Job:
    given = job(len(labels))
    part = Part(given.train.arrays, labels)
    training = TRAINING.replace(task=task, gates=())
    return Job(**{**vars(given), "training": training, "train": part, "validation": part})


def test_each_class_is_dealt_as_far_as_there_is_room() -> None:
    labels = np.random.default_rng(1).choice(4, 2_000, p=[0.5, 0.3, 0.2 - 2e-3, 2e-3])
    given = of_task("multiclass", labels)
    made = shuffled(given, NoLeakage(rows=500), 0).train.labels
    assert made.dtype == np.int64
    counts = np.bincount(made, minlength=4)
    assert counts.sum() == 500
    assert counts[3] >= 1
    assert counts[:3] / 500 == pytest.approx([0.5, 0.3, 0.2], abs=0.08)
    assert not np.array_equal(made[:4], [0, 1, 2, 3]), "in random order, those of each class too"
    many = of_task("multiclass", np.arange(2_000) % 300)
    assert len(np.unique(shuffled(many, NoLeakage(rows=100), 0).train.labels)) == 100


def test_numbers_are_dealt_as_they_are() -> None:
    given = of_task("regression", np.arange(2_000, dtype=np.float32))
    made = shuffled(given, NoLeakage(rows=2_000), 0).train
    assert sorted(made.labels) == list(range(2_000))
    assert made.labels.dtype == np.float32
    assert abs(np.corrcoef(made.labels, np.arange(2_000))[0, 1]) < 4 / np.sqrt(2_000)


def test_what_is_explained_of_classes_is_that_of_all_of_them() -> None:
    random = np.random.default_rng(2)
    labels, p = random.choice(3, 200), random.dirichlet([1, 1, 1], 200)
    y = np.eye(3)[labels]
    by_hand = 1 - ((p - y) ** 2).sum() / ((y - y.mean(axis=0)) ** 2).sum()
    assert explained(labels, p.astype(np.float32)) == pytest.approx(by_hand, abs=1e-6)
    assert explained(labels, np.tile(y.mean(axis=0), (200, 1))) == pytest.approx(0)
    assert explained(labels, y) == 1


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_chance_stays_below_the_bound_in_other_tasks_and_a_leak_does_not(task: str) -> None:
    def some(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        x = random.normal(0, 1, (count, 5)).astype(np.float32)
        if task == "regression":
            return x, 100 + 20 * x[:, 0] + random.normal(0, 10, count)
        logits = np.stack([2 * x[:, 0], x[:, 1] - 1, np.zeros(count)], axis=1) + random.gumbel(
            0, 1, (count, 3)
        )
        return x, logits.argmax(axis=1)

    def answers(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        if task == "regression":
            return np.asarray(LinearRegression().fit(x, y).predict(held_x))
        return np.asarray(LogisticRegression().fit(x, y).predict_proba(held_x))

    held_x, held_y = some(4_000, 2)
    bound = most_by_chance(explained(held_y, answers(*some(1_000, 3))), 1_000, 4_000)
    assert bound < 0.5 * explained(held_y, answers(*some(1_000, 3))), "or it could tell nothing"
    random = np.random.default_rng(5)
    found = []
    for at in range(60):
        x, y = some(1_000, 100 + at)
        found.append(explained(held_y, answers(x, random.permutation(y))))
    assert max(found) < bound
    half_leaked = np.where(random.random(1_000) < 0.5, y, random.permutation(y))
    assert explained(held_y, answers(x, half_leaked)) > bound
