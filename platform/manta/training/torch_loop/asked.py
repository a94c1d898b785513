"""What the loop can be asked for by ``params``, and what follows from that alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from manta.errors import TrainingInvalid

WARM_UP = 0.05  # of all steps, in which the learning rate rises to its highest
SCHEDULES = ("cosine", "constant")


@dataclass(frozen=True)
class Asked:
    """Attributes:
    batch: rows of a step, over all workers.
    learning_rate: the highest of the schedule.
    schedule: what the learning rate does after the warm-up: falls to nothing by a cosine, or stays.
    clip: the most that the norm of all gradients may be; 0 leaves them as they are.
    patience: epochs without a better validation loss after which the training ends, and the best epoch is the
        model; None trains to the end, and the last is.
    """

    epochs: int = 10
    batch: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: str = "cosine"
    clip: float = 1.0
    patience: int | None = None


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0


_MUST_BE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (_count, "a whole number from 1 on"),
    "batch": (_count, "a whole number from 1 on"),
    "learning_rate": (lambda value: _amount(value) and value > 0, "a number above 0"),
    "weight_decay": (_amount, "a number from 0 on"),
    "schedule": (lambda value: value in SCHEDULES, " or ".join(map(repr, SCHEDULES))),
    "clip": (_amount, "a number from 0 on"),
    "patience": (lambda value: value is None or _count(value), "a whole number from 1 on, or None"),
}


def asked(params: Mapping[str, Any]) -> Asked:
    """Raises:
    TrainingInvalid: a name that is none of these, or a value that cannot be.
    """
    known = [field.name for field in fields(Asked)]
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise TrainingInvalid(
            f"params name {', '.join(unknown)}, which manta's own loop for torch does not take",
            hint=f"it takes {', '.join(known)}; a loop of your own (fn=…) takes what it likes",
        )
    for name, value in params.items():
        fits, wanted = _MUST_BE[name]
        if not fits(value):
            raise TrainingInvalid(
                f"params say {name}={value!r}, not {wanted}",
                hint=f"{name}={getattr(Asked(), name)!r} is what it is without",
            )
    return Asked(**params)


def share_of_rate(schedule: str, step: int, steps: int) -> float:
    """What share of the highest learning rate a step has. ``step`` counts from 0, over all epochs."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    if schedule == "constant":
        return 1.0
    return (1 + math.cos(math.pi * (step - rising) / (steps - rising))) / 2


def sizes(rows: int, most: int) -> list[int]:
    """How many rows each step of an epoch has: as few steps as ``most`` rows allow, of even size, so that
    none is left with a row or two. The larger ones come first."""
    steps = -(-rows // most)
    return [rows // steps + (at < rows % steps) for at in range(steps)]


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        epochs: that are done.
        best: the least validation loss so far.
        since: epochs since that one.
    """

    epochs: int = 0
    best: float = math.inf
    since: int = 0

    def after(self, validation_loss: float) -> Progress:
        """An epoch later."""
        if validation_loss < self.best:
            return Progress(self.epochs + 1, validation_loss, 0)
        return Progress(self.epochs + 1, self.best, self.since + 1)

    def over(self, asked: Asked) -> bool:
        return self.epochs >= asked.epochs or (asked.patience is not None and self.since >= asked.patience)
