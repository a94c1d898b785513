"""The networks of jobs/delay_networks.py: the question of jobs/delay.py, and both learn."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from jobs import delay_networks
from jobs.delay import delay
from manta.definitions import Training, from_json
from manta.training.encoder import Arrays
from manta.training.trainers import Part, _epochs, _task, trainer

NETWORKS = [delay_networks.by_keras, delay_networks.by_jax]
SAME = ("model", "examples", "features", "split", "gates", "baseline")
ROOT = Path(__file__).resolve().parents[2]
SHAPE = {"categories": [17, 4, 96], "numbers": 20}


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_they_ask_what_the_other_asks_and_only_run_when_asked(network: Training) -> None:
    assert {name: getattr(network, name) for name in SAME} == {name: getattr(delay, name) for name in SAME}
    assert not network.on_apply
    assert from_json(network.to_json()) == network


def part(count: int, seed: int) -> Part:
    """Labels are a rule of a category and a number."""
    random = np.random.default_rng(seed)
    categories = np.stack([random.integers(0, size, count) for size in SHAPE["categories"]], axis=1)
    numbers = random.normal(size=(count, SHAPE["numbers"])).astype(np.float32)
    late = (numbers[:, 3] > 0) ^ (categories[:, 1] == 2)
    return Part(Arrays(categories, numbers), late.astype(np.float32))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_it_learns_a_rule_of_a_category_and_a_number(network: Training, tmp_path: Path) -> None:
    kind = network.trainer.kind
    if find_spec(kind) is None:
        pytest.skip(f"{kind} is not installed")
    params = {"epochs": 12, "batch": 100, "learning_rate": 0.01}
    work = _task.Work(network, params, tmp_path, str(ROOT), SHAPE, part(1_500, 1), part(500, 2))
    trainer(kind).train(work)
    losses = [each["validation_loss"] for each in _task.reports(tmp_path)]
    assert len(losses) == 12
    assert losses[-1] < 0.2 < 0.6 < np.log(2)
    _, progress = _epochs.unpacked((tmp_path / "checkpoint.safetensors").read_bytes())
    assert progress.epoch == 12
