"""Does the same to many things in parallel Ray tasks.

Plain tasks, and not Ray Data: its executor begins the second task a second after the first, and needs two
actors that cost more than a small ingest.
"""

from __future__ import annotations

import ctypes
import math
import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from manta.errors import MantaError, Unavailable

TASK_TRIES = 3  # after a worker or a node died
TASKS_PER_CPU = 32  # at most: where there are many items, a task does several
AHEAD = 2  # tasks for each CPU that are under way or wait for it
# Of a process that does such tasks, before it imports Polars and Arrow, which read them once. Ray gives a
# task one CPU, and there are as many at once. Memory that is free is kept for ten seconds: what one piece
# needed, the next needs, and to have it from the system anew took a tenth of all CPU of landing a csv. What
# C libraries free is kept too, by :func:`_keep_freed`.
ENVIRONMENT = {
    "POLARS_MAX_THREADS": "2",
    "_RJEM_MALLOC_CONF": "dirty_decay_ms:10000,muzzy_decay_ms:10000",  # Polars'
    "MIMALLOC_PURGE_DELAY": "10000",  # Arrow's
}

KEPT = 256 * 2**20  # bytes
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def cpus() -> int:
    """The CPUs of the cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class Spread(Protocol):
    """:func:`each`, or another way to do the same to many things."""

    def __call__(
        self,
        function: Callable[[Any], Any],
        items: Sequence[Any],
        *,
        tasks: int | None = None,
        name: str = "",
    ) -> Iterator[tuple[int, Any]]: ...


def small(
    function: Callable[[Any], Any], items: Sequence[Any], *, tasks: int | None = None, name: str = ""
) -> Iterator[tuple[int, Any]]:
    """As :func:`each`; what one task would do is done in this process, before a task would have begun."""
    if tasks == 1:
        return ((index, function(item)) for index, item in enumerate(items))
    return each(function, items, tasks=tasks, name=name)


def each(
    function: Callable[[Any], Any], items: Sequence[Any], *, tasks: int | None = None, name: str = ""
) -> Iterator[tuple[int, Any]]:
    """Gives ``(index, function(item))`` for every item, as they are ready.

    At most ``tasks`` Ray tasks do it, which Ray's dashboard shows as ``name``. A process that has not worked
    for this run before spends a second or two on imports: small work is better done by few.

    Raises:
        MantaError: as ``function`` raised it; the items not begun by then are given up.
        Unavailable: the process that worked on an item died, every time it was tried.
    """
    if not items:
        return
    import ray
    from ray import cloudpickle
    from ray.exceptions import RayError, RayTaskError

    workers = cpus()
    size = math.ceil(len(items) / min(len(items), tasks or len(items), TASKS_PER_CPU * workers))
    waiting = iter(range(0, len(items), size))
    work = ray.remote(num_cpus=1, max_retries=TASK_TRIES - 1, scheduling_strategy="SPREAD")(_outcomes)
    work = work.options(name=name or _outcomes.__name__)
    shared = ray.put(cloudpickle.dumps(function))
    started: set[Any] = set()

    def start() -> None:
        first = next(waiting, None)
        if first is not None:
            mine = [(index, items[index]) for index in range(first, min(first + size, len(items)))]
            started.add(work.remote(shared, pickle.dumps(mine)))

    try:
        for _ in range(AHEAD * workers):
            start()
        while started:
            (ready, *_), _rest = ray.wait(list(started), num_returns=1)
            outcomes = pickle.loads(ray.get(ready))
            started.remove(ready)
            start()
            for index, value in outcomes:
                if isinstance(value, MantaError):
                    raise value
                yield index, value
    except RayTaskError:
        raise  # an error that nobody expected: its traceback is what helps
    except RayError as error:
        raise Unavailable(
            f"a process at work on the cluster died, {TASK_TRIES} times: {error}",
            hint="it was out of memory, or a library crashed: see the end of the run's log, and Ray's",
        ) from error
    finally:
        for task in started:
            ray.cancel(task)


def _outcomes(function: bytes, items: bytes) -> bytes:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _keep_freed()
    do = pickle.loads(function)
    done: list[tuple[int, Any]] = []
    for index, item in pickle.loads(items):
        # An expected error travels as a value: raised in the task, it would come back wrapped, and printed.
        try:
            done.append((index, do(item)))
        except MantaError as error:
            done.append((index, error))
            break
    # As bytes: Ray would keep the arrays in it in its own store for as long as they are used.
    return pickle.dumps(done)


def _keep_freed() -> None:
    """What C libraries free (PostgreSQL's driver above all) stays with the process, up to :data:`KEPT`."""
    # Another C library than glibc has no such setting, and does as it does.
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, KEPT)
        mallopt(_TRIM_THRESHOLD, KEPT)
