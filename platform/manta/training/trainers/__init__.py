"""Trainers: one module per framework, found by the kind that the definition names.

A trainer module has two functions:

    check(job)         raise TrainingInvalid for what can be known before anything costly
    fit(job) -> Model  train, or pick up where an earlier attempt of the same run was killed
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import numpy as np

from manta.definitions import Training
from manta.errors import TrainingInvalid
from manta.training.encoder import Arrays
from manta.training.progress import Stage

if TYPE_CHECKING:
    import onnx
    import polars as pl


@dataclass(frozen=True)
class Part:
    """Encoded rows with their labels: float32 [n], 0 or 1, or the value to predict; of a multiclass training
    int64 [n], the class's index."""

    arrays: Arrays
    labels: np.ndarray


@dataclass(frozen=True)
class Job:
    """All that a trainer needs.

    Attributes:
        run_key: the same for every attempt of a run.
        folder: where it keeps checkpoints; every machine of the cluster sees it.
        root: the project folder.
        params: the definition's, with what the submitter overrode.
        shape: of the input, see :class:`manta.models.encoding.Encoding`; and ``outputs``, the logits per row.
        meanwhile: to be called in a thread while the trainer waits for others; loads what is needed next.
    """

    run_key: str
    folder: Path
    root: Path
    training: Training
    params: Mapping[str, Any]
    shape: dict[str, Any]
    train: Part
    validation: Part
    stage: Stage
    meanwhile: Callable[[], None] = lambda: None


class Model(Protocol):
    """What a training made.

    Attributes:
        reports: what the loop reported, in order.
    """

    reports: list[dict[str, Any]]

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        """What the framework itself answers: float32 [n], of a regression the values; of a multiclass
        training float32 [n, k]."""
        ...

    def graph(self) -> onnx.ModelProto:
        """``categories`` int64 [n, C], ``numbers`` float32 [n, 2·D] → ``logits`` float32 [n], or [n, k] when
        ``outputs`` is k. What is put after it: :func:`manta.training.tasks.answers`."""
        ...

    def files(self) -> dict[str, bytes]:
        """What else belongs into the package, by name."""
        ...


@runtime_checkable
class RawModel(Protocol):
    """What takes features as they are, and not encoded: a model that was made elsewhere.

    Attributes:
        reports: empty.
    """

    reports: list[dict[str, Any]]

    def packaged(self, features: Mapping[str, str]) -> tuple[onnx.ModelProto, dict[str, str]]:
        """A package's graph and its inputs; ``features`` maps each to "string", "int64", "bool", "float32"
        or "list".

        Raises:
            ModelRefused: it takes what is no feature.
        """
        ...

    def answers(self, rows: pl.DataFrame) -> np.ndarray:
        """The probabilities as the framework itself computes them of raw features, [n]."""
        ...

    def files(self) -> dict[str, bytes]:
        """What else belongs into the package, by name."""
        ...


class Trainer(Protocol):
    def check(self, job: Job) -> None: ...

    def fit(self, job: Job) -> Model | RawModel: ...


def trainer(kind: str) -> Trainer:
    """The module that trains what a definition's ``trainer.kind`` names.

    Raises:
        TrainingInvalid: there is none.
    """
    name = f"{__name__}.{kind}"
    try:
        return cast(Trainer, importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise TrainingInvalid(f"there is no trainer {kind!r}", hint=f"it would be {name}") from None
