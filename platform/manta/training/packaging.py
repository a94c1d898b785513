"""From a trained model to its package."""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manta.definitions import Training
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.ledger.context import RunContext
from manta.models import package
from manta.training import encoder, evaluate, tasks
from manta.training.data import Data
from manta.training.trainers import Model, RawModel

if TYPE_CHECKING:
    import onnx

PARITY_TOLERANCE = 1e-4  # between the framework's answers and the package's, see `tasks.unit`


def write(
    context: RunContext,
    training: Training,
    data: Data,
    model: Model | RawModel,
    example: dict[str, Any],
) -> tuple[Path, str, float]:
    """Write the package, after seeing that it computes what the framework computes.

    Args:
        example: a question that an endpoint of it can be asked.

    Returns:
        location, digest, and the largest difference that was seen, in `tasks.unit`.

    Raises:
        TrainingInvalid: it computes something else.
    """
    from manta.models.graph import OUTPUTS

    proto, inputs, files = _graph(data, model, training.task)
    graph = proto.SerializeToString(deterministic=True)
    card = {
        "model": training.model,
        "service": training.features,
        "features": context.read("features", training.features).version,
        "inputs": inputs,
        "task": training.task,
        **({"classes": data.classes} if data.classes else {}),
        "output": {OUTPUTS[training.task]: "float32"},
        "label": training.examples.label,
        "run": context.run_key,
        "example": example,
        "sample": _sample(data.raw["test"].select(list(inputs))),
    }
    apart = _parity(package.Package(card, graph, "", threads=2), data, model)
    difference = apart / tasks.unit(training.task, data.labels("train"))
    if not difference <= PARITY_TOLERANCE:
        raise TrainingInvalid(
            f"the packaged model differs from the trained one by {difference:.2g} "
            f"{tasks.UNIT[training.task]}; {PARITY_TOLERANCE:g} is allowed",
            hint="a module whose forward branches on values is not kept by ONNX",
        )
    folder = context.settings.home / "models" / context.run.project / training.model
    location, digest = package.write(folder, {package.GRAPH: graph, **files, **model.files()}, card)
    return location, digest, difference


def _sample(rows: pl.DataFrame) -> dict[str, Any]:
    """What the model takes, of the first held-out row that has it all: MLflow's input example."""
    whole = rows.filter(pl.all_horizontal(pl.all().is_not_null()))
    (row,) = (whole if whole.height else rows).head(1).to_dicts()
    return {name: _finite(value) for name, value in row.items()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _graph(
    data: Data, model: Model | RawModel, task: Task
) -> tuple[onnx.ModelProto, dict[str, str], dict[str, bytes]]:
    """The graph that answers requests, its inputs, and the files that explain it."""
    if isinstance(model, RawModel):
        graph, inputs = model.packaged({name: _kind(of) for name, of in data.raw["train"].schema.items()})
        return graph, inputs, {}
    from manta.models.graph import raw_graph

    encoding = json.dumps(data.encoding.to_json(), sort_keys=True).encode()
    graph = raw_graph(data.encoding, model.graph(), task, data.shape["outputs"])
    return graph, data.encoding.inputs, {"encoding.json": encoding}


def _kind(of: pl.DataType) -> str:
    if of == pl.String:
        return "string"
    if of.is_nested():
        return "list"
    return "bool" if of == pl.Boolean else "int64" if of.is_integer() else "float32"


def _parity(packaged: package.Package, data: Data, model: Model | RawModel) -> float:
    """The largest difference over the held-out rows, one of missing values, and one of values never seen.

    Raises:
        TrainingInvalid: a model that was made elsewhere gives no probabilities, or fails on such rows.
    """
    held = data.raw["test"]
    odd = held.head(2).with_row_index("__odd")
    for name, kind in packaged.inputs.items():
        strange: Any = "\x00never seen" if kind == "string" else None
        value = pl.when(pl.col("__odd") == 0).then(None).otherwise(pl.lit(strange))
        odd = odd.with_columns(value.cast(held.schema[name]).alias(name))
    rows = pl.concat([held, odd.drop("__odd")])
    if isinstance(model, RawModel):
        theirs = model.answers(rows)
        if not (np.min(theirs) >= 0 and np.max(theirs) <= 1):
            raise TrainingInvalid(
                f"the model answers from {np.min(theirs):.3g} to {np.max(theirs):.3g}, and not probabilities",
                hint="export it with its last layer, a sigmoid or softmax",
            )
    else:
        theirs = model.probabilities(encoder.encode(data.encoding, rows))
    ours = evaluate.predict(packaged, rows)
    return float(np.max(np.abs(ours.astype(np.float64) - theirs)))
