"""What a packaged model takes to answer, seen from a process of its own; and what gates ask of a package."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import polars as pl
import pytest
from onnx import TensorProto, helper, numpy_helper

from manta.definitions import AtLeast, Gate, Invariant, Latency, Memory, Monotone, NoLeakage, Signature
from manta.errors import TrainingInvalid
from manta.models import package
from manta.models.encoding import Encoding
from manta.models.graph import OPSET, raw_graph
from manta.training import evidence, probe
from manta.training.gates import judge
from manta.training.slices import Held
from tests.unit.serving import tiny

ENCODING = Encoding(
    vocabularies={"carrier": ("UA", "AA")},
    moments={"wind": (0.0, 1.0), "hour": (0.0, 1.0)},
    types={"carrier": "string"},
)
ROWS = pl.DataFrame(
    {
        "carrier": ["UA", "AA", "HA", None] * 50,
        "wind": [None, 1.0, 2.0, 3.0] * 50,
        "hour": list(range(200)),
        "other": [None] * 200,
    },
    schema_overrides={"other": pl.String},
)
HELD = Held(ROWS, ROWS.select("hour"), "hour", np.zeros(200, dtype=np.float32))


def written(folder: Path, size: int = 1, times: int = 0) -> tuple[Path, str]:
    """A package whose logit is the carrier's index plus the wind; it holds a matrix of ``size`` squared, and
    multiplies it with itself so many ``times``."""
    matrix = numpy_helper.from_array(np.zeros((size, size), dtype=np.float32), "matrix")
    ints = [helper.make_tensor(name, TensorProto.INT64, [1], [at]) for at, name in enumerate(("zero", "one"))]
    nodes = [
        helper.make_node("Cast", ["categories"], ["carrier"], to=TensorProto.FLOAT),
        helper.make_node("Slice", ["numbers", "zero", "one", "one"], ["wind"]),
        helper.make_node("Sum", ["carrier", "wind"], ["sum"]),
        helper.make_node("ReduceMax", ["sum"], ["any"], keepdims=0),
        helper.make_node("Slice", ["matrix", "zero", "one", "zero"], ["row"]),
        helper.make_node("Mul", ["matrix" if times else "row", "any"], ["turn0"]),
        *(helper.make_node("MatMul", [f"turn{at}", "matrix"], [f"turn{at + 1}"]) for at in range(times)),
        helper.make_node("ReduceMax", [f"turn{times}"], ["nothing"], keepdims=0),
        helper.make_node("Sum", ["sum", "nothing"], ["column"]),
        helper.make_node("Squeeze", ["column", "one"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", 1]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 4]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        initializer=[matrix, *ints],
    )
    module = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    whole: onnx.ModelProto = raw_graph(ENCODING, module)
    return package.write(folder, {package.GRAPH: whole.SerializeToString()}, {"inputs": ENCODING.inputs})


def measured(folder: Path, *gates: Gate, **matrix: int) -> list[Any]:
    location, digest = written(folder, **matrix)
    held = package.load(location, digest)
    before = held.predict(ROWS.select(list(held.inputs)).to_dict(as_series=False))
    types = {"carrier": "string", "wind": "float64", "hour": "int64"}
    found = evidence.gather(gates, HELD, before, held, location, types, {}, {})
    return judge(gates, {}, None, None, found)


def test_a_small_package_passes_generous_bounds(tmp_path: Path) -> None:
    gates = (Latency(p95_ms=5_000), Memory(mb=4_000), Signature(), NoLeakage())
    fast, small, signature, leakage = measured(tmp_path, *gates)
    assert fast.passed
    assert fast.value > 0
    assert small.passed
    assert small.value > 10, "Python alone takes more"
    assert signature.passed
    assert not leakage.passed
    assert "made elsewhere" in str(leakage)


def test_a_slow_and_a_large_package_fail(tmp_path: Path) -> None:
    (slow,) = measured(tmp_path, Latency(p95_ms=0.2), size=256, times=2)
    assert not slow.passed
    assert slow.value > 0.2
    few, many = (
        measured(tmp_path, Memory(mb=100), size=size)[0]
        for size in (1, 5_000)  # 5,000² numbers: 95 MiB
    )
    assert many.value > few.value + 90
    assert not many.passed
    assert "memory <= 100 MiB" in str(many)


def test_what_cannot_be_measured_is_told(tmp_path: Path) -> None:
    location, digest = written(tmp_path)
    asked = evidence.requests(package.load(location), ROWS, 1)
    told = probe.measure(location, "0" * 64, asked)
    assert isinstance(told, str)
    assert "is not the one that was registered" in told
    assert isinstance(probe.measure(location, digest, [{"carrier": ["UA"]}]), str)
    late = probe.measure(location, digest, asked, timeout=0.01)
    assert isinstance(late, str)
    assert "after 0.01 s" in late


def test_the_process_loads_the_package_alone() -> None:
    modules = "manta.training.probe, manta.models.package"
    script = f"import sys, {modules}; print(list(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    for name in ("ray", "polars", "mlflow", "torch", "sklearn", "pydantic"):
        assert f"'{name}'" not in loaded


def test_requests_are_of_so_many_rows_and_begin_again(tmp_path: Path) -> None:
    held = package.load(written(tmp_path)[0])
    asked = evidence.requests(held, ROWS, 150)
    assert {len(each["wind"]) for each in asked} == {150}
    assert set(asked[0]) == {"carrier", "wind", "hour"}
    assert len(asked) == evidence.ASKED_REQUESTS
    assert len(evidence.requests(held, ROWS, 100_000)) == 1
    assert json.dumps(asked)


def sigmoid(values: list[float]) -> np.ndarray:
    return 1 / (1 + np.exp(-np.array(values)))


def test_an_altered_feature_moves_predictions_by_what_the_model_makes_of_it(tmp_path: Path) -> None:
    gates = (
        Invariant("carrier", at_most=0.9, values=("UA", None)),
        Invariant("hour", at_most=0.001),
        Monotone("wind", "up", step=1.5),
        Monotone("wind", "down", step=1.5),
        Monotone("hour", "down", step=3),
    )
    any_carrier, hour, up, down, flat = measured(tmp_path, *gates)
    # HA and None are index 0, UA 1, AA 2: the furthest is UA, of which the wind is missing, set to None.
    assert any_carrier.value == pytest.approx(sigmoid([1])[0] - sigmoid([0])[0], abs=1e-5)
    assert (hour.value, hour.passed) == (0, True)
    assert (up.value, up.passed) == (1, True)
    assert (down.value, down.passed) == (0, False)
    assert flat.passed
    location, digest = written(tmp_path)
    held = package.load(location, digest)
    before = held.predict(ROWS.select(list(held.inputs)).to_dict(as_series=False))
    found = evidence.gather(gates, HELD, before, held, location, {}, {}, {}).measured[2]
    assert isinstance(found, evidence.Altered)
    wind = ROWS.filter(pl.col("wind").is_not_null())
    base = wind["wind"].to_numpy() + np.tile([2, 0, 0], 50)
    assert found.change == pytest.approx(sigmoid(list(base + 1.5)) - sigmoid(list(base)), abs=1e-6)


@pytest.mark.parametrize(
    ("gate", "match"),
    [
        (AtLeast("roc_auc", 0.5, by="cloud"), "cloud"),
        (Invariant("cloud", at_most=0.1), "'cloud', which is not a feature"),
        (Invariant("carrier", at_most=0.1, values=(3,)), "names 3, and carrier is of type String"),
        (Invariant("wind", at_most=0.1, values=("much",)), "names 'much', and wind"),
        (Invariant("hour", at_most=0.1, values=(True,)), "names True"),
        (Monotone("carrier", "up", step=1), "needs a number, and carrier is a category"),
        (Monotone("other", "up", step=1), "of type String"),
    ],
)
def test_a_gate_that_cannot_be_asked_is_refused_before_the_training(gate: Gate, match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        evidence.check([gate], HELD, ["carrier"])
    assert error.value.hint


def test_gates_that_can_be_asked() -> None:
    gates = (
        Invariant("carrier", at_most=0.1, values=("UA", None)),
        Invariant("wind", at_most=0.1, values=(3, 2.5, None)),
        Monotone("hour", "up", step=1),
        AtLeast("roc_auc", 0.5, by="carrier"),
    )
    evidence.check(gates, HELD, ["carrier"])


def test_of_several_classes_the_one_that_moves_most_counts(tmp_path: Path) -> None:
    location, digest = tiny.write_package(tmp_path, 0.0, task="multiclass")
    held = package.load(location, digest)
    features = pl.DataFrame({"rating": [0.0, 5.0, -20.0], "city": ["a", None, "b"], "far": [0.0] * 3})
    rows = Held(features, features, "at", np.array([0, 2, 1]), "multiclass", tiny.CLASSES)
    before = held.predict(features.to_dict(as_series=False))
    gates = (Invariant("far", at_most=0.5, values=(1.0, -0.5)), Invariant("city", at_most=0.1))
    found = evidence.gather(gates, rows, before, held, Path(location), {}, {}, {})

    def softmax(x: float) -> np.ndarray:
        raised = np.exp([x, 0.0, -x])
        return raised / raised.sum()

    far, city = found.measured[0], found.measured[1]
    assert isinstance(far, evidence.Altered)
    assert isinstance(city, evidence.Altered)
    moved = [softmax(x + 1) - softmax(x) for x in (0.0, 0.5, -2.0)]
    assert far.change == pytest.approx([each[np.abs(each).argmax()] for each in moved], abs=1e-6)
    assert not city.change.any()
    results = judge(gates, {}, None, None, found)
    assert results[0].value == pytest.approx(max(np.abs(moved).max(axis=1)), abs=1e-6)


def test_numbers_that_differ_by_their_last_digits_alone_have_not_moved(tmp_path: Path) -> None:
    location, digest = tiny.write_package(tmp_path, 30_000.0, task="regression")
    held = package.load(location, digest)
    features = pl.DataFrame({"rating": [0.0, 5.0], "city": ["a", None], "far": [0.0, 0.0]})
    rows = Held(features, features, "at", np.array([30_000, 30_001], dtype=np.float32), "regression")
    before = held.predict(features.to_dict(as_series=False))
    gates = tuple(Monotone("far", "down", step=step, share=1) for step in (0.002, 1.0))
    found = evidence.gather(gates, rows, before, held, Path(location), {}, {}, {})
    assert [result.passed for result in judge(gates, {}, None, None, found)] == [True, False]
