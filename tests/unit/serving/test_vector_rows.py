"""Features that are vectors, on the predict path: from the store, from the caller, of the wrong length."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from manta.definitions import Endpoint
from manta.errors import RequestInvalid
from manta.features.compiled import FORMAT
from manta.features.stores.sqlite import create_table, quoted, seconds_kept, writable
from manta.features.wire import key_encoder, value_encoder
from manta.models import package
from manta.models.encoding import Encoding
from manta.models.graph import OPSET, raw_graph
from manta.serving import core
from manta.serving.core import Loaded
from manta.serving.door import Door
from manta.serving.http import json_of
from manta.serving.protocols import predict
from tests.unit.serving.test_protocols import ask as ask_door
from tests.unit.serving.test_protocols import refused, right
from tests.unit.serving.tiny import NOON

ENDPOINT = Endpoint(model="looks", features="looks_v1")
ENCODING = Encoding({}, {}, {}, vectors={"pixels": ((0.0,) * 3, (1.0,) * 3)})
HELD: dict[int, Any] = {1: [1.0, 0.5, -1.0], 2: [1.0, math.nan, 0.0], 3: [1.0, 2.0], 4: None}


def _summing() -> onnx.ModelProto:
    """The logit is the sum of the pixels, and ten where all of them are missing."""
    graph = helper.make_graph(
        [
            helper.make_node("Mul", ["numbers", "weights"], ["weighted"]),
            helper.make_node("ReduceSum", ["weighted", "axis"], ["logits"], keepdims=0),
            helper.make_node("Identity", ["categories"], ["unused"]),
        ],
        "summing",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", 0]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", 4]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        initializer=[
            helper.make_tensor("axis", TensorProto.INT64, [1], [1]),
            helper.make_tensor("weights", TensorProto.FLOAT, [4], [1, 1, 1, 10]),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    root = tmp_path_factory.mktemp("looks")
    with writable(str(root / "online.db")) as connection:
        create_table(connection, "test_faces")
        for face, pixels in HELD.items():
            connection.execute(
                f"INSERT INTO {quoted('test_faces')} (entity_key, feature_name, value, event_ts) "
                "VALUES (?, ?, ?, ?)",
                (
                    key_encoder([("face", "int64")])([face]),
                    "pixels",
                    value_encoder("list[float32]")(pixels),
                    seconds_kept(NOON),
                ),
            )
    view = {
        "name": "faces",
        "table": "test_faces",
        "dataset": "faces",
        "time": "at",
        "created": None,
        "ttl_seconds": 0.0,
        "keys": [{"column": "face", "join_key": "face", "type": "int64"}],
        "features": [{"name": "pixels", "type": "list[float32]", "column": "pixels"}],
    }
    body = {
        "name": "looks_v1",
        "project": "test",
        "store": {"kind": "sqlite", "path": str(root / "online.db")},
        "views": [view],
        "on_demand": [],
        "features": [["faces", "pixels"]],
    }
    (root / "manifest.json").write_text(json.dumps({"format": FORMAT, "service": body}))
    graph = raw_graph(ENCODING, _summing()).SerializeToString()
    location, digest = package.write(root, {package.GRAPH: graph}, {"inputs": ENCODING.inputs})
    config = {"version": "1", "location": str(location), "digest": digest}
    return core.load(ENDPOINT, config | {"manifest": str(root / "manifest.json")})


def ask(loaded: Loaded, body: dict[str, Any]) -> list[dict[str, Any]]:
    form, rows = predict.parse(json.dumps(body).encode(), ENDPOINT)
    ask_by = core.by_keys if form == "keys" else core.by_rows
    answered = json_of(ask_by(ENDPOINT, loaded, rows, show_features=True))
    predictions: list[dict[str, Any]] = json.loads(answered.content)
    return predictions


def sigmoid(logit: float) -> Any:
    return pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-6)


def test_by_keys_a_vector_comes_from_the_store(loaded: Loaded) -> None:
    whole, gap, null, unknown = ask(loaded, {"keys": [{"face": face} for face in (1, 2, 4, 99)]})
    assert whole["features"]["pixels"] == [1.0, 0.5, -1.0]
    assert whole["probability"] == sigmoid(0.5)
    assert gap["features"]["pixels"] == [1.0, None, 0.0]
    assert gap["probability"] == sigmoid(1 + 10 / 3)
    assert null["probability"] == unknown["probability"] == sigmoid(10)
    assert (null["features"]["pixels"], unknown["status"]) == (None, {"faces": "NOT_FOUND"})


def test_by_rows_it_is_a_list_of_numbers(loaded: Loaded) -> None:
    rows = [{"pixels": each} for each in ([1, 0.5, -1], [1.0, None, 0.0], None)]
    whole, gap, null = ask(loaded, {"rows": rows})
    assert whole["probability"] == sigmoid(0.5)
    assert gap["probability"] == sigmoid(1 + 10 / 3)
    assert null["probability"] == sigmoid(10)
    assert ask(loaded, {"keys": {"face": 99, "pixels": [1, 0.5, -1]}})[0]["probability"] == sigmoid(0.5)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"rows": {"pixels": [1.0]}}, "pixels: the model takes vectors of 3 numbers, and row 0 has 1"),
        ({"rows": [{"pixels": [1, 2, 3]}, {"pixels": [1, 2, 3, 4]}]}, "of 3 numbers, and row 1 has 4"),
        ({"rows": {"pixels": []}}, "of 3 numbers, and row 0 has 0"),
        # What is held online has another length than the model was trained with.
        ({"keys": {"face": 3}}, "of 3 numbers, and row 0 has 2"),
        ({"rows": {"pixels": 3.0}}, "'pixels' must be a list, not 3.0"),
        ({"rows": {"pixels": [1, "2", 3]}}, "'pixels[1]' must be a number, not '2'"),
        ({"rows": {"pixels": [1, True, 3]}}, "'pixels[1]' must be a number, not True"),
        ({"rows": {"pixels": [1, [2], 3]}}, "'pixels[1]' must be a number, not [2]"),
        ({"rows": {"pixels": [1, 10**400, 3]}}, "'pixels[1]' must fit into float32"),
        ({"rows": {"pixel": [1, 2, 3]}}, "did you mean 'pixels'?"),
    ],
)
def test_what_does_not_fit_is_the_callers_fault_and_named(
    loaded: Loaded, body: dict[str, Any], says: str
) -> None:
    with pytest.raises(RequestInvalid) as error:
        ask(loaded, body)
    assert says in error.value.message
    assert 400 <= error.value.http_status < 500


# --- other protocols -------------------------------------------------------------------------------------

INFER = "v2/models/looks/infer"
THREE = [[1.0, 0.5, -1.0], [1.0, None, 0.0]]


@pytest.fixture(scope="module")
def door(loaded: Loaded) -> Door:
    made = Door(ENDPOINT, "test")
    made.loaded = loaded
    return made


def test_as_tensors_they_have_the_shape_that_the_metadata_says(door: Door) -> None:
    (told,) = right(ask_door(door, "v2/models/looks"))["inputs"]
    assert told == {"name": "pixels", "datatype": "FP32", "shape": [-1, 3]}
    by_rows = [each["probability"] for each in ask(door.loaded, {"rows": [{"pixels": row} for row in THREE]})]
    for data in (THREE, [each for row in THREE for each in row]):  # nested, or flat
        tensor = {"name": "pixels", "shape": [2, 3], "datatype": "FP32", "data": data}
        found = right(ask_door(door, INFER, {"inputs": [tensor]}))["outputs"][0]
        assert (found["shape"], found["data"]) == ([2], pytest.approx(by_rows, abs=1e-7))


def test_as_binary_tensors(door: Door) -> None:
    content = np.array([[1, 0.5, -1], [1, math.nan, 0]], dtype="<f4").tobytes()
    tensor = {"name": "pixels", "shape": [2, 3], "datatype": "FP32", "parameters": {"binary_data_size": 24}}
    header = json.dumps({"inputs": [tensor]}).encode()
    sent = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(header))}
    found = right(ask_door(door, INFER, header + content, headers=sent))["outputs"][0]["data"]
    assert found == [sigmoid(0.5), sigmoid(1 + 10 / 3)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"shape": [2, 2], "data": [1, 2, 3, 4]},
            "pixels: the model takes vectors of 3 numbers, and row 0 has 2",
        ),
        ({"shape": [3], "data": [1, 2, 3]}, "must have the shape [n, length], not [3]"),
        ({"shape": [1, 3, 1]}, "must have the shape [n, length], not [1, 3, 1]"),
        ({"datatype": "BYTES", "data": ["1", "2", "3"]}, "must be of numbers, not BYTES"),
    ],
)
def test_tensors_that_do_not_fit_are_named(door: Door, change: dict[str, Any], says: str) -> None:
    tensor = {"name": "pixels", "shape": [1, 3], "datatype": "FP32", "data": [1, 2, 3]} | change
    assert says in refused(ask_door(door, INFER, {"inputs": [tensor]}))["detail"]


def test_mlflows_scoring_takes_lists_in_its_cells(door: Door) -> None:
    expected = [sigmoid(0.5), sigmoid(1 + 10 / 3)]
    for body in (
        {"dataframe_split": {"columns": ["pixels"], "data": [[row] for row in THREE]}},
        {"dataframe_records": [{"pixels": row} for row in THREE]},
        {"inputs": {"pixels": THREE}},
    ):
        assert right(ask_door(door, "invocations", body))["predictions"] == expected
    refused(ask_door(door, "invocations", {"inputs": {"pixels": [1.0, 2.0, 3.0]}}))


def test_openapi_says_how_long_they_are(door: Door) -> None:
    schemas = right(ask_door(door, "openapi.json"))["components"]["schemas"]
    number = {"type": ["number", "null"], "format": "float"}
    pixels = {"type": ["array", "null"], "items": number}
    assert schemas["Features"]["properties"]["pixels"] == pixels | {"minItems": 3, "maxItems": 3}
    assert schemas["Keys"]["properties"]["pixels"] == pixels
