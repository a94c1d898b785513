"""Keras and JAX: killed after any epoch they end as they would have, whatever they predict, and what cannot
be trained or packaged is named. Most of it needs no task: `fit` finds what the task would have left."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load

from manta.definitions import AtLeast, Jax, Keras, Signature, TimeSplit
from manta.errors import ExtraMissing, TrainingInvalid
from manta.models import package
from manta.training import run as training_run
from manta.training.encoder import Arrays
from manta.training.trainers import Job, Model, Part, _epochs, _task, trainer
from manta.training.trainers._reports import reports
from tests.integration.training.conftest import Bench
from tests.integration.training.test_task_trainers import (
    NETWORKS,
    answered,
    job,
    killed_among_rounds,
    training,
)

FITTED, CHECKPOINT = "fitted.safetensors", "checkpoint.safetensors"
FEW = {"epochs": 6, "batch": 250}


def asked(bench: Bench, kind: str, key: str = "test-1", **given: Any) -> Job:
    """Of 1,000 rows; ``fn`` and ``trainer`` are the definition's, the rest are parameters."""
    fields = {name: given.pop(name) for name in ("fn", "trainer", "task") if name in given}
    made = job(bench, kind, training(kind, **fields), **{**FEW, **given})
    few = Part(made.train.arrays.take(np.arange(1_000)), made.train.labels[:1_000])
    return replace(made, run_key=key, train=few)


def trained(given: Job) -> Model:
    """In this process."""
    kind = given.training.trainer.kind
    trainer(kind).check(given)
    work = _task.begun(given)
    work.keep(FITTED, trainer(kind).train(work))  # type: ignore[attr-defined]
    return cast(Model, trainer(kind).fit(given))


class Killed(BaseException):
    """As by SIGKILL: nothing catches it."""


class Mortal(_task.Work):
    """Dies after so many checkpoints."""

    left: int

    def keep(self, name: str, content: bytes) -> None:
        super().keep(name, content)
        if name == CHECKPOINT:
            object.__setattr__(self, "left", self.left - 1)
            if not self.left:
                raise Killed


def dies(given: Job, after: int) -> None:
    work = Mortal(**vars(_task.begun(given)))
    object.__setattr__(work, "left", after)
    with pytest.raises(Killed):
        trainer(given.training.trainer.kind).train(work)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("keras", {}),
        ("keras", {"patience": 2, "rate": 0.3}),
        ("keras", {"averaged": True}),
        ("jax", {"patience": 2, "rate": 0.3}),
    ],
    ids=str,
)
def test_killed_after_any_epoch_it_ends_as_it_would_have(
    bench: Bench, kind: str, params: dict[str, Any]
) -> None:
    given = asked(bench, kind, "whole", **params)
    whole = trained(given)
    weights = load(whole.files()["model.safetensors"])
    losses = [each["validation_loss"] for each in whole.reports]
    # JAX compiles anew each time.
    for after in (1, len(losses)) if kind == "jax" else (1, len(losses) - 1, len(losses)):
        again = replace(given, run_key=f"killed-{after}")
        dies(again, after)
        model = trained(again)
        assert model.reports == whole.reports, "each epoch once, with the same losses"
        found = load(model.files()["model.safetensors"])
        assert found.keys() == weights.keys()
        assert all((found[name] == weights[name]).all() for name in weights), after
    best = int(np.argmin(losses)) if "patience" in params else len(losses) - 1
    assert len(losses) == (best + 3 if "patience" in params else 6)
    if "averaged" not in params:
        assert _loss(whole, given.validation) == pytest.approx(losses[best], rel=1e-4)


def _loss(model: Model, part: Part) -> float:
    p = model.probabilities(part.arrays).astype(np.float64)
    return float(-np.mean(part.labels * np.log(p) + (1 - part.labels) * np.log(1 - p)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_another_seed_makes_another_model(bench: Bench, kind: str) -> None:
    once = asked(bench, kind, "once", epochs=1)
    other = replace(once, run_key="other", training=once.training.replace(seed=8))
    first, second = (trained(each).probabilities(once.validation.arrays) for each in (once, other))
    assert np.abs(first - second).max() > 1e-4


# One of them: that the epochs go on to the same bits is tested of both without processes, in less time.
@pytest.mark.ray
@pytest.mark.parametrize("kind", ["jax"])
def test_a_killed_process_goes_on_from_its_checkpoint(ray_cluster: None, bench: Bench, kind: str) -> None:
    given = asked(bench, kind, "killed", epochs=40)
    with killed_among_rounds(given.folder / given.run_key, "train delay", after=4) as killed:
        model = trainer(kind).fit(given)
    assert 4 < killed[0] < 40
    assert [each["epoch"] for each in model.reports] == list(range(1, 41)), "each epoch once"
    ours = model.probabilities(given.validation.arrays)  # type: ignore[union-attr]
    theirs = trained(asked(bench, kind, "whole", epochs=40)).probabilities(given.validation.arrays)
    assert np.abs(ours - theirs).max() < 1e-4, "other threads add in another order, and no more"


@pytest.mark.ray
@pytest.mark.parametrize("how", [Keras(backend="jax"), Jax()], ids=lambda how: str(how.kind))
def test_a_run_of_it_is_packaged_promoted_and_answers(
    ray_cluster: None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """Keras on another backend than the one that packages."""
    monkeypatch.chdir(tmp_path)  # where MLflow without a server keeps artifacts
    bench.settings = bench.settings.model_copy(update={"mlflow_url": f"sqlite:///{tmp_path}/mlflow.db"})
    wanted = training(how.kind, trainer=how, params={**FEW, "batch": 100, "rate": 0.05}).replace(
        features="weather_v1",
        split=TimeSplit(test_from=datetime(2013, 2, 20)),
        gates=(AtLeast("roc_auc", 0.85), Signature()),
    )
    run = bench.begin(wanted)
    training_run.execute(run)
    (made,) = run.outputs
    assert (made.name, made.version) == ("delay", "1")
    assert run.metrics["roc_auc"] > 0.9
    assert run.metrics["parity"] < 1e-5
    packaged = package.load(made.detail["location"], made.detail["digest"])
    calm, storm = packaged.predict({"sky": ["clear", "rain"], "wind": [2.0, 9.0]})
    assert calm < 0.2 < 0.8 < storm
    weights = load((Path(made.detail["location"]) / "model.safetensors").read_bytes())
    assert sum(each.size for each in weights.values()) > 100


def many(given: Job, count: int = 10_000) -> Arrays:
    """Rows like the training's, and others that are like none of them."""
    random = np.random.default_rng(9)
    near = given.train.arrays.take(random.integers(0, len(given.train.labels), count // 2))
    width = given.shape["numbers"]
    return Arrays(
        np.concatenate([near.categories, random.integers(0, 4, (count - count // 2, 1))]),
        np.concatenate([near.numbers, random.normal(0, 20, (count - count // 2, width)).astype(np.float32)]),
    )


@pytest.mark.parametrize(
    ("kind", "fn"), [("keras", "networks:by_keras_subclass"), ("jax", "networks:by_jax_alone")]
)
def test_what_takes_numbers_alone_and_gives_flat_logits(bench: Bench, kind: str, fn: str) -> None:
    given = asked(bench, kind, fn=fn)
    model = trained(given)
    arrays = many(given)
    arrays = Arrays(arrays.categories, np.clip(arrays.numbers, -8, 8))
    assert np.abs(answered(model, arrays) - model.probabilities(arrays)).max() < 1e-5
    assert len(load(model.files()["model.safetensors"])) == 2


def test_a_module_of_flax_fits_as_it_is(bench: Bench) -> None:
    given = asked(bench, "jax", fn="networks:by_flax")
    model = trained(given)
    held = given.validation
    assert ((model.probabilities(held.arrays) > 0.5) == (held.labels == 1)).mean() > 0.7
    arrays = many(given)
    assert np.abs(answered(model, arrays) - model.probabilities(arrays)).max() < 1e-5
    assert "params/Dense_0/kernel" in load(model.files()["model.safetensors"])


def logits_of(model: Model, arrays: Arrays) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.graph().SerializeToString())
    given = {"categories": arrays.categories, "numbers": arrays.numbers}
    found: np.ndarray = session.run(["logits"], given)[0]
    return found


def of_classes(given: Job) -> Job:
    """Three classes: calm, windy and stormy."""

    def classed(part: Part) -> Part:
        return Part(part.arrays, np.digitize(part.arrays.numbers[:, 0], [-0.5, 0.5]))

    return replace(
        given,
        shape={**given.shape, "outputs": 3},
        train=classed(given.train),
        validation=classed(given.validation),
    )


@pytest.mark.parametrize("kind", NETWORKS)
def test_of_several_classes(bench: Bench, kind: str) -> None:
    given = of_classes(asked(bench, kind, task="multiclass", rate=0.05, batch=100, momentum=0.8))
    model = trained(given)
    found = model.probabilities(given.validation.arrays)
    assert found.shape == (1_000, 3)
    assert np.abs(found.sum(axis=1) - 1).max() < 1e-5
    assert (found.argmax(axis=1) == given.validation.labels).mean() > 0.9
    arrays = many(given)
    logits = logits_of(model, arrays).astype(np.float64)
    assert logits.shape == (10_000, 3)
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    apart = raised / raised.sum(axis=1, keepdims=True) - model.probabilities(arrays)
    assert np.abs(apart).max() < 1e-5
    chances = found[np.arange(1_000), given.validation.labels].astype(np.float64)
    assert model.reports[-1]["validation_loss"] == pytest.approx(-np.log(chances).mean(), rel=1e-3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_of_a_number(bench: Bench, kind: str) -> None:
    given = asked(bench, kind, task="regression", squares=True, rate=0.05, epochs=15)

    def measured(part: Part) -> Part:
        values = 3 * part.arrays.numbers[:, 0] + part.arrays.categories[:, 0]
        return Part(part.arrays, values.astype(np.float32))

    given = replace(given, train=measured(given.train), validation=measured(given.validation))
    model = trained(given)
    found = model.probabilities(given.validation.arrays)
    apart = float(np.mean((found - given.validation.labels) ** 2))
    assert apart < 0.25 * float(given.validation.labels.var())
    assert model.reports[-1]["validation_loss"] == pytest.approx(apart, rel=1e-3)
    arrays = many(given)
    assert np.abs(logits_of(model, arrays) - model.probabilities(arrays)).max() < 1e-4


def test_a_loss_of_ones_own(bench: Bench) -> None:
    given = asked(bench, "jax", absolute=True)
    model = trained(given)
    p = model.probabilities(given.validation.arrays).astype(np.float64)
    logits = np.log(p / (1 - p))
    wanted = np.abs(logits - given.validation.labels).mean()
    assert model.reports[-1]["validation_loss"] == pytest.approx(wanted, rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "params", "match"),
    [
        ("keras", {"which": "raises"}, "cannot make a model: KeyError: 'nothing to be made'"),
        ("keras", {"which": "nothing"}, "made a NoneType, not a keras.Model"),
        ("keras", {"which": "not compiled"}, "made a model that is not compiled"),
        ("keras", {"which": "without names"}, "fails on rows of shape"),
        ("keras", {"which": "wide"}, r"gives shape \[2, 2\] for 2 rows, not \[2\] or \[2, 1\]"),
        ("keras", {"which": "half"}, r"computes in another type than float32: .*float16"),
        ("keras", {"which": "of probabilities"}, "takes probabilities, and the model must give logits"),
        ("keras", {"which": "sigmoid"}, "ends with sigmoid, and must give logits"),
        ("keras", {"epochs": 0}, "epochs is 0, not a number of epochs"),
        ("keras", {"rate": float("nan")}, "validation loss after epoch 1 is nan"),
        ("jax", {"which": "raises"}, "networks:by_jax fails: KeyError: 'nothing to be made'"),
        ("jax", {"which": "nothing"}, "networks:by_jax returned a NoneType"),
        ("jax", {"which": "one for all"}, r"gives shape \[\] for 2 rows, not \[2\] or \[2, 1\]"),
        ("jax", {"which": "a function among them"}, "hold ends, a .*, which is no array"),
        ("jax", {"which": "half"}, r"cannot be kept: last/b \(bfloat16\)"),
        ("jax", {"which": "no optimizer"}, "the optimizer of networks:by_jax cannot begin"),
        ("jax", {"which": "one loss for all"}, "has shape .*, not one number for each row"),
        ("jax", {"patience": "long"}, "patience is 'long', not a number of epochs"),
        ("jax", {"rate": float("nan")}, "validation loss after epoch 1 is nan"),
    ],
)
def test_what_cannot_be_trained_is_the_users_error(
    bench: Bench, kind: str, params: dict[str, Any], match: str
) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        trained(asked(bench, kind, **params))
    assert error.value.hint


def test_a_backend_that_is_not_installed_is_named(bench: Bench) -> None:
    with pytest.raises(ExtraMissing, match="needs tensorflow, which is not installed"):
        trainer("keras").check(asked(bench, "keras", trainer=Keras(backend="tensorflow")))


def test_a_library_that_is_not_installed_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(ExtraMissing, match="the trainer Jax needs jax2onnx") as error:
        trainer("jax").check(asked(bench, "jax"))
    assert error.value.hint == "pip install 'manta-ml[jax]'"


def test_keras_on_another_backend_in_the_same_process_is_refused() -> None:
    script = """
import keras
from manta.errors import TrainingInvalid
from manta.training.trainers import _keras
try:
    _keras.here()
except TrainingInvalid as error:
    print(error.message)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout == "Keras is already on jax in this process, and torch is needed\n"


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_model_that_is_another_each_time_is_not_gone_on_with(bench: Bench, kind: str) -> None:
    given = asked(bench, kind)
    dies(given, 1)
    other = replace(given, shape={**given.shape, "categories": [9]})
    with pytest.raises(TrainingInvalid, match="than before"):
        trained(other)


def test_what_keras_answers_elsewhere_is_held_against_it(bench: Bench) -> None:
    given = asked(bench, "keras")
    trained(given)
    path = given.folder / given.run_key / FITTED
    groups, progress = _epochs.unpacked(path.read_bytes())
    groups["answers"]["logits"] = groups["answers"]["logits"] + np.float32(0.01)
    path.write_bytes(_epochs.packed(groups, progress))
    with pytest.raises(TrainingInvalid, match=r"answers otherwise on torch.*logits differ by 0\.0"):
        trainer("keras").fit(given)


def test_reports_are_there_while_it_trains(bench: Bench) -> None:
    given = asked(bench, "keras")
    dies(given, 3)
    assert [each["epoch"] for each in reports(given.folder / given.run_key)] == [1, 2, 3]
    assert set(reports(given.folder / given.run_key)[0]) == {"epoch", "train_loss", "validation_loss"}
