"""Trains in one Ray task: for frameworks that use the cores of one machine by themselves.

The task holds its CPUs in the cluster's books, reports as it goes and leaves the model in the run's folder,
whole or not at all. One that died is tried again, and goes on from the checkpoint that it had left.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from manta.definitions import Imported, Torch, Training
from manta.errors import TrainingInvalid, Unavailable
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
    """

    training: Training
    params: Mapping[str, Any]
    folder: Path
    root: str
    shape: dict[str, Any]
    train: Part
    validation: Part

    @property
    def threads(self) -> int:
        return max(1, int(cpus_of(self.training)))

    def report(self, metrics: Mapping[str, Any]) -> None:
        with (self.folder / REPORTS).open("a") as lines:
            lines.write(json.dumps(metrics) + "\n")

    def keep(self, name: str, content: bytes) -> None:
        """Write a file of the run's folder, whole or not at all."""
        part = self.folder / f".{name}.part"
        part.write_bytes(content)
        part.replace(self.folder / name)

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


def matrix(arrays: Arrays) -> np.ndarray:
    """float32 [n, C + 2·D]: the categories' indices (index 0: unknown or missing), then the numbers."""
    return np.hstack([arrays.categories.astype(np.float32), arrays.numbers])


def run(job: Job, name: str, train: Callable[[Work], bytes], rounds: int | None = None) -> bytes:
    """What ``train`` gave, from the file ``name`` in the run's folder if it is there already.

    Args:
        train: a function of a module, called in a Ray task.
        rounds: how many reports are to be expected.

    Raises:
        TrainingInvalid: ``train`` raised.
        Unavailable: its process died every time.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    folder = job.folder / job.run_key
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / name
    if done.exists():
        return done.read_bytes()
    cpus = cpus_of(job.training)
    _require_room(cpus)
    work = Work(job.training, job.params, folder, str(job.root), job.shape, job.train, job.validation)
    task = ray.remote(num_cpus=cpus, max_retries=TRIES - 1, retry_exceptions=False)(_train)
    with followed(job, folder, rounds):
        try:
            ray.get(task.options(name=f"train {job.training.model}").remote(train, name, work))
        except RayTaskError as error:
            cause = error.cause or error
            if isinstance(cause, TrainingInvalid):
                raise cause from None
            raise TrainingInvalid(
                f"{job.training.trainer.kind} failed: {type(cause).__name__}: {cause}",
                hint="the run's log has the traceback; params are handed on as they are",
            ) from error
        except RayError as error:
            raise Unavailable(
                f"the training's process died {TRIES} times: {error}",
                hint="out of memory? a larger machine, or fewer examples",
            ) from error
    return done.read_bytes()


def _train(train: Callable[[Work], bytes], name: str, work: Work) -> None:
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


def _require_room(cpus: float) -> None:
    """Raises:
    TrainingInvalid: no machine of the cluster has as many CPUs.
    """
    import ray

    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if cpus > most:
        raise TrainingInvalid(
            f"a training with {cpus:g} CPUs can never run here: the largest machine has {most:g}",
            hint="cpus=… of the trainer that fits one machine, or a larger machine",
        )
