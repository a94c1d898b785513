"""Trainers of several classes and of numbers: what they make, the same as ONNX, resumed and refused. In this
process: what Ray adds is the same whatever is predicted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manta.definitions import Function
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.training import tasks
from manta.training.evaluate import measure
from manta.training.trainers import Job, Model, _task, trainer
from tests.integration.training.conftest import Bench
from tests.integration.training.test_task_trainers import answered, job, strange, training

CLASSIFIERS = ("logistic", "pipeline", "network", "histogram", "forest", "extra", "tree")
REGRESSORS = ("ridge", "pipeline of numbers", "histogram of numbers", "forest of numbers", "extra of numbers")
ALL: list[tuple[Task, str, dict[str, Any]]] = [
    *(
        (task, kind, {"rounds": 30})
        for task in ("multiclass", "regression")
        for kind in ("xgboost", "lightgbm")
    ),
    *(("multiclass", "sklearn", {"which": name}) for name in CLASSIFIERS),
    *(("regression", "sklearn", {"which": name}) for name in (*REGRESSORS, "tree of numbers")),
    *((task, "function", {}) for task in ("multiclass", "regression")),
]


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # which a trainer's task sets for itself


def asked(bench: Bench, task: Task, kind: str, **params: Any) -> Job:
    if kind == "function":
        return job(
            bench, kind, training("sklearn", fn="estimators:several", trainer=Function(), task=task), **params
        )
    return job(bench, kind, training(kind, task=task), **params)


def fitted(of: Job) -> Model:
    """By the trainer's own code, without a task of Ray's around it."""
    how: Any = trainer(of.training.trainer.kind)
    how.check(of)
    name = how.GRAPH if hasattr(how, "GRAPH") else how.MODEL
    if not (of.folder / of.run_key / name).exists():
        _task.execute(how.train, name, _task.begun(of))
    model: Model = how.fit(of)  # finds what is there
    return model


@pytest.mark.parametrize(("task", "kind", "params"), ALL, ids=str)
def test_the_graph_answers_what_the_framework_answers(
    bench: Bench, task: Task, kind: str, params: dict[str, Any]
) -> None:
    of = asked(bench, task, kind, **params)
    model, arrays = fitted(of), strange(of)
    theirs = model.probabilities(arrays)
    assert theirs.dtype == np.float32
    assert theirs.shape == tasks.answers_shape(len(arrays.numbers), of.shape["outputs"])
    apart = np.abs(answered(model, arrays, task) - theirs) / tasks.unit(task, of.train.labels)
    assert apart.max() < 2e-5
    linear = kind == "function" or any(name in str(params) for name in ("logistic", "pipeline", "ridge"))
    known = model.probabilities(of.validation.arrays)
    if task == "multiclass":
        assert known.sum(axis=1) == pytest.approx(np.ones(1_000), abs=1e-5)
        assert measure("accuracy", of.validation.labels, known) > (0.3 if linear else 0.42)
    else:
        assert measure("r2", of.validation.labels, known) > (0.4 if linear else 0.7)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
@pytest.mark.parametrize("kind", ["xgboost", "lightgbm"])
def test_it_goes_on_from_its_checkpoint_round_by_round(bench: Bench, kind: str, task: Task) -> None:
    """Rounds are not trees: of several classes a round has a tree for each."""
    first = asked(bench, task, kind, rounds=50)
    fitted(first)
    how: Any = trainer(kind)
    (first.folder / first.run_key / how.MODEL).unlink()
    again = fitted(replace(first, params={"rounds": 80}))
    assert [each["round"] for each in again.reports] == list(range(1, 81))
    whole = fitted(replace(first, params={"rounds": 80}, run_key="test-2"))
    apart = np.abs(
        again.probabilities(first.validation.arrays) - whole.probabilities(first.validation.arrays)
    )
    assert apart.max() / tasks.unit(task, first.train.labels) < 1e-4
    name = {"multiclass": "validation_mlogloss", "regression": "validation_rmse"}[task]
    name = name.replace("mlogloss", "logloss") if kind == "lightgbm" else name
    metric = "log_loss" if task == "multiclass" else "rmse"
    measured = measure(metric, first.validation.labels, again.probabilities(first.validation.arrays))
    assert again.reports[-1][name] == pytest.approx(measured, rel=1e-4)


def test_early_stopping_of_several_classes_keeps_whole_rounds(bench: Bench) -> None:
    for kind, metric in (("xgboost", "validation_mlogloss"), ("lightgbm", "validation_logloss")):
        of = replace(asked(bench, "multiclass", kind, rounds=200, early_stopping_rounds=5), run_key=kind)
        model = fitted(of)
        assert len(model.reports) < 200
        loss = measure("log_loss", of.validation.labels, model.probabilities(of.validation.arrays))
        assert loss == pytest.approx(min(each[metric] for each in model.reports), rel=1e-4)


def test_two_classes_are_several_too(bench: Bench) -> None:
    for kind, params in (
        ("xgboost", {"rounds": 20}),
        ("lightgbm", {"rounds": 20}),
        ("sklearn", {"which": "histogram"}),
        ("sklearn", {"which": "logistic"}),
        ("sklearn", {"which": "forest"}),
    ):
        of = asked(bench, "multiclass", kind, **params)
        parts = {
            name: replace(part, labels=(part.labels > 1).astype(np.int64))
            for name, part in (("train", of.train), ("validation", of.validation))
        }
        of = replace(of, shape=of.shape | {"outputs": 2}, run_key=f"{kind}-{params}", **parts)
        model, arrays = fitted(of), strange(of)
        theirs = model.probabilities(arrays)
        assert theirs.shape == (len(arrays.numbers), 2)
        assert np.abs(answered(model, arrays, "multiclass") - theirs).max() < 2e-5, kind


def test_a_class_that_some_rows_lack_is_answered_with_nothing(bench: Bench) -> None:
    """As of few rows with shuffled labels; all rows of a training have every class."""
    of = asked(bench, "multiclass", "sklearn", which="tree")
    few = replace(of.train, labels=np.where(of.train.labels == 1, 2, of.train.labels))
    found = fitted(replace(of, train=few)).probabilities(of.validation.arrays)
    assert found.shape == (1_000, 4)
    assert not found[:, 1].any()
    assert found.sum(axis=1) == pytest.approx(np.ones(1_000))


@pytest.mark.parametrize(
    ("task", "kind", "params", "match"),
    [
        ("regression", "sklearn", {"which": "logistic"}, "which is no regressor"),
        ("multiclass", "sklearn", {"which": "ridge"}, "gives no probabilities"),
        ("multiclass", "xgboost", {"num_class": 3}, "num_class, which the trainer sets"),
        ("regression", "lightgbm", {"objective": "l1"}, "objective, which the trainer sets"),
        (
            "regression",
            "function",
            {"harm": "other answers"},
            "of the labels' deviation on the validation rows",
        ),
        ("multiclass", "function", {"harm": "of one class"}, r"of shape \[1000\] for 1000"),
        ("multiclass", "function", {"harm": "logits of one"}, r"gives shape \[3\] for 3 rows"),
    ],
)
def test_what_does_not_fit_the_task_is_refused(
    bench: Bench, task: Task, kind: str, params: dict[str, Any], match: str
) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        fitted(asked(bench, task, kind, **params))
    assert error.value.hint
