"""What trainers of boosted trees share: their parameters, and rounds that are reported and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from manta.definitions.sources import driver
from manta.errors import TrainingInvalid
from manta.training.trainers import Job, _task

ROUNDS = 200
KEEP_EVERY = 25  # rounds
_OURS = ("objective", "nthread", "n_jobs", "seed", "random_state", "num_class")


class Asked(NamedTuple):
    """``rounds`` trees; stop early after ``patience`` rounds (as it was given) without a gain, unless None;
    ``params`` are the library's."""

    rounds: int
    patience: Any
    params: dict[str, Any]


def asked(params: Mapping[str, Any]) -> Asked:
    """Raises:
    TrainingInvalid: ``rounds`` is not a number of trees.
    """
    rest = dict(params)
    rounds, patience = rest.pop("rounds", ROUNDS), rest.pop("early_stopping_rounds", None)
    if not isinstance(rounds, int) or isinstance(rounds, bool) or rounds < 1:
        raise TrainingInvalid(f"rounds is {rounds!r}, not a number of trees", hint=f"rounds={ROUNDS}, say")
    return Asked(rounds, patience, rest)


def check(job: Job, module: str, trainer: str, also: Sequence[str] = ()) -> None:
    """``module`` is the library's, and its extra's; ``also`` are further parameters that the trainer sets.

    Raises:
        ExtraMissing: the library is not installed.
        TrainingInvalid: a parameter that the trainer sets itself, or no number of rounds.
    """
    driver(module, module, f"the trainer {trainer}")
    taken = sorted(set(job.params) & {*_OURS, *also})
    if taken:
        raise TrainingInvalid(
            f"params name {', '.join(taken)}, which the trainer sets",
            hint=f"{trainer}(cpus=…), Training(seed=…) and Training(task=…) say as much",
        )
    asked(job.params)


def told(
    work: _task.Work, rounds: int, figures: Mapping[str, float], checkpoint: str, booster: Callable[[], bytes]
) -> None:
    """Report a round, and keep the booster every so many. In this order: what is kept has been reported."""
    work.report({"round": rounds, **figures})
    if rounds % KEEP_EVERY == 0:
        work.keep(checkpoint, booster())
