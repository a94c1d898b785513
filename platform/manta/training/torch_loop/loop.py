"""The loop itself: epochs of steps, what is reported of them, and checkpoints to go on from."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed
from torch import nn
from torch.nn import functional

from manta.definitions import Torch, load_function
from manta.errors import TrainingInvalid
from manta.training.torch_loop.asked import Asked, Progress, asked, share_of_rate, sizes
from manta.training.torch_loop.feed import Feed, Held, Rows, Streamed
from manta.training.torch_loop.scaled import Scaled
from manta.training.torch_loop.strategies import Strategy, strategy, workers

MODEL_FILE = "model.pt"  # the state of the module, as the trainer looks for it
PROGRESS_FILE = "progress.pt"
JUDGED_ROWS = 8192  # at a time
WORTH_WAITING_SECONDS = 4.0  # of an epoch: to wait until its checkpoint counts takes a twentieth of that

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Told:
    """What all workers are told.

    Attributes:
        params: as :func:`~manta.training.torch_loop.asked.asked` takes them.
        module: builds the module of ``shape``.
        in_memory: whether a worker holds its rows, or streams them.
        rows: of each worker, in ``train`` and ``validation``.
        scale: mean and deviation of the labels of a regression.
    """

    params: Mapping[str, Any]
    shape: Mapping[str, Any]
    module: str
    task: str
    how: Torch
    seed: int
    in_memory: bool
    rows: Mapping[str, int]
    scale: tuple[float, float] = (0.0, 1.0)


class Place(Protocol):
    """One worker among the others.

    Attributes:
        rank: of it; the first keeps checkpoints.
    """

    rank: int
    device: torch.device

    def blocks(self, part: str) -> Iterator[Rows]:
        """The worker's rows of ``train`` or ``validation``, on the CPU, in the same order each time."""
        ...

    def checkpoint(self) -> AbstractContextManager[Path | None]:
        """The folder of the last one; None where nothing has been reported."""
        ...

    def report(self, metrics: dict[str, Any], write: Callable[[Path], None], wait: bool) -> None:
        """Tell how an epoch went. In the first worker ``write`` fills the checkpoint's folder; with ``wait``,
        returns when it is one that an attempt after a kill would go on from."""
        ...


def train(config: dict[str, Any]) -> None:
    """As a worker of Ray Train."""
    from manta.training.torch_loop.place import RayPlace

    told = Told(**config)
    run(told, RayPlace(told.how))


def run(told: Told, place: Place) -> None:
    """Raises:
    TrainingInvalid: the loss is no number any more, or the module cannot be compiled.
    """
    training = _Training(told, place)
    training.take_up()
    try:
        while not training.progress.over(training.asked):
            training.epoch()
    except _uncompiled(told.how) as error:
        raise TrainingInvalid(
            f"{told.module} cannot be compiled: {str(error)[:1000]}",
            hint="Torch(compile=False); or a C++ compiler on each machine, where that is what is missing",
        ) from error


def build(told: Told) -> nn.Module:
    """The module, with the same random weights on each worker."""
    torch.manual_seed(told.seed)
    module: nn.Module = load_function(told.module)(dict(told.shape))
    return Scaled(module, *told.scale) if told.task == "regression" else module


class _Training:
    def __init__(self, told: Told, place: Place) -> None:
        self.asked: Asked = asked(told.params)
        self.progress = Progress()
        self._told, self._place = told, place
        self._strategy: Strategy = strategy(told.how.strategy, build(told), place.device)
        if told.how.compile:
            self._strategy.model.compile()
        self._optimizer = torch.optim.AdamW(
            self._strategy.model.parameters(),
            lr=self.asked.learning_rate,
            weight_decay=self.asked.weight_decay,
        )
        self._scaler = torch.amp.GradScaler(place.device.type, enabled=told.how.precision == "fp16")
        self._rows = {part: _feed(told, place, part) for part in ("train", "validation")}
        self._most = max(1, self.asked.batch // workers())  # rows of this worker in a step
        self._steps = len(sizes(self._rows["train"].rows, self._most))  # of an epoch
        self._best: dict[str, Any] = {}  # the weights of the best epoch, where that is the model

    # --- an epoch ---------------------------------------------------------------------------------------

    def epoch(self) -> None:
        began, number = time.monotonic(), self.progress.epochs
        # Anew in each epoch: an attempt after a kill draws what the killed one would have drawn.
        order = _seeded(self._told.seed, number, self._place.rank)
        trained = self._trained(number, order)
        validated = self._validated()
        if not (math.isfinite(trained) and math.isfinite(validated)):
            raise TrainingInvalid(
                f"the loss of epoch {number + 1} is {trained}, and {validated} on the validation rows",
                hint="a smaller learning_rate; labels or features that are far out",
            )
        self.progress = self.progress.after(validated)
        metrics = {"epoch": number + 1, "train_loss": trained, "validation_loss": validated}
        self._report(metrics, wait=time.monotonic() - began >= WORTH_WAITING_SECONDS)

    def _trained(self, number: int, order: torch.Generator) -> float:
        """The mean loss of all workers' rows."""
        self._strategy.model.train()
        total = torch.zeros((), dtype=torch.float64, device=self._place.device)
        rows = self._rows["train"]
        for at, step in enumerate(rows.steps(self._most, order), number * self._steps):
            share = share_of_rate(self.asked.schedule, at, self.asked.epochs * self._steps)
            for group in self._optimizer.param_groups:
                group["lr"] = self.asked.learning_rate * share
            total += self._step(step)
        return self._mean(total, rows.rows)

    def _step(self, rows: Rows) -> torch.Tensor:
        """The sum of the rows' losses, before the step."""
        count = len(rows[2])
        several = min(self._told.how.accumulate, count)
        parts = list(zip(*(column.tensor_split(several) for column in rows), strict=True))
        total = torch.zeros((), dtype=torch.float64, device=self._place.device)
        for at, part in enumerate(parts):
            with self._strategy.part(at + 1 == len(parts)):
                loss = self._loss(self._strategy.model, part)
                self._scaler.scale(loss / count).backward()
            total += loss.detach()
        if self.asked.clip:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._strategy.model.parameters(), self.asked.clip)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        return total

    def _validated(self) -> float:
        self._strategy.judged.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._place.device)
        rows = self._rows["validation"]
        with torch.no_grad():  # not inference mode, in which FSDP could not train on
            for some in rows.all(JUDGED_ROWS):
                total += self._loss(self._strategy.judged, some)
        return self._mean(total, rows.rows)

    def _loss(self, model: nn.Module, rows: Rows) -> torch.Tensor:
        """The sum over the rows."""
        categories, numbers, labels = rows
        with self._arithmetic():
            answers = model(categories, numbers)
        answers = answers.float()
        if self._told.task == "multiclass":
            return functional.cross_entropy(answers, labels, reduction="sum")
        if self._told.task == "regression":
            apart: torch.Tensor = (answers - labels) / self._told.scale[1]
            return apart.square().sum()
        return functional.binary_cross_entropy_with_logits(answers, labels, reduction="sum")

    def _arithmetic(self) -> AbstractContextManager[Any]:
        dtype = DTYPES.get(self._told.how.precision)
        return torch.autocast(self._place.device.type, dtype) if dtype else nullcontext()

    def _mean(self, total: torch.Tensor, rows: int) -> float:
        """Over all workers, which have the same number of rows."""
        if workers() > 1:
            torch.distributed.all_reduce(total)
        mean = float(total) / (rows * workers())
        return mean * self._told.scale[1] ** 2 if self._told.task == "regression" else mean

    # --- checkpoints ------------------------------------------------------------------------------------

    def _report(self, metrics: dict[str, Any], wait: bool) -> None:
        weights, momenta = self._strategy.weights(), self._strategy.momenta(self._optimizer)
        if not self.progress.since:
            self._best = weights
        model = weights if self.asked.patience is None else self._best
        rest = {
            "progress": asdict(self.progress),
            "optimizer": momenta,
            "scaler": self._scaler.state_dict(),
            "weights": None if model is weights else weights,  # that it goes on with
        }

        def write(folder: Path) -> None:
            torch.save(model, folder / MODEL_FILE)
            torch.save(rest, folder / PROGRESS_FILE)

        self._place.report(metrics, write, wait)

    def take_up(self) -> None:
        """Go on from the last checkpoint, where there is one."""
        with self._place.checkpoint() as folder:
            if folder is None:
                return
            model, rest = (
                torch.load(folder / name, map_location="cpu", weights_only=True)
                for name in (MODEL_FILE, PROGRESS_FILE)
            )
        self.progress, self._best = Progress(**rest["progress"]), model
        self._strategy.take_up(self._optimizer, rest["weights"] or model, rest["optimizer"])
        self._scaler.load_state_dict(rest["scaler"])


def _feed(told: Told, place: Place, part: str) -> Feed:
    if not told.in_memory:
        return Streamed(lambda: place.blocks(part), told.rows[part], place.device)
    columns = zip(*place.blocks(part), strict=True)
    categories, numbers, labels = (torch.cat(column).to(place.device) for column in columns)
    return Held((categories, numbers, labels))


def _seeded(*of: int) -> torch.Generator:
    """What draws an epoch's order; all else that draws at random is seeded too."""
    for_order, for_torch, for_numpy, for_random = np.random.SeedSequence(
        [each % 2**63 for each in of]
    ).generate_state(4)
    torch.manual_seed(int(for_torch))
    np.random.seed(int(for_numpy))
    random.seed(int(for_random))
    return torch.Generator().manual_seed(int(for_order))


def _uncompiled(how: Torch) -> tuple[type[Exception], ...]:
    """The errors that say so."""
    if not how.compile:
        return ()
    from torch._dynamo.exc import TorchDynamoException
    from torch._inductor.exc import InductorError

    return TorchDynamoException, InductorError
