"""manta's own loop for torch: held to scikit-learn and to algebra, gone on with bit by bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from manta.definitions import Torch
from manta.errors import TrainingInvalid
from manta.training.encoder import Arrays
from manta.training.torch_loop import feed as feeds
from manta.training.torch_loop import loop
from manta.training.torch_loop.asked import Asked, Progress, asked, share_of_rate, sizes
from manta.training.torch_loop.feed import Held, Rows, Streamed
from manta.training.torch_loop.scaled import Scaled
from manta.training.trainers import Part
from manta.training.trainers import torch as torch_trainer
from tests.benchmarks._training_job import job_of

ROWS, HELD_BACK, WIDTH = 1_003, 400, 4
CPU = torch.device("cpu")


class Linear(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.several = shape["outputs"] > 1
        self.line = nn.Linear(shape["numbers"], shape["outputs"])

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.line(numbers)
        return found if self.several else found.squeeze(1)


class Net(nn.Module):
    """With what draws at random while it trains, and what is a buffer."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        width = shape["numbers"]
        self.layers = nn.Sequential(
            nn.Linear(width, 32), nn.BatchNorm1d(32), nn.SiLU(), nn.Dropout(0.3), nn.Linear(32, 1)
        )

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(numbers)
        return found.squeeze(1)


class Killed(Exception):
    pass


class Here:
    """A worker without others, whose checkpoints stay; dies in place of reporting ``dies_after`` epochs."""

    rank, device = 0, CPU

    def __init__(self, folder: Path, rows: dict[str, Rows], dies_after: int | None = None) -> None:
        self.folder, self.rows, self.dies_after = folder, rows, dies_after
        self.reports: list[dict[str, Any]] = []

    def blocks(self, part: str) -> Iterator[Rows]:
        return zip(*(column.split(100) for column in self.rows[part]), strict=True)

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        found = sorted(self.folder.glob("*"))
        yield found[-1] if found else None

    def report(self, metrics: dict[str, Any], write: Callable[[Path], None], wait: bool) -> None:
        if self.dies_after is not None and metrics["epoch"] > self.dies_after:
            raise Killed
        checkpoint = self.folder / f"{metrics['epoch']:04d}"
        checkpoint.mkdir(parents=True)
        write(checkpoint)
        self.reports.append(metrics)

    def weights(self, epoch: int | None = None) -> dict[str, torch.Tensor]:
        found = sorted(self.folder.glob("*"))[-1] if epoch is None else self.folder / f"{epoch:04d}"
        state: dict[str, torch.Tensor] = torch.load(found / "model.pt", weights_only=True)
        return state


def rows(count: int, seed: int, task: str = "binary") -> Rows:
    chance = np.random.default_rng(seed)
    numbers = chance.normal(size=(count, WIDTH)).astype(np.float32)
    score = numbers @ np.array([1.0, -2.0, 0.5, 0.0]) + chance.normal(size=count)
    labels: np.ndarray = (score > 0.3).astype(np.float32)
    if task == "multiclass":
        labels = np.digitize(score, [-1.0, 1.0]).astype(np.int64)
    if task == "regression":
        labels = (1000 + 40 * score).astype(np.float32)
    nothing = torch.empty((count, 0), dtype=torch.int64)
    return nothing, torch.from_numpy(numbers), torch.from_numpy(labels)


def told(module: str = "Net", task: str = "binary", in_memory: bool = True, **params: Any) -> loop.Told:
    labels = rows(ROWS, 1, task)[2].double()
    return loop.Told(
        params={"epochs": 4, "batch": 128, **params},
        shape={"categories": [], "numbers": WIDTH, "outputs": 3 if task == "multiclass" else 1},
        module=f"{__name__}:{module}",
        task=task,
        how=Torch(),
        seed=7,
        in_memory=in_memory,
        rows={"train": ROWS, "validation": HELD_BACK},
        scale=(float(labels.mean()), float(labels.std(correction=0))),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules are found by their names, as a project's are; windows are smaller than a share."""
    known = {name: globals()[name] for name in ("Linear", "Net")}
    monkeypatch.setattr(loop, "load_function", lambda path: known[path.partition(":")[2]])
    monkeypatch.setattr(feeds, "WINDOW_ROWS", 300)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def here(tmp_path: Path) -> Callable[..., Here]:
    def made(name: str = "run", task: str = "binary", dies_after: int | None = None) -> Here:
        parts = {"train": rows(ROWS, 1, task), "validation": rows(HELD_BACK, 2, task)}
        return Here(tmp_path / name, parts, dies_after)

    return made


# --- what it can be asked for -------------------------------------------------------------------------------


def test_what_is_not_said_has_a_value() -> None:
    assert asked({}) == Asked()
    assert asked({"epochs": 3, "patience": None, "clip": 0}).epochs == 3


@pytest.mark.parametrize(
    ("params", "match"),
    [
        ({"epoch": 3, "lr": 0.1}, "params name epoch, lr, which manta's own loop"),
        ({"epochs": 0}, "epochs=0, not a whole number"),
        ({"epochs": True}, "epochs=True"),
        ({"batch": 1e3}, r"batch=1000\.0"),
        ({"learning_rate": 0}, "learning_rate=0, not a number above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"weight_decay": -1}, "weight_decay=-1"),
        ({"schedule": "linear"}, "schedule='linear', not 'cosine' or 'constant'"),
        ({"patience": 0}, "patience=0"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(params: dict[str, Any], match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        asked(params)
    assert error.value.hint


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_the_rate_rises_to_its_highest_and_falls_to_nothing(steps: int) -> None:
    cosine = [share_of_rate("cosine", at, steps) for at in range(steps)]
    constant = [share_of_rate("constant", at, steps) for at in range(steps)]
    highest = cosine.index(max(cosine))
    assert max(cosine) == 1.0
    assert cosine[: highest + 1] == sorted(cosine[: highest + 1])
    assert cosine[highest:] == sorted(cosine[highest:], reverse=True)
    assert all(share > 0 for share in cosine)
    assert steps < 1000 or cosine[-1] < 1e-4
    assert constant[highest:] == [1.0] * (steps - highest)


@pytest.mark.parametrize(("count", "most"), [(1, 5), (5, 5), (6, 5), (1003, 128), (7, 1)])
def test_steps_are_even_and_as_few_as_can_be(count: int, most: int) -> None:
    found = sizes(count, most)
    assert sum(found) == count
    assert len(found) == math.ceil(count / most)
    assert max(found) <= most
    assert max(found) - min(found) <= 1


def test_patience_counts_from_the_best() -> None:
    progress, wanted = Progress(), Asked(epochs=9, patience=2)
    for loss, over in [(0.5, False), (0.6, False), (0.4, False), (0.4, False), (0.7, True)]:
        progress = progress.after(loss)
        assert progress.over(wanted) == over
    assert (progress.epochs, progress.best, progress.since) == (5, 0.4, 2)
    assert not progress.over(Asked(epochs=9))
    assert progress.over(Asked(epochs=5))


# --- rows ---------------------------------------------------------------------------------------------------


def numbered(count: int) -> Rows:
    at = torch.arange(count)
    return at.reshape(-1, 1), at.reshape(-1, 1).float(), at.float()


@pytest.mark.parametrize("streamed", [False, True])
def test_an_epoch_has_each_row_once_in_another_order(streamed: bool) -> None:
    held = numbered(ROWS)

    def blocks() -> Iterator[Rows]:
        return zip(*(column.split(90) for column in held), strict=True)

    feed = Streamed(blocks, ROWS, CPU) if streamed else Held(held)
    epochs = []
    for seed in (1, 2, 1):
        steps = list(feed.steps(128, torch.Generator().manual_seed(seed)))
        assert [len(step[2]) for step in steps] == sizes(ROWS, 128)
        for categories, numbers, labels in steps:
            assert (categories[:, 0] == labels).all()
            assert (numbers[:, 0] == labels).all()
        epochs.append(torch.cat([step[2] for step in steps]))
    assert torch.equal(epochs[0], epochs[2]), "by its seed"
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(epochs[0].sort().values, held[2])
    assert torch.equal(torch.cat([some[2] for some in feed.all(64)]), held[2])


def test_streamed_rows_are_mixed_over_blocks() -> None:
    held = numbered(600)
    feed = Streamed(lambda: zip(*(column.split(60) for column in held), strict=True), 600, CPU)
    first = next(feed.steps(60, torch.Generator().manual_seed(1)))[2]
    assert len({int(row) // 60 for row in first}) == 5, "a window's five blocks"


# --- what is learnt -----------------------------------------------------------------------------------------


def test_it_finds_what_scikit_learn_finds(here: Callable[..., Here]) -> None:
    from sklearn.linear_model import LogisticRegression

    for task in ("binary", "multiclass"):
        place = here(task, task)
        loop.run(told("Linear", task, epochs=60, batch=200, learning_rate=0.2, weight_decay=0), place)
        _, numbers, labels = place.rows["train"]
        theirs = LogisticRegression(C=np.inf, max_iter=1000).fit(numbers.numpy(), labels.numpy())
        state = place.weights()
        ours = (numbers @ state["line.weight"].T + state["line.bias"]).numpy()
        if task == "binary":
            p = 1 / (1 + np.exp(-ours[:, 0]))
            ours = np.stack([1 - p, p], axis=1)
        else:
            ours = torch.softmax(torch.from_numpy(ours), 1).numpy()
        assert np.abs(ours - theirs.predict_proba(numbers.numpy())).max() < 0.01


def test_a_number_of_any_size_is_predicted_as_least_squares_would(here: Callable[..., Here]) -> None:
    place = here(task="regression")
    loop.run(told("Linear", "regression", epochs=40, batch=200, learning_rate=0.05, weight_decay=0), place)
    _, numbers, labels = place.rows["train"]
    x = np.hstack([numbers.numpy(), np.ones((ROWS, 1))]).astype(np.float64)
    theirs = x @ np.linalg.lstsq(x, labels.numpy().astype(np.float64), rcond=None)[0]
    model = Scaled(Linear({"numbers": WIDTH, "outputs": 1}), 0, 1)
    model.load_state_dict(place.weights())
    with torch.inference_mode():
        ours = model(place.rows["train"][0], numbers).numpy()
    assert np.abs(ours - theirs).max() < 0.5, "of labels that deviate by 100 from 1000"
    part = Part(Arrays(place.rows["train"][0].numpy(), numbers.numpy()), labels.numpy())
    fields = {"module": f"{__name__}:Linear", "task": "regression"}
    job = job_of(Torch(), "run", place.folder.parent, part, part, {}, **fields)
    job = replace(job, shape={"categories": [], "numbers": WIDTH, "outputs": 1})
    packaged = torch_trainer._load(job, sorted(place.folder.glob("*"))[-1])
    assert np.array_equal(packaged.probabilities(part.arrays), ours), "the model is the module and its scale"
    again = torch_trainer.of_weights(job, "model.safetensors", packaged.files()["model.safetensors"])
    assert np.array_equal(again.probabilities(part.arrays), ours), "and so are its weights"
    squared = float(np.mean((theirs - labels.numpy()) ** 2))
    assert place.reports[-1]["train_loss"] == pytest.approx(squared, rel=0.02), "in the label's own units"


def test_parts_of_a_step_make_the_step(here: Callable[..., Here]) -> None:
    whole, parts = here("whole"), here("parts")
    wanted = told("Linear", clip=0.1)
    loop.run(wanted, whole)
    loop.run(replace(wanted, how=Torch(accumulate=3)), parts)
    for name, value in whole.weights().items():
        assert torch.allclose(value, parts.weights()[name], atol=1e-6)
    assert parts.reports[-1]["train_loss"] == pytest.approx(whole.reports[-1]["train_loss"], rel=1e-5)


def test_gradients_are_clipped_unless_told_otherwise(here: Callable[..., Here]) -> None:
    free, clipped = here("free"), here("clipped")
    loop.run(told("Linear", clip=0), free)
    loop.run(told("Linear", clip=1e-9), clipped)  # to where Adam's epsilon is the larger
    begun = loop.build(told("Linear")).state_dict()
    far, near = (
        float((place.weights()["line.weight"] - begun["line.weight"]).norm()) for place in (free, clipped)
    )
    assert near < far / 5


def test_half_the_bits_train_nearly_the_same(here: Callable[..., Here]) -> None:
    full, half = here("full"), here("half")
    loop.run(told(), full)
    loop.run(replace(told(), how=Torch(precision="bf16")), half)
    assert half.reports[-1]["validation_loss"] == pytest.approx(full.reports[-1]["validation_loss"], abs=0.03)
    assert half.reports != full.reports, "it is another arithmetic"
    assert {value.dtype for value in half.weights().values()} <= {torch.float32, torch.int64}


def test_a_loss_that_is_no_number_ends_it(here: Callable[..., Here]) -> None:
    place = here()
    place.rows["train"][1][5] = math.nan
    with pytest.raises(TrainingInvalid, match=r"the loss of epoch 1 is nan") as error:
        loop.run(told(), place)
    assert error.value.hint
    assert not place.reports


# --- going on -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("dies_after", [0, 1, 3])
def test_killed_it_ends_bit_by_bit_as_undisturbed(
    here: Callable[..., Here], in_memory: bool, dies_after: int
) -> None:
    wanted = told(in_memory=in_memory, patience=10)
    calm, killed = here("calm"), here("killed", dies_after=dies_after)
    loop.run(wanted, calm)
    with pytest.raises(Killed):
        loop.run(wanted, killed)
    torch.rand(100), np.random.rand(100)  # another process is at another place
    after = Here(killed.folder, killed.rows)
    loop.run(wanted, after)
    assert killed.reports + after.reports == calm.reports
    for name, value in calm.weights().items():
        assert torch.equal(value, after.weights()[name]), name


def test_the_best_epoch_is_the_model_where_patience_ends_it(here: Callable[..., Here]) -> None:
    """Of validation rows with wrong labels, what is learnt makes it worse from the beginning."""
    wanted = told("Linear", epochs=20, learning_rate=0.02)
    patient, calm = here("patient"), here("calm")
    for place in (patient, calm):
        place.rows["validation"] = (*place.rows["validation"][:2], 1 - place.rows["validation"][2])
    loop.run(replace(wanted, params={**wanted.params, "patience": 2}), patient)
    loop.run(wanted, calm)
    losses = [report["validation_loss"] for report in patient.reports]
    assert len(losses) == losses.index(min(losses)) + 3 < 20
    best = losses.index(min(losses)) + 1
    assert torch.equal(patient.weights()["line.weight"], calm.weights(best)["line.weight"])
    assert not torch.equal(patient.weights()["line.weight"], calm.weights(len(losses))["line.weight"])

    again = Here(patient.folder, patient.rows)
    loop.run(replace(wanted, params={**wanted.params, "patience": 2}), again)
    assert not again.reports, "it was over"


def test_after_the_best_epoch_it_goes_on_from_the_last_one(here: Callable[..., Here]) -> None:
    wanted = told("Linear", epochs=20, learning_rate=0.02, patience=3)
    calm, killed = here("calm"), here("killed", dies_after=2)
    for place in (calm, killed):
        place.rows["validation"] = (*place.rows["validation"][:2], 1 - place.rows["validation"][2])
    loop.run(wanted, calm)
    with pytest.raises(Killed):
        loop.run(wanted, killed)
    after = Here(killed.folder, killed.rows)
    loop.run(wanted, after)
    assert killed.reports + after.reports == calm.reports
