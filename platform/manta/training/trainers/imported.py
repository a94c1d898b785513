"""Takes a model that was made elsewhere, instead of fitting one.

The file lies in the platform's own storage, under its digest, since before anybody looked at it. What it may
be is said in :mod:`manta.models.formats`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import polars as pl

from manta.definitions import Imported
from manta.definitions.sources import driver
from manta.errors import NotFound, TrainingInvalid
from manta.models import boosters, foreign, formats
from manta.models.boosters import Booster
from manta.models.foreign import Graph
from manta.models.formats import File, Kind
from manta.training.trainers import Job, Model, RawModel

if TYPE_CHECKING:
    import onnx


def check(job: Job) -> None:
    """Raises:
    NotFound: no such file has been put.
    ModelRefused: it may not be loaded; or it answers one probability, and the training is not binary.
    ExtraMissing: XGBoost is not installed, and the file is of it.
    """
    _read(job)


def fit(job: Job) -> Model | RawModel:
    """Raises:
    NotFound, ModelRefused, ExtraMissing: as :func:`check`.
    """
    found = _read(job)
    if isinstance(found, Graph):
        return ImportedGraph(found)
    if isinstance(found, Booster):
        return ImportedBooster(found)
    from manta.training.trainers import torch

    return torch.of_weights(job, found.name, found.content)


def _read(job: Job) -> Graph | Booster | File:
    how = cast(Imported, job.training.trainer)
    path = job.folder.parent / "foreign" / how.sha256
    try:
        content = path.read_bytes()
    except OSError:
        raise NotFound(
            f"no model with the digest {how.sha256} has been put here",
            hint="`manta models import FILE --as TRAINING` puts it",
        ) from None
    if hashlib.sha256(content).hexdigest() != how.sha256:
        raise formats.refused(
            how.file, "has been changed since it was put here", f"remove {path}, and import it"
        )
    file = formats.examine(how.file, content)
    if file.kind is not Kind.SAFETENSORS and job.training.task != "binary":
        raise formats.refused(
            file.name,
            f"is taken for the probability of one class, and {job.training.name} is a {job.training.task} "
            "training",
            "bring the weights of a torch module as safetensors, or train it here by Function()",
        )
    if file.kind is Kind.ONNX:
        return foreign.read(file)
    if file.kind is Kind.XGBOOST:
        driver("xgboost", "xgboost")
        return boosters.read(file)
    if job.training.module is None:
        raise TrainingInvalid(
            f"{file.name} holds weights, and {job.training.name} has no module to put them into",
            hint="import it as a training of Torch, with the module that they were trained in",
        )
    return file


@dataclass
class ImportedGraph:
    """An ONNX graph."""

    graph: Graph
    reports: list[dict[str, Any]] = field(default_factory=list)

    def packaged(self, features: Mapping[str, str]) -> tuple[onnx.ModelProto, dict[str, str]]:
        wanted = {each.name: each.kind for each in self.graph.inputs}
        return self.graph.packaged(), foreign.check_features(self.graph.name, wanted, features)

    def answers(self, rows: pl.DataFrame) -> np.ndarray:
        return self.graph.answers(
            {each.name: _column(rows[each.name], each.kind) for each in self.graph.inputs}
        )

    def files(self) -> dict[str, bytes]:
        return {}


@dataclass
class ImportedBooster:
    """Trees of XGBoost."""

    booster: Booster
    reports: list[dict[str, Any]] = field(default_factory=list)

    def packaged(self, features: Mapping[str, str]) -> tuple[onnx.ModelProto, dict[str, str]]:
        wanted = dict.fromkeys(self.booster.features, "float32")
        inputs = foreign.check_features(self.booster.name, wanted, features)
        return self.booster.graph(), inputs

    def answers(self, rows: pl.DataFrame) -> np.ndarray:
        import xgboost

        names = list(self.booster.features)
        values = np.stack([_column(rows[name], "float32") for name in names], axis=1)
        values[np.isinf(values)] = np.nan
        made = xgboost.Booster(model_file=bytearray(self.booster.to_json()))
        answered: np.ndarray = made.predict(xgboost.DMatrix(values, feature_names=names))
        return answered

    def files(self) -> dict[str, bytes]:
        return {"model.json": self.booster.to_json()}


def _column(values: pl.Series, kind: str) -> np.ndarray:
    """As a graph takes it."""
    if kind == "string":
        return values.cast(pl.String).fill_null("").to_numpy().astype(object)
    if kind == "int64":
        return values.cast(pl.Int64).fill_null(0).to_numpy()
    with np.errstate(over="ignore"):
        return np.array(values.cast(pl.Float64).to_numpy(), dtype=np.float64).astype(kind)
