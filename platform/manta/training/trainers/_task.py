"""Trains in one Ray task, for frameworks that use the cores of one machine by themselves; or in several, for
those that can share the rows (:mod:`manta.training.trainers._group`).

A task holds its CPUs in the cluster's books, reports as it goes and leaves the model in the run's folder,
whole or not at all. One that died is tried again, and goes on from the checkpoint that it had left.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from manta.definitions import Function, Imported, Jax, Keras, Torch, Training
from manta.errors import TrainingInvalid, Unavailable
from manta.training import whole
from manta.training.encoder import Arrays
from manta.training.trainers import Job, Part
from manta.training.trainers._reports import REPORTS, followed, reports

TRIES = 3


@dataclass(frozen=True)
class Work:
    """What the task is told.

    Attributes:
        folder: the run's own; what is there was left by an earlier try or attempt.
        params: without references to secrets: these are resolved.
        rank: which of ``workers`` tasks it is; what the others report and keep is that of the first.
        places: of how many of the definition's workers it has the CPUs.
        meeting: where the workers meet, as their library wants to be told.
        bins: rows that all workers have in common, from which each takes the same bounds of bins.
    """

    training: Training
    params: Mapping[str, Any]
    folder: Path
    root: str
    shape: dict[str, Any]
    train: Part
    validation: Part
    rank: int = 0
    workers: int = 1
    places: int = 1
    meeting: Mapping[str, Any] = field(default_factory=dict)
    bins: Arrays | None = None

    @property
    def threads(self) -> int:
        return max(1, int(cpus_of(self.training) * self.places))

    def report(self, metrics: Mapping[str, Any]) -> None:
        if self.rank:
            return
        with (self.folder / REPORTS).open("a") as lines:
            lines.write(json.dumps(metrics) + "\n")

    def keep(self, name: str, content: bytes) -> None:
        """Write a file of the run's folder, whole or not at all."""
        if self.rank:
            return
        whole.write(self.folder / name, content)

    def kept(self, name: str) -> bytes | None:
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def reported(self, rounds: int) -> None:
        """Forget what was reported of rounds after these, which are now done again."""
        lines = reports(self.folder)[:rounds]
        self.keep(REPORTS, "".join(json.dumps(line) + "\n" for line in lines).encode())


def cpus_of(training: Training) -> float:
    assert not isinstance(training.trainer, Torch | Imported)
    return training.trainer.cpus


def gpus_of(training: Training) -> float:
    return training.trainer.gpus if isinstance(training.trainer, Function | Keras | Jax) else 0.0


def matrix(arrays: Arrays) -> np.ndarray:
    """float32 [n, C + 2·D]: the categories' indices (index 0: unknown or missing), then the numbers."""
    return np.hstack([arrays.categories.astype(np.float32), arrays.numbers])


def run(
    job: Job,
    name: str,
    train: Callable[[Work], bytes],
    rounds: int | None = None,
    environment: Mapping[str, str] | None = None,
) -> bytes:
    """What ``train`` gave, from the file ``name`` in the run's folder if it is there already.

    Args:
        train: a function of a module, called in a Ray task.
        rounds: how many reports are to be expected.
        environment: of the task's process, which then is one of its own: for libraries that look at it once,
            when they are imported.

    Raises:
        TrainingInvalid: ``train`` raised.
        Unavailable: its process died every time.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    work = begun(job)
    done = work.folder / name
    if done.exists():
        return done.read_bytes()
    cpus, gpus = cpus_of(job.training), gpus_of(job.training)
    require_room(1, cpus, gpus)
    task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=TRIES - 1, retry_exceptions=False)(execute)
    # Wherever there is room: a trial of a search has a place of its own, in which there is none.
    own = {"runtime_env": {"env_vars": dict(environment)}} if environment else {}
    placed = task.options(name=f"train {job.training.model}", scheduling_strategy="DEFAULT", **own)
    with followed(job, work.folder, rounds):
        try:
            ray.get(placed.remote(train, name, work))
        except RayTaskError as error:
            raise failed(job, error) from error
        except RayError as error:
            raise died(error) from error
    return done.read_bytes()


def begun(job: Job) -> Work:
    """The work with all of the rows, in a folder that is there."""
    folder = job.folder / job.run_key
    folder.mkdir(parents=True, exist_ok=True)
    return Work(job.training, job.params, folder, str(job.root), job.shape, job.train, job.validation)


def failed(job: Job, error: Any) -> TrainingInvalid:
    """That the code of the task raised."""
    cause = error.cause or error
    if isinstance(cause, TrainingInvalid):
        return cause
    return TrainingInvalid(
        f"{job.training.trainer.kind} failed: {type(cause).__name__}: {cause}",
        hint="the run's log has the traceback; params are handed on as they are",
    )


def died(error: Exception) -> Unavailable:
    return Unavailable(
        f"the training's process died {TRIES} times: {error}",
        hint="out of memory? a larger machine, or fewer examples",
    )


def execute(train: Callable[[Work], bytes], name: str, work: Work) -> None:
    """In the task."""
    from manta.output import guard_thread
    from manta.secrets import redacted, redactor, references, resolve

    if work.root not in sys.path and Path(work.root).is_dir():
        sys.path.insert(0, work.root)
    os.environ["OMP_NUM_THREADS"] = str(work.threads)
    random.seed(work.training.seed)
    np.random.seed(work.training.seed)
    if references(dict(work.params)):
        # Read here and not before, so that Ray and MLflow are only ever given their names.
        work = replace(work, params=resolve(dict(work.params)))
        guard_thread()
    try:
        work.keep(name, train(work))
    except TrainingInvalid:
        raise
    except Exception as error:
        if redactor:
            raise redacted(error) from None  # Ray writes it down, in files of its own
        raise


def require_room(workers: int, cpus: float, gpus: float = 0.0) -> None:
    """Raises:
    TrainingInvalid: the machines of the cluster could not hold them even if they did nothing else.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if gpus > max((node.get("GPU", 0) for node in nodes), default=0):
        raise TrainingInvalid(
            f"a training with {gpus:g} GPUs can never run here: no machine has as many",
            hint="gpus=… of the trainer that fits one machine",
        )
    machines = [node.get("CPU", 0) for node in nodes]
    if sum(int(held / cpus) for held in machines) >= workers:
        return
    if workers == 1:
        raise TrainingInvalid(
            f"a training with {cpus:g} CPUs can never run here: the largest machine has "
            f"{max(machines, default=0):g}",
            hint="cpus=… of the trainer that fits one machine, or a larger machine",
        )
    raise TrainingInvalid(
        f"{workers} workers with {cpus:g} CPUs each can never run here: the machines have "
        f"{' + '.join(f'{held:g}' for held in machines)}",
        hint="workers=… and cpus=… of the trainer that fit, or a larger cluster",
    )
