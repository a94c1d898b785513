"""Epochs in one task: parameters, the order of the rows, when it is over, and what a checkpoint holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from manta.errors import TrainingInvalid
from manta.training.trainers import _epochs
from manta.training.trainers._epochs import Asked, Progress


@pytest.mark.parametrize(
    ("params", "wanted"),
    [
        ({}, Asked(10, 1024, None)),
        ({"epochs": 3, "batch": 7, "patience": 2, "width": "any"}, Asked(3, 7, 2)),
        ({"patience": None}, Asked(10, 1024, None)),
    ],
)
def test_what_is_asked(params: dict[str, Any], wanted: Asked) -> None:
    assert _epochs.asked(params) == wanted


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"epochs": 0}, "epochs is 0, not a number of epochs"),
        ({"epochs": None}, "epochs is None"),
        ({"epochs": True}, "epochs is True"),
        ({"batch": "many"}, "batch is 'many', not a number of rows"),
        ({"batch": 1.5}, "batch is 1.5"),
        ({"patience": -1}, "patience is -1, not a number of epochs"),
    ],
)
def test_what_counts_nothing_is_refused(params: dict[str, Any], match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        _epochs.asked(params)
    assert error.value.hint


def test_each_epoch_has_an_order_of_its_own_and_always_the_same() -> None:
    orders = [_epochs.order(seed, epoch, 1_000) for seed in (7, 8) for epoch in (0, 1)]
    for one in orders:
        assert (np.sort(one) == np.arange(1_000)).all(), "each row once"
    assert len({one.tobytes() for one in orders}) == 4
    assert (_epochs.order(7, 1, 1_000) == orders[1]).all()


def went(losses: list[float], epochs: int, patience: int | None) -> Progress:
    progress = Progress()
    for loss in losses:
        if progress.over(Asked(epochs, 1, patience)):
            break
        progress = progress.after(loss)
    return progress


@pytest.mark.parametrize("patience", [None, 1, 2, 3, 9])
def test_it_is_over_when_keras_says_so(patience: int | None) -> None:
    """Against a plain reading of what patience means: so many epochs in a row that are no better."""
    random = np.random.default_rng(4)
    for _ in range(50):
        losses = np.round(random.uniform(0, 1, 8), 1).tolist()
        found = went(losses, 6, patience)
        least, worse = np.inf, 0
        for epoch, loss in enumerate(losses[:6], 1):  # noqa: B007
            worse = 0 if loss < least else worse + 1
            least = min(loss, least)
            if worse == patience:
                break
        assert (found.epoch, found.loss) == (epoch, least)
        assert losses[found.best - 1] == least
        assert least not in losses[: found.best - 1], "the first of several"


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_it(loss: float) -> None:
    with pytest.raises(TrainingInvalid, match=r"validation loss after epoch 3 is (nan|inf)") as error:
        Progress(2, 2, 0.5).after(loss)
    assert "learning rate" in str(error.value.hint)


def test_a_checkpoint_gives_back_what_was_put_in() -> None:
    random = np.random.default_rng(1)
    square = random.normal(size=(3, 4)).astype(np.float32)
    groups = {
        "model": {"a/b": square.T, "count": np.array(7, np.int64), "seed:state": np.array([1, 2], np.uint32)},
        "optimizer": {"a/b": np.zeros((0, 4), np.float32), "flag": np.array(True)},
    }
    found, progress = _epochs.unpacked(_epochs.packed(groups, Progress(4, 3, 0.25)))
    assert progress == Progress(4, 3, 0.25)
    assert found.keys() == groups.keys()
    for group, named in groups.items():
        assert found[group].keys() == named.keys()
        for name, value in named.items():
            assert found[group][name].dtype == value.dtype
            assert found[group][name].shape == value.shape
            assert (found[group][name] == value).all(), name
    assert _epochs.unpacked(_epochs.packed({}, Progress()))[1] == Progress(), "before the first epoch"


def test_what_cannot_be_kept_is_named() -> None:
    _epochs.require_kept({"w": "float32", "n": "int32"}, "the weights")
    with pytest.raises(TrainingInvalid, match=r"the weights cannot be kept: w \(bfloat16\)"):
        _epochs.require_kept({"w": "bfloat16", "n": "int32"}, "the weights")


def test_names_are_told_apart() -> None:
    assert _epochs.unique(["a", "b", "a", "a"]) == ["a", "b", "a#2", "a#3"]
