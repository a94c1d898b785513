"""Trains in several Ray tasks at once that share the rows and meet over a network of their library's own.

Workers that find place on one machine are one task with the threads of all of them: threads share the rows
and their sums in memory, where processes would copy the one and send each other the other.

Each has every n-th row, from a row of its own on, so that no row is in two of them and none is left out. They
start together or not at all, and when one dies the others end too: all of them are started again, and go on
from the checkpoint that the first of them had left.

Plain tasks in a placement group, not Ray Train: boosted trees take nothing from its controller (their
checkpoints are rounds in the run's folder), which costs more to start than a small training takes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np

from manta.errors import TrainingInvalid, Unavailable
from manta.training.encoder import Arrays
from manta.training.trainers import Job, Part, _task
from manta.training.trainers._reports import followed

log = logging.getLogger(__name__)

START_SECONDS = 180.0  # for all of them to be placed
# After one of them has failed: the others see that their peer is gone, or are ended.
GRACE_SECONDS = 20.0

Meeting = Callable[[int], AbstractContextManager[Mapping[str, Any]]]
Dealing = Callable[[_task.Work, int, int], _task.Work]


class NotMet(Exception):
    """The workers could not be connected, through no fault of the training: they are to be tried again."""


def share(part: Part, rank: int, workers: int) -> Part:
    """Every ``workers``-th row, from row ``rank`` on: each row is in exactly one share."""
    if workers == 1:
        return part
    rows = np.arange(rank, len(part.labels), workers)
    return Part(part.arrays.take(rows), part.labels[rows])


def shares(whole: _task.Work, rank: int, workers: int) -> _task.Work:
    """A share of the training rows and of the validation rows."""
    return replace(
        whole, train=share(whole.train, rank, workers), validation=share(whole.validation, rank, workers)
    )


def together(machines: Sequence[str]) -> list[list[int]]:
    """The places on each machine, by the first of them; ``machines`` names that of each place."""
    found: dict[str, list[int]] = {}
    for place, machine in enumerate(machines):
        found.setdefault(machine, []).append(place)
    return list(found.values())


def run(
    job: Job,
    name: str,
    train: Callable[[_task.Work], bytes],
    workers: int,
    meeting: Meeting,
    rounds: int | None = None,
    deal: Dealing = shares,
    bins: Arrays | None = None,
    grace: float = GRACE_SECONDS,
) -> bytes:
    """What ``train`` gave in the first of the tasks, from the file ``name`` in the run's folder if it is
    there already.

    Args:
        train: a function of a module, called in each task with its share of the rows.
        meeting: ``with meeting(workers) as told``: where they meet, for the time of one try.
        rounds: how many reports are to be expected.
        deal: ``deal(whole, rank, workers)`` gives a task its rows.
        bins: what all tasks get besides.
        grace: seconds that the others have to end, when one has failed.

    Raises:
        TrainingInvalid: ``train`` raised; or fewer rows than workers, or more workers than the cluster holds.
        Unavailable: no room for all of them, or their processes died every time.
    """
    whole = _task.begun(job)
    done = whole.folder / name
    if done.exists():
        return done.read_bytes()
    cpus = _task.cpus_of(job.training)
    _task.require_room(workers, cpus)
    _require_rows(job, workers)
    with followed(job, whole.folder, rounds), _Places(workers, cpus, grace) as places:
        tasks = len(places.of_each)
        dealt = [deal(whole, rank, tasks) for rank in range(tasks)]
        works = places.put(dealt, bins if tasks > 1 else None)
        for tries_left in reversed(range(_task.TRIES)):
            with meeting(tasks) if tasks > 1 else nullcontext({}) as told:
                errors = places.tried(job, train, name, works, told)
            if not errors:
                return done.read_bytes()
            _judge(job, errors, tries_left)
    raise AssertionError("the last try returns or raises")


def _require_rows(job: Job, workers: int) -> None:
    fewest = min(len(job.train.labels), len(job.validation.labels))
    if fewest < workers:
        raise TrainingInvalid(
            f"{fewest} rows cannot be shared by {workers} workers", hint="fewer workers, or more examples"
        )


def _judge(job: Job, errors: Sequence[Exception], tries_left: int) -> None:
    """Returns when they are to be tried again.

    Args:
        errors: of those that failed, the first to fail first.

    Raises:
        TrainingInvalid: none has died, and all had met: it is their code.
        Unavailable: it was the last try.
    """
    from ray.exceptions import RayTaskError

    dead = [
        error for error in errors if not isinstance(error, RayTaskError) or isinstance(error.cause, NotMet)
    ]
    if not dead:
        raise _task.failed(job, errors[0]) from errors[0]
    if not tries_left:
        raise _task.died(dead[0]) from dead[0]
    log.warning("%d of the workers died; going on from the last checkpoint: %s", len(dead), dead[0])


class _Places:
    """Room for all the workers, held together.

    Attributes:
        of_each: the places of each task.
    """

    of_each: list[list[int]]

    def __init__(self, workers: int, cpus: float, grace: float) -> None:
        self._workers, self._cpus, self._grace = workers, cpus, grace

    def __enter__(self) -> _Places:
        import ray
        from ray.util.placement_group import placement_group, placement_group_table

        self._group = placement_group([{"CPU": self._cpus}] * self._workers, strategy="PACK")
        if not self._group.wait(START_SECONDS):
            free = ray.available_resources().get("CPU", 0)
            self.__exit__()
            raise Unavailable(
                f"no room for {self._workers} workers with {self._cpus:g} CPUs each: of the cluster only "
                f"{free:g} CPUs are free",
                hint="endpoints and other runs hold the rest: stop one (`manta stop ID`), or train with less",
            )
        machines = placement_group_table(self._group)["bundles_to_node_id"]
        self.of_each = together([machines[place] for place in range(self._workers)])
        return self

    def __exit__(self, *_: object) -> None:
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._group)

    def put(self, works: Sequence[_task.Work], bins: Arrays | None) -> list[tuple[Any, Any]]:
        """Each worker's part of the work, and what is the same for all, in the object store."""
        import ray

        same = ray.put(bins)
        return [
            (ray.put(replace(work, rank=rank, workers=len(works), places=len(self.of_each[rank]))), same)
            for rank, work in enumerate(works)
        ]

    def tried(
        self,
        job: Job,
        train: Callable[[_task.Work], bytes],
        name: str,
        works: Sequence[tuple[Any, Any]],
        told: Mapping[str, Any],
    ) -> list[Exception]:
        """One try of all of them, until the last has ended. The errors of those that failed by themselves, in
        that order."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        # One that died must not be repeated by itself: its peers are gone. And the process of one that failed
        # still holds its connections to them: Ray must not give it other work.
        calls = 1 if len(works) > 1 else 0
        task = ray.remote(num_cpus=self._cpus, max_retries=0, max_calls=calls)(_member)
        waiting = [
            task.options(
                name=f"train {job.training.model} {rank}",
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, self.of_each[rank][0]),
            ).remote(train, name, work, bins, dict(told))
            for rank, (work, bins) in enumerate(works)
        ]
        errors: list[Exception] = []
        until: float | None = None
        cancelled: set[Any] = set()
        while waiting:
            ended, waiting = ray.wait(waiting, timeout=0.5)
            for each in ended:
                try:
                    ray.get(each)
                except ray.exceptions.RayError as error:
                    if each not in cancelled:
                        errors.append(error)
            if errors and until is None:
                until = time.monotonic() + self._grace
            if until is not None and time.monotonic() > until:
                for each in waiting:
                    ray.cancel(each, force=True)
                cancelled.update(waiting)
                until = time.monotonic() + GRACE_SECONDS
        return errors


def _member(
    train: Callable[[_task.Work], bytes],
    name: str,
    work: _task.Work,
    bins: Arrays | None,
    told: Mapping[str, Any],
) -> None:
    """In each of the tasks."""
    _task.execute(train, name, replace(work, meeting=told, bins=bins))
