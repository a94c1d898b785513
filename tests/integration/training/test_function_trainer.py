"""The trainer `Function`: whatever trains, what it gives is a graph that answers what the model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from sklearn.linear_model import LogisticRegression

from manta.definitions import Function
from manta.errors import DefinitionInvalid, TrainingInvalid
from manta.training.trainers import trainer
from tests.integration.training.conftest import Bench
from tests.integration.training.test_task_trainers import job, training

pytestmark = pytest.mark.ray


def asked(bench: Bench, **params: Any) -> Any:
    definition = training("sklearn", fn="estimators:by_hand", trainer=Function())
    return job(bench, "function", definition, **({"epochs": 300} | params))


def test_killed_it_goes_on_and_ends_where_scikit_learn_does(
    ray_cluster: None, bench: Bench, tmp_path: Path
) -> None:
    given = asked(bench, die=str(tmp_path / "died"))
    trainer("function").check(given)
    model = trainer("function").fit(given)
    assert (tmp_path / "died").exists()
    assert [(each["epoch"], each["first"]) for each in model.reports] == [
        (epoch, 0 if epoch <= 3 else 3) for epoch in range(1, 301)
    ]
    rows = given.train.arrays.numbers
    oracle = LogisticRegression(C=np.inf).fit(rows, given.train.labels)
    held = given.validation.arrays
    theirs = oracle.predict_proba(held.numbers)[:, 1]
    assert np.abs(model.probabilities(held) - theirs).max() < 0.02
    session = onnxruntime.InferenceSession(model.graph().SerializeToString())
    logits = session.run(["logits"], {"categories": held.categories, "numbers": held.numbers})[0]
    assert np.abs(1 / (1 + np.exp(-logits)) - model.probabilities(held)).max() < 1e-6


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        ("nothing", "returned a NoneType"),
        ("other answers", "differs from the model by 0.000"),
        ("not-a-number", "differs from the model by nan"),
        ("too few", r"probabilities of shape \[999\] for 1000 validation rows"),
        ("no graph", "returned no ONNX graph"),
        ("names", r"gives \['scores'\]"),
    ],
)
def test_what_it_returns_is_held_to_what_it_should_be(
    ray_cluster: None, bench: Bench, harm: str, match: str
) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        trainer("function").fit(asked(bench, epochs=20, harm=harm))
    assert error.value.hint


def test_a_function_that_is_not_there_is_found_before_anything_costly(bench: Bench) -> None:
    definition = training("sklearn", fn="estimators:nobody", trainer=Function())
    with pytest.raises(DefinitionInvalid, match="nobody"):
        trainer("function").check(job(bench, "function", definition))


def test_more_gpus_than_any_machine_has(ray_cluster: None, bench: Bench) -> None:
    definition = training("sklearn", fn="estimators:by_hand", trainer=Function(gpus=99))
    with pytest.raises(TrainingInvalid, match="99 GPUs can never run here"):
        trainer("function").fit(job(bench, "function", definition, epochs=1))
