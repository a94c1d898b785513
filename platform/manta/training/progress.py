"""How far a training is, as one scale over its steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from manta.ledger.context import RunContext


@dataclass(frozen=True)
class Stage:
    """One step of a run: the ``done + 1``-th of ``total``."""

    context: RunContext
    done: int
    total: int

    def reached(self, fraction: float) -> None:
        """Tell that ``fraction`` of this step, 0 to 1, is done."""
        self.context.progress(round(self.done + fraction, 3), self.total, "steps")


class Steps:
    """Counts the steps of a run, and how long each took."""

    def __init__(self, context: RunContext, names: tuple[str, ...]) -> None:
        self._context = context
        self._names = names
        self.seconds: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[Stage]:
        stage = Stage(self._context, self._names.index(name), len(self._names))
        stage.reached(0)
        print(f"manta: {name} …", flush=True)
        started = time.monotonic()
        yield stage
        self.seconds[name] = round(time.monotonic() - started, 2)
        stage.reached(1)
        print(f"manta: {name} took {self.seconds[name]:.1f} s", flush=True)
