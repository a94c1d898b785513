"""A model package, a manifest and an online store, small and real, made without Feast and without training.

The probability is `sigmoid(bias + rating / 10 + far)`, where a missing rating counts as nothing: versions
differ by their bias, so that an answer tells which one gave it. A regression answers what is in the brackets,
x; of the three classes of a multiclass model the logits are x, 0 and -x.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from manta.definitions import Endpoint
from manta.features.stores.sqlite import create_table, quoted, seconds_kept, writable
from manta.features.wire import key_encoder, value_encoder
from manta.models import package
from manta.serving import core
from manta.serving.door import Door

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
ENDPOINT = Endpoint(name="trips", model="trip", features="trip_v1", max_rows=1000, threshold=0.5)
KEYS: dict[str, Any] = {
    "driver": "ann",
    "zone": 7,
    "asked_at": "2026-01-02T12:30:00Z",
    "distance": 2.0,
    "urgent": False,
}
# What an on-demand function is: plain Python in the project. It also tells on whoever runs it.
ON_DEMAND = """
import os, sys

def asked(columns):
    heavy = ",".join(name for name in ("feast", "mlflow", "torch", "polars") if name in sys.modules)
    return {
        "far": [None if d is None else float(d > 100) for d in columns["distance"]],
        "hour": [None if at is None else at.hour for at in columns["asked_at"]],
        "engines": [heavy] * len(columns["distance"]),
        "process": [os.getpid()] * len(columns["distance"]),
    }
"""
CLASSES = ("far", "near", "nowhere")
INPUTS = {"rating": "float32", "city": "string", "far": "float32"}


def probability(bias: float, rating: float = 0.0, far: float = 0.0) -> float:
    return 1 / (1 + math.exp(-(bias + rating / 10 + far)))


def write_package(
    folder: Path, bias: float, inputs: Mapping[str, str] = INPUTS, task: str = "binary"
) -> tuple[str, str]:
    """Location and digest of a version."""
    nodes, terms = [], ["bias"]
    for name, kind in inputs.items():
        if kind == "float32":
            nodes += [
                helper.make_node("IsNaN", [name], [f"{name}/nan"]),
                helper.make_node("Where", [f"{name}/nan", "zero", name], [f"{name}/known"]),
                helper.make_node("Mul", [f"{name}/known", f"{name}/weight"], [f"{name}/term"]),
            ]
            terms.append(f"{name}/term")
    nodes += [
        helper.make_node("Sum", terms, ["logit"]),
        *{
            "binary": [helper.make_node("Sigmoid", ["logit"], ["probability"])],
            "regression": [helper.make_node("Identity", ["logit"], ["prediction"])],
            "multiclass": [
                helper.make_node("Unsqueeze", ["logit", "one"], ["column"]),
                helper.make_node("Mul", ["column", "ways"], ["logits"]),
                helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
            ],
        }[task],
    ]
    output, shape = {
        "binary": ("probability", ["n"]),
        "regression": ("prediction", ["n"]),
        "multiclass": ("probabilities", ["n", 3]),
    }[task]
    weights = {"bias": bias, "zero": 0.0} | {f"{n}/weight": 0.1 if n == "rating" else 1.0 for n in inputs}
    graph = helper.make_graph(
        nodes,
        "trip",
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT if kind == "float32" else TensorProto.STRING, ["n"]
            )
            for name, kind in inputs.items()
        ],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
        initializer=[
            *(helper.make_tensor(name, TensorProto.FLOAT, [], [value]) for name, value in weights.items()),
            helper.make_tensor("one", TensorProto.INT64, [1], [1]),
            helper.make_tensor("ways", TensorProto.FLOAT, [1, 3], [1.0, 0.0, -1.0]),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    card: dict[str, Any] = {"model": "trip", "inputs": dict(inputs), "bias": bias}
    if task != "binary":  # cards did not say so before there were other tasks
        card |= {"task": task} | ({"classes": CLASSES} if task == "multiclass" else {})
    location, digest = package.write(folder, {package.GRAPH: model.SerializeToString()}, card)
    return str(location), digest


def write_project(root: Path) -> None:
    (root / "tiny_trips").mkdir(parents=True, exist_ok=True)
    (root / "tiny_trips" / "request.py").write_text(ON_DEMAND)


def write_manifest(path: Path, store: Path) -> str:
    """The service `trip_v1`: drivers' ratings, which hold for an hour, zones' prices, which hold for good,
    and what the request itself says."""

    def view(name: str, key: str, key_type: str, ttl: float, features: Mapping[str, str]) -> dict[str, Any]:
        return {
            "name": name,
            "table": f"test_{name}",
            "dataset": name,
            "time": "at",
            "created": "",
            "ttl_seconds": ttl,
            "keys": [{"column": key, "join_key": key, "type": key_type}],
            "features": [{"name": n, "type": kind, "column": n} for n, kind in features.items()],
        }

    views = [
        view("drivers", "driver", "string", 3600.0, {"rating": "float32", "city": "string"}),
        view("zones", "zone", "int64", 0.0, {"price": "int64", "opened": "timestamp"}),
    ]
    made = {"far": "float32", "hour": "int64", "engines": "string", "process": "int64"}
    asked = {
        "name": "asked",
        "function": "tiny_trips.request:asked",
        "code": "1",
        "singleton": False,
        "inputs": [],
        "request": {"asked_at": "timestamp", "distance": "float64", "urgent": "bool"},
        "features": made,
    }
    body = {
        "name": "trip_v1",
        "project": "test",
        "store": {"kind": "sqlite", "path": str(store)},
        "views": views,
        "on_demand": [asked],
        "features": [
            *([v["name"], f["name"]] for v in views for f in v["features"]),
            *(["asked", name] for name in made),
        ],
    }
    path.write_text(json.dumps({"format": 1, "service": body}))
    return str(path)


def write_store(path: Path) -> None:
    """Driver `ann` with a rating of 5 and zone 7, at noon."""
    held: list[tuple[str, str, str, Any, dict[str, tuple[str, Any]]]] = [
        ("test_drivers", "driver", "string", "ann", {"rating": ("float32", 5.0), "city": ("string", "Ulm")}),
        ("test_zones", "zone", "int64", 7, {"price": ("int64", 12), "opened": ("timestamp", NOON)}),
    ]
    with writable(str(path)) as connection:
        for table, key, kind, value, features in held:
            create_table(connection, table)
            encoded = key_encoder([(key, kind)])([value])
            for name, (type_name, feature) in features.items():
                connection.execute(
                    f"INSERT OR REPLACE INTO {quoted(table)} (entity_key, feature_name, value, event_ts) "
                    "VALUES (?, ?, ?, ?)",
                    (encoded, name, value_encoder(type_name)(feature), seconds_kept(NOON)),
                )


def write_all(root: Path, bias: float = 0.0, version: str = "1") -> dict[str, str]:
    """A project folder with everything; what a replica is configured with."""
    root.mkdir(parents=True, exist_ok=True)
    write_project(root)
    write_store(root / "online.db")
    return config(root, bias, version)


@contextmanager
def opened(root: Path, bias: float, version: str) -> Iterator[Door]:
    """The door of an endpoint that serves it, and the project's own code to be imported meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        door = Door(ENDPOINT, "test")
        door.loaded = core.load(ENDPOINT, write_all(root, bias=bias, version=version))
        yield door


def config(root: Path, bias: float, version: str, task: str = "binary") -> dict[str, str]:
    location, digest = write_package(root / "models" / "trip", bias, task=task)
    manifest = write_manifest(root / "manifest.json", root / "online.db")
    return {"version": version, "location": location, "digest": digest, "manifest": manifest}
