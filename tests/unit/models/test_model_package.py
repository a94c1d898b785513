"""The model package: whole or absent, what was registered or refused, and clear about wrong input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pyarrow as pa
import pytest
from onnx import TensorProto, helper

from manta.errors import ModelUnavailable, RequestInvalid
from manta.models import package
from manta.models.encoding import Encoding
from manta.models.graph import OPSET, raw_graph

ENCODING = Encoding(
    vocabularies={"carrier": ("UA", "AA"), "month": ("1", "2"), "rain": ("true",)},
    moments={"wind": (10.0, 5.0)},
    types={"carrier": "string", "month": "int64", "rain": "bool"},
)
CARD = {"model": "delay", "inputs": ENCODING.inputs, "run": "test-1"}


def adding() -> onnx.ModelProto:
    """A module whose logit is the sum of all that it is given."""
    nodes = [
        helper.make_node("Cast", ["categories"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["floats", "numbers"], ["all"], axis=1),
        helper.make_node("ReduceSum", ["all", "axis"], ["logits"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "adding",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", 3]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 2]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        initializer=[helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


GRAPH = raw_graph(ENCODING, adding()).SerializeToString(deterministic=True)
FILES = {package.GRAPH: GRAPH, "extra.txt": b"more"}
ROW: dict[str, Any] = {"carrier": ["AA"], "month": [2], "rain": [True], "wind": [20.0]}


def sigmoid(logit: float) -> float:
    return float(1 / (1 + np.exp(-logit)))


@pytest.fixture
def held(tmp_path: Path) -> tuple[Path, str]:
    return package.write(tmp_path / "delay", FILES, CARD)


def test_written_loaded_and_answering(held: tuple[Path, str]) -> None:
    loaded = package.load(str(held[0]), held[1])
    assert loaded.inputs == {"carrier": "string", "month": "int64", "rain": "bool", "wind": "float32"}
    assert loaded.card["model"] == "delay"
    assert loaded.predict(ROW) == pytest.approx([sigmoid(2 + 2 + 1 + 2)], rel=1e-6)


def test_writing_the_same_again_changes_nothing(held: tuple[Path, str], tmp_path: Path) -> None:
    stamp = (held[0] / package.GRAPH).stat().st_mtime_ns
    assert package.write(tmp_path / "delay", FILES, CARD) == held
    assert (held[0] / package.GRAPH).stat().st_mtime_ns == stamp
    assert [path.name for path in (tmp_path / "delay").iterdir()] == [held[0].name]


def test_another_run_makes_another_package(held: tuple[Path, str], tmp_path: Path) -> None:
    assert package.write(tmp_path / "delay", FILES, CARD | {"run": "test-2"})[1] != held[1]


@pytest.mark.parametrize(
    ("name", "match"),
    [
        (package.GRAPH, "has been changed"),
        ("extra.txt", "has been changed"),
        (package.CARD, "not the one that was"),
    ],
)
def test_a_changed_file_is_refused(held: tuple[Path, str], name: str, match: str) -> None:
    path = held[0] / name
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ModelUnavailable, match=match):
        package.load(held[0], held[1])


def test_a_byte_changed_anywhere_is_refused(held: tuple[Path, str]) -> None:
    for path in sorted(held[0].iterdir()):
        whole = path.read_bytes()
        for at in {0, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ModelUnavailable):
                package.load(*held)
        path.write_bytes(whole)
    assert package.load(*held).predict(ROW).shape == (1,)


def test_changed_files_are_refused_even_without_a_digest(held: tuple[Path, str]) -> None:
    (held[0] / package.GRAPH).write_bytes(b"")
    with pytest.raises(ModelUnavailable, match="has been changed"):
        package.load(held[0])


@pytest.mark.parametrize("name", [package.GRAPH, package.CARD])
def test_a_missing_file_is_refused(held: tuple[Path, str], name: str) -> None:
    (held[0] / name).unlink()
    with pytest.raises(ModelUnavailable, match="holds no model package"):
        package.load(held[0], None)


def test_no_folder_and_no_graph(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable):
        package.load(tmp_path / "nothing")
    location, digest = package.write(tmp_path, {package.GRAPH: b"no graph"}, CARD)
    with pytest.raises(ModelUnavailable, match="onnxruntime"):
        package.load(location, digest)


def test_a_later_format_is_refused(tmp_path: Path, held: tuple[Path, str]) -> None:
    path = held[0] / package.CARD
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 2}))
    with pytest.raises(ModelUnavailable, match="format 2"):
        package.load(held[0])


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("wind", [None]),
        ("wind", [float("nan")]),
        ("wind", [float("inf")]),
        ("wind", [1e300]),
        ("wind", np.array([np.nan])),
        ("wind", pa.array([None], pa.float64())),
        ("wind", pa.array([None], pa.int64())),
        ("carrier", [None]),
        ("carrier", [""]),
        ("carrier", ["never seen"]),
        ("carrier", [float("nan")]),
        ("carrier", pa.array([None], pa.string())),
        ("month", [None]),
        ("month", [99]),
        ("month", pa.array([None], pa.int64())),
        ("rain", [None]),
        ("rain", pa.array([None], pa.bool_())),
    ],
)
def test_missing_and_unknown_values(held: tuple[Path, str], name: str, values: Any) -> None:
    gone = {
        "wind": sigmoid(5 + 1),
        "carrier": sigmoid(7 - 2),
        "month": sigmoid(7 - 2),
        "rain": sigmoid(7 - 1),
    }
    assert package.load(*held).predict(ROW | {name: values}) == pytest.approx([gone[name]], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("wind", [20]),
        ("wind", np.array([20], dtype=np.int64)),
        ("wind", np.array([20.0], dtype=np.float32)),
        ("wind", pa.array([20.0])),
        ("carrier", np.array(["AA"])),
        ("carrier", np.array(["AA"], dtype=object)),
        ("carrier", pa.array(["AA"])),
        ("month", np.array([2])),
        ("month", pa.array([2])),
        ("rain", np.array([True])),
        ("rain", pa.array([True])),
    ],
)
def test_lists_numpy_and_arrow_mean_the_same(held: tuple[Path, str], name: str, values: Any) -> None:
    assert package.load(*held).predict(ROW | {name: values}) == pytest.approx([sigmoid(7)], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("wind", ["20"]),
        ("wind", [None, "20"]),
        ("wind", [[20.0]]),
        ("wind", [[20.0], 1.0]),
        ("wind", [{}]),
        ("wind", 20.0),
        ("carrier", [5]),
        ("carrier", [True]),
        ("carrier", [["AA"]]),
        ("month", ["2"]),
        ("month", [2.0]),
        ("month", [True]),
        ("rain", ["true"]),
        ("rain", [1]),
    ],
)
def test_a_wrong_type_names_its_field(held: tuple[Path, str], name: str, values: Any) -> None:
    count = len(values) if isinstance(values, list) else 1
    rows = {column: given * count for column, given in ROW.items()}
    with pytest.raises(RequestInvalid, match=f"^{name}: expected") as error:
        package.load(*held).predict(rows | {name: values})
    assert error.value.detail["fields"] == [name]


def test_missing_columns_are_all_named(held: tuple[Path, str]) -> None:
    with pytest.raises(RequestInvalid, match="missing: month, wind") as error:
        package.load(*held).predict({"carrier": ["UA"], "rain": [True]})
    assert error.value.detail["fields"] == ["month", "wind"]


def test_columns_of_different_lengths_are_refused(held: tuple[Path, str]) -> None:
    with pytest.raises(RequestInvalid, match="lengths"):
        package.load(*held).predict(ROW | {"wind": [1.0, 2.0]})


def test_no_rows_and_columns_too_many(held: tuple[Path, str]) -> None:
    loaded = package.load(*held)
    assert loaded.predict({name: [] for name in ROW}).shape == (0,)
    assert loaded.predict(ROW | {"more": ["x"]}).shape == (1,)


def test_loading_takes_neither_torch_nor_mlflow_nor_ray(held: tuple[Path, str]) -> None:
    code = (
        "import sys; from manta.models import package; package.load(sys.argv[1]); "
        "heavy = ('torch', 'mlflow', 'ray', 'feast', 'onnx', 'polars', 'pandas'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(held[0])], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# --- vectors ---------------------------------------------------------------------------------------------

PIXELS = Encoding(vocabularies={}, moments={}, types={}, vectors={"pixels": ((0.0, 0.0), (1.0, 1.0))})


def summing() -> onnx.ModelProto:
    """A module whose logit is the sum of its numbers."""
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["numbers", "axis"], ["logits"], keepdims=0),
            helper.make_node("Identity", ["categories"], ["unused"]),
        ],
        "summing",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", 0]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 3]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        initializer=[helper.make_tensor("axis", TensorProto.INT64, [1], [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


@pytest.fixture(scope="module")
def pixels() -> package.Package:
    graph = raw_graph(PIXELS, summing()).SerializeToString()
    return package.Package({"inputs": PIXELS.inputs}, graph, "", 1)


@pytest.mark.parametrize(
    "values",
    [
        [[1, 2], [3.5, None], None],
        [(1.0, 2.0), [3.5, float("nan")], float("nan")],
        np.array([[1.0, 2.0], [3.5, np.nan], [np.nan, np.nan]]),
        np.array([np.array([1.0, 2.0]), [3.5, None], None], dtype=object),
        pa.array([[1.0, 2.0], [3.5, None], None]),
        pa.array([[1.0, 2.0], [3.5, None], None], type=pa.list_(pa.float32(), 2)),
    ],
)
def test_vectors_in_any_of_these_forms(pixels: package.Package, values: Any) -> None:
    expected = [sigmoid(3), sigmoid(3.5 + 1 / 2), sigmoid(1)]
    assert pixels.predict({"pixels": values}) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([[1.0]], "takes vectors of 2 numbers, and row 0 has 1"),
        ([[1.0, 2.0], [1.0, 2.0, 3.0]], "takes vectors of 2 numbers, and row 1 has 3"),
        ([[1.0, 2.0], []], "takes vectors of 2 numbers, and row 1 has 0"),
        (np.zeros((4, 3)), "takes vectors of 2 numbers, and row 0 has 3"),
        ([1.0], "expected a list of 2 numbers, got 1.0"),
        (["ab"], "expected a list of 2 numbers, got 'ab'"),
        ([["1", "2"]], "expected a list of 2 numbers, got '1'"),
        ([[1.0, "2"]], "expected a list of 2 numbers, got "),
        ([[[1.0], [2.0]]], "expected a list of 2 numbers, got "),
        (3.0, "expected a list of 2 numbers per row, got 3.0"),
    ],
)
def test_vectors_that_do_not_fit_are_named(pixels: package.Package, values: Any, says: str) -> None:
    with pytest.raises(RequestInvalid) as error:
        pixels.predict({"pixels": values})
    assert error.value.message.startswith("pixels: ")
    assert says in error.value.message
    assert error.value.detail["fields"] == ["pixels"]


def test_no_vectors_no_answers(pixels: package.Package) -> None:
    assert pixels.predict({"pixels": []}).shape == (0,)
