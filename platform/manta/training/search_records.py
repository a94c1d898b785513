"""What is kept of a search: a file for each trial, whole or absent, and what they say of its space. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from manta.definitions import ASHA
from manta.definitions.metrics import smaller_is_better
from manta.training import whole

State = Literal["started", "done", "ended early", "failed"]


@dataclass(frozen=True)
class Tried:
    """One trial.

    Attributes:
        number: from 0, in the order in which they were begun.
        params: what it was given out of the space.
        state: ``ended early`` when the scheduler ended it, ``failed`` for ``message``.
        metrics: of the validation rows, of one that is done.
        seconds: that it took.
    """

    number: int
    params: dict[str, Any]
    state: State = "started"
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    message: str = ""


def write(folder: Path, tried: Tried) -> None:
    put(folder / f"{tried.number:04d}.json", asdict(tried))


def read(folder: Path) -> list[Tried]:
    """All trials that were begun, in order."""
    paths = sorted(folder.glob("[0-9][0-9][0-9][0-9].json")) if folder.exists() else []
    return [Tried(**json.loads(path.read_text())) for path in paths]


def put(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole.write(path, json.dumps(content).encode())


def best(tried: Iterable[Tried], metric: str) -> Tried | None:
    """The first of the best; None when none is done."""
    sign = 1 if smaller_is_better(metric) else -1
    done = [each for each in tried if each.state == "done" and each.metrics[metric] == each.metrics[metric]]
    return min(done, key=lambda each: (sign * each.metrics[metric], each.number), default=None)


def rungs(scheduler: ASHA) -> list[int]:
    """The numbers of reports at which trials are compared, ascending."""
    found = []
    at = scheduler.grace
    while at <= scheduler.most:
        found.append(at)
        at *= scheduler.reduction
    return found


def at_once(
    asked: int,
    workers: int,
    each: Mapping[str, float],
    machines: Sequence[Mapping[str, float]],
    free: Mapping[str, float],
) -> int:
    """How many trials are run at a time: at least one, which may have to wait for room, and no more than can
    have all of their workers at once, so that none waits for what another holds half of.

    Args:
        each: what one worker holds. machines: what each machine has. free: of all machines together, now.
    """
    places = sum(
        int(min(machine.get(name, 0) / amount for name, amount in each.items())) for machine in machines
    )
    now = min(int(free.get(name, 0) / amount + 1e-6) for name, amount in each.items())
    return max(1, min(asked, places // workers, now // workers))
