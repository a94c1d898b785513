"""Does the same to many things in parallel Ray tasks, through Ray Data."""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from manta.errors import MantaError, Unavailable

TASK_TRIES = 3  # after a worker or a node died; Ray Data's own default is to try for ever
BLOCKS_PER_CPU = 4


def cpus() -> int:
    """The CPUs of the cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def each(
    function: Callable[[Any], Any], items: Sequence[Any], *, tasks: int | None = None
) -> Iterator[tuple[int, Any]]:
    """Gives ``(index, function(item))`` for every item, as they are ready.

    At most ``tasks`` Ray tasks do it. A process that has not worked for this run before spends a second or
    two on imports: small work is better done by few.

    Raises:
        MantaError: as ``function`` raised it; the items not begun by then are given up.
        Unavailable: the process that worked on an item died, every time it was tried.
    """
    if not items:
        return
    import ray.data
    from ray.exceptions import RayError, RayTaskError

    _quiet()
    rows = [{"index": index, "item": pickle.dumps(item)} for index, item in enumerate(items)]
    with warnings.catch_warnings():
        # Ray 2.60 warns of `max_retries`, and has no other name for it.
        warnings.simplefilter("ignore")
        outcomes = ray.data.from_items(
            rows,
            # Ray Data's own number of blocks is made for big clusters.
            override_num_blocks=min(len(items), tasks or len(items), BLOCKS_PER_CPU * cpus()),
        ).map_batches(
            partial(_outcomes, function),
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=1,
            max_retries=TASK_TRIES - 1,
        )
    try:
        for row in outcomes.iter_rows():
            value = pickle.loads(row["outcome"])
            if isinstance(value, MantaError):
                raise value
            yield row["index"], value
    except RayTaskError:
        raise  # an error that nobody expected: its traceback is what helps
    except RayError as error:
        raise Unavailable(
            f"a process at work on the cluster died, {TASK_TRIES} times: {error}",
            hint="it was out of memory, or a library crashed: see the end of the run's log, and Ray's",
        ) from error


def _outcomes(function: Callable[[Any], Any], batch: pa.Table) -> pa.Table:
    # An expected error travels as a value: raised in the task, it would come back wrapped, and printed.
    done: dict[str, list[Any]] = {"index": [], "outcome": []}
    for row in batch.to_pylist():
        try:
            value = function(pickle.loads(row["item"]))
        except MantaError as error:
            value = error
        done["index"].append(row["index"])
        done["outcome"].append(pickle.dumps(value))
        if isinstance(value, MantaError):
            break
    return pa.table(done, schema=pa.schema({"index": pa.int64(), "outcome": pa.large_binary()}))


def _quiet() -> None:
    """No progress bars and no chatter: what a run has to tell goes through its context."""
    from ray.data import DataContext

    settings = DataContext.get_current()
    settings.enable_progress_bars = False
    settings.print_on_execution_start = False
    settings.enable_auto_log_stats = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
