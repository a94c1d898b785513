"""Trainers that work in one Ray task: what they make, the same as ONNX, and what a kill does to them."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import polars as pl
import psutil
import pytest

from manta.definitions import Examples, Jax, Keras, LightGBM, Sklearn, TimeSplit, Torch, Training, XGBoost
from manta.definitions.metrics import Task
from manta.errors import DefinitionInvalid, TrainingInvalid
from manta.training import encoder, tasks
from manta.training.encoder import Arrays
from manta.training.progress import Stage
from manta.training.trainers import Job, Model, Part, trainer
from manta.training.trainers._reports import reports
from tests.integration.training.conftest import Bench

pytestmark = pytest.mark.ray

KINDS: dict[str, Any] = {
    "xgboost": XGBoost(),
    "lightgbm": LightGBM(),
    "sklearn": Sklearn(),
    "keras": Keras(),
    "jax": Jax(),
}
FN = {"sklearn": "estimators:make", "keras": "networks:by_keras", "jax": "networks:by_jax"}
TREES = ("xgboost", "lightgbm")
NETWORKS = ("keras", "jax")
SKLEARN = ("logistic", "pipeline", "network", "histogram", "forest", "extra", "tree")
ALL = [
    *((kind, {"rounds": 40}) for kind in TREES),
    *(("sklearn", {"which": name}) for name in SKLEARN),
    *((kind, {"epochs": 8, "batch": 250}) for kind in NETWORKS),
]


def training(kind: str, **fields: Any) -> Training:
    if kind in FN:
        fields = {"fn": FN[kind]} | fields
    return Training(
        model="delay",
        examples=Examples(dataset="flights", label="late", time="at"),
        features="delay_v1",
        split=TimeSplit(test_from=datetime(2013, 11, 1)),
        **{"trainer": KINDS[kind]} | fields,
    )


def rows(count: int, seed: int = 5, task: Task = "binary") -> tuple[pl.DataFrame, np.ndarray]:
    random = np.random.default_rng(seed)
    frame = pl.DataFrame(
        {"carrier": random.choice(["UA", "AA", "DL"], count), "wind": random.normal(5, 2, count)}
    ).with_columns(wind=pl.when(pl.int_range(pl.len()) % 17 == 0).then(None).otherwise("wind"))
    gusts = frame["wind"].fill_null(5).to_numpy() + random.normal(0, 1, count)
    american = (frame["carrier"] == "AA").to_numpy()
    if task == "multiclass":
        force = np.digitize(gusts, [3.5, 5, 6.5])
        return frame, np.where(american, 3 - force, force)
    if task == "regression":
        return frame, (300 + 20 * gusts + 90 * american).astype(np.float32)
    return frame, ((gusts > 5) ^ american).astype(np.float32)


def job(bench: Bench, kind: str, definition: Training | None = None, **params: Any) -> Job:
    definition = definition or training(kind)
    frame, labels = rows(3_000, task=definition.task)
    encoding = encoder.fit(frame)
    whole = Part(encoder.encode(encoding, frame), labels)
    held, labels_held = rows(1_000, seed=6, task=definition.task)
    return Job(
        run_key="test-1",
        folder=bench.settings.home / "training",
        root=Path(__file__).parent,
        training=definition,
        params=params,
        shape=encoding.shape | {"outputs": 4 if definition.task == "multiclass" else 1},
        train=whole,
        validation=Part(encoder.encode(encoding, held), labels_held),
        stage=Stage(bench.begin(definition), 2, 7),
    )


def answered(model: Model, arrays: Arrays, task: Task = "binary") -> np.ndarray:
    """By the graph."""
    session = onnxruntime.InferenceSession(model.graph().SerializeToString())
    given = {"categories": arrays.categories, "numbers": arrays.numbers}
    logits: np.ndarray = session.run(["logits"], given)[0]
    return tasks.answers(task, logits).astype(np.float64)


@contextmanager
def killed_among_rounds(folder: Path, title: str, after: int = 60) -> Iterator[list[int]]:
    """Meanwhile, kill the processes of that title once the run in ``folder`` has reported more rounds than
    ``after``. Gives how many it had reported when they were; in the end, some must have been."""
    killed: list[int] = []

    def kill() -> None:
        until = time.monotonic() + 120
        while time.monotonic() < until and not killed:
            if len(reports(folder)) > after:
                for process in psutil.Process().children(recursive=True):
                    if title in " ".join(process.cmdline()):
                        killed.append(len(reports(folder)))
                        os.kill(process.pid, signal.SIGKILL)
            time.sleep(0.001)

    killer = threading.Thread(target=kill)
    killer.start()
    yield killed
    killer.join()
    assert killed, "it was not killed"


def strange(asked: Job) -> Arrays:
    """Also what no training row was like: indices never seen, and values far out and next to each other."""
    random = np.random.default_rng(8)
    near = np.float32(asked.train.arrays.numbers[:, 0].repeat(3))
    near[::3], near[2::3] = np.nextafter(near[1::3], np.float32(-9)), np.nextafter(near[1::3], np.float32(9))
    far = random.normal(0, 100, 1_000).astype(np.float32)
    numbers = np.concatenate([near, far])
    return Arrays(
        random.integers(0, 4, (len(numbers), 1)),
        np.stack([numbers, random.integers(0, 2, len(numbers)).astype(np.float32)], axis=1),
    )


@pytest.mark.parametrize(("kind", "params"), ALL, ids=lambda value: str(value))
def test_the_graph_answers_what_the_framework_answers(
    ray_cluster: None, bench: Bench, kind: str, params: dict[str, Any]
) -> None:
    asked = job(bench, kind, **params)
    trainer(kind).check(asked)
    model = trainer(kind).fit(asked)
    arrays = strange(asked)
    theirs = model.probabilities(arrays)
    assert theirs.dtype == np.float32
    assert np.abs(answered(model, arrays) - theirs).max() < 1e-5
    validation = asked.validation
    right = (model.probabilities(validation.arrays) >= 0.5) == (validation.labels == 1)
    assert right.mean() > (0.6 if "logistic" in str(params) or "pipeline" in str(params) else 0.7)
    assert model.reports[-1]["round" if kind in TREES else "validation_loss"] > 0


@pytest.mark.parametrize("kind", TREES)
def test_killed_it_goes_on_from_its_checkpoint(ray_cluster: None, bench: Bench, kind: str) -> None:
    asked = job(bench, kind, rounds=400)
    folder = asked.folder / asked.run_key
    with killed_among_rounds(folder, "train delay") as killed:
        model = trainer(kind).fit(asked)
    assert 60 < killed[0] < 400
    assert [report["round"] for report in model.reports] == list(range(1, 401)), "each round once"
    whole = trainer(kind).fit(job(bench, kind, rounds=400, **{}))
    assert whole.reports == model.reports, "executed again, it is found, not made"
    undisturbed = job(bench, kind, rounds=400)
    other = trainer(kind).fit(Job(**{**vars(undisturbed), "run_key": "test-2"}))
    ours, theirs = (each.probabilities(undisturbed.validation.arrays) for each in (model, other))
    assert np.abs(ours - theirs).max() < 1e-4, "nothing in it is random, so going on changes nothing"


@pytest.mark.parametrize("kind", TREES)
def test_early_stopping_keeps_the_best_round(ray_cluster: None, bench: Bench, kind: str) -> None:
    asked = job(bench, kind, rounds=300, early_stopping_rounds=5)
    model = trainer(kind).fit(asked)
    assert len(model.reports) < 300
    part = asked.validation
    p = model.probabilities(part.arrays).astype(np.float64)
    loss = -np.mean(part.labels * np.log(p) + (1 - part.labels) * np.log(1 - p))
    reported = [report["validation_logloss"] for report in model.reports]
    assert loss == pytest.approx(min(reported), rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "params", "match"),
    [
        ("xgboost", {"max_depth": "deep"}, "xgboost failed"),
        ("xgboost", {"rounds": 0}, "rounds is 0"),
        ("xgboost", {"seed": 3}, "which the trainer sets"),
        ("lightgbm", {"learning_rate": -1}, "lightgbm failed"),
        ("lightgbm", {"rounds": "many"}, "rounds is 'many'"),
        ("sklearn", {"which": "without probabilities"}, "gives no probabilities"),
        ("sklearn", {"which": "logistic", "depth": 3}, "cannot make a classifier"),
        ("sklearn", {"which": "logistic", "C": -1.0}, "sklearn failed"),
    ],
)
def test_what_cannot_be_trained_is_the_users_error(
    ray_cluster: None, bench: Bench, kind: str, params: dict[str, Any], match: str
) -> None:
    asked = job(bench, kind, **params)

    def train() -> None:
        trainer(kind).check(asked)
        trainer(kind).fit(asked)

    with pytest.raises(TrainingInvalid, match=match) as error:
        train()
    assert error.value.hint


def test_more_cpus_than_any_machine_has(ray_cluster: None, bench: Bench) -> None:
    asked = job(bench, "xgboost", training("xgboost", trainer=XGBoost(cpus=99)))
    with pytest.raises(TrainingInvalid, match="99 CPUs can never run here"):
        trainer("xgboost").fit(asked)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"trainer": XGBoost(), "fn": "estimators:make"}, "takes neither fn nor module"),
        ({"trainer": Sklearn()}, "takes fn"),
        ({"trainer": Sklearn(), "fn": "a:b", "module": "a:c"}, "takes fn"),
        ({"trainer": Torch(), "fn": "a:b"}, "takes module, and may take fn"),
    ],
)
def test_a_training_names_what_its_trainer_takes(fields: dict[str, Any], match: str) -> None:
    with pytest.raises((ValueError, DefinitionInvalid), match=match):
        training("xgboost", **fields)
