"""A foreign graph answers in a package what it answers by itself, for every kind of input and output."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from manta.errors import ModelRefused, TrainingInvalid
from manta.models import foreign
from manta.models.foreign import Graph, check_features
from manta.models.formats import examine
from manta.models.package import Package

KINDS = {"single": TensorProto.FLOAT, "double": TensorProto.DOUBLE, "whole": TensorProto.INT64}
BIG = 2**52 + 1  # which float32 cannot hold


def mixed(columns: bool, output: str, width: Any = "declared") -> bytes:
    """``single + double / 2⁵² + whole mod 7 + (text = "rain")``, squashed."""
    shape: list[Any] = ["n", 1] if columns else ["n"]
    held = {
        "seven": np.array(7, dtype=np.int64),
        "big": np.array(2.0**52, dtype=np.float64),
        "zero": np.array(0, dtype=np.float64),
        "flat": np.array([-1], dtype=np.int64),
        "column": np.array([-1, 1], dtype=np.int64),
        "one": np.array(1, dtype=np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["single"], ["s"], to=TensorProto.DOUBLE),
        helper.make_node("Div", ["double", "big"], ["d"]),
        helper.make_node("Mod", ["whole", "seven"], ["m"]),
        helper.make_node("Cast", ["m"], ["w"], to=TensorProto.DOUBLE),
        helper.make_node(
            "LabelEncoder", ["text"], ["l"], domain="ai.onnx.ml", keys_strings=["rain"], values_floats=[1.0],
            default_float=0.0,
        ),
        helper.make_node("Cast", ["l"], ["t"], to=TensorProto.DOUBLE),
        helper.make_node("Sum", ["s", "d", "w", "t"], ["total"]),
        helper.make_node("IsNaN", ["total"], ["unknown"]),
        helper.make_node("Where", ["unknown", "zero", "total"], ["known"]),
        helper.make_node("Cast", ["known"], ["small"], to=TensorProto.FLOAT),
        helper.make_node("Sigmoid", ["small"], ["p"]),
        helper.make_node("Reshape", ["p", "flat"], ["[n]"]),
        helper.make_node("Reshape", ["p", "column"], ["[n, 1]"]),
        helper.make_node("Sub", ["one", "[n, 1]"], ["q"]),
        helper.make_node("Concat", ["q", "[n, 1]"], ["[n, 2]"], axis=1),
        helper.make_node("Cast", [output], ["label"], to=TensorProto.INT64),
        helper.make_node("Identity", [output], ["probabilities"]),
    ]  # fmt: skip
    told = {"[n]": ["n"], "[n, 1]": ["n", 1], "[n, 2]": ["n", 2]}[output]
    told = [None, None] if width is None else told
    made = helper.make_graph(
        nodes,
        "mixed",
        [
            *(helper.make_tensor_value_info(name, kind, shape) for name, kind in KINDS.items()),
            helper.make_tensor_value_info("text", TensorProto.STRING, shape),
        ],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, told),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, told),
        ],
        initializer=[numpy_helper.from_array(value, name) for name, value in held.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return bytes(helper.make_model(made, opset_imports=opsets, ir_version=8).SerializeToString())


def taken(content: bytes) -> tuple[Graph, Package]:
    graph = foreign.read(examine("m.onnx", content))
    held = {"single": "float32", "double": "float32", "whole": "int64", "text": "string"}
    inputs = check_features("m.onnx", {each.name: each.kind for each in graph.inputs}, held)
    return graph, Package({"inputs": inputs}, graph.packaged().SerializeToString(), "", 1)


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "single": st.none() | st.floats(-5, 5, width=32),
            "double": st.none() | st.floats(-1e17, 1e17),
            "whole": st.none() | st.integers(-BIG, BIG),
            "text": st.none() | st.sampled_from(["rain", "hail", ""]),
        }
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("columns", [False, True], ids=["[n]", "[n, 1]"])
@pytest.mark.parametrize("output", ["[n]", "[n, 1]", "[n, 2]"])
def test_every_kind_of_input_and_output(columns: bool, output: str) -> None:
    content = mixed(columns, output)
    graph, package = taken(content)
    session = onnxruntime.InferenceSession(content)

    @given(ROWS)
    @settings(max_examples=40, deadline=None)
    def holds(rows: list[dict[str, Any]]) -> None:
        missing = {"single": np.nan, "double": np.nan, "whole": 0, "text": ""}
        types: dict[str, Any] = {"single": "float32", "double": "float64", "whole": "int64", "text": object}
        given_ = {name: [row[name] for row in rows] for name in missing}
        fed = {
            name: np.array([missing[name] if v is None else v for v in values], dtype=types[name])
            for name, values in given_.items()
        }
        feeds = {name: values.reshape(-1, 1) if columns else values for name, values in fed.items()}
        (wanted,) = session.run(["probabilities"], feeds)
        wanted = wanted.reshape(len(rows), -1)[:, -1]
        assert package.predict(given_).tolist() == wanted.tolist()
        assert graph.answers(fed).tolist() == wanted.astype(np.float64).tolist()

    holds()


@pytest.mark.parametrize("output", ["[n, 1]", "[n, 2]"])
def test_a_width_that_is_not_declared_is_asked_for(output: str) -> None:
    rows = {"single": [1.0], "double": [0.0], "whole": [0], "text": ["rain"]}
    _, package = taken(mixed(True, output, width=None))
    assert package.predict(rows) == pytest.approx([1 / (1 + np.exp(-2))])


def test_branches_that_take_values_from_outside() -> None:
    def branch(op: str, given: list[str]) -> Any:
        gives = helper.make_tensor_value_info("inside", TensorProto.FLOAT, ["n"])
        return helper.make_graph([helper.make_node(op, given, ["inside"])], op, [], [gives])

    nodes = [
        helper.make_node("ReduceMax", ["wind"], ["most"], keepdims=0),
        helper.make_node("Greater", ["most", "two"], ["strong"]),
        helper.make_node(
            "If",
            ["strong"],
            ["x"],
            then_branch=branch("Mul", ["wind", "two"]),
            else_branch=branch("Identity", ["wind"]),
        ),
        helper.make_node("Sigmoid", ["x"], ["probability"]),
    ]
    given_, gives = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("wind", "probability")
    )
    two = numpy_helper.from_array(np.array(2, dtype=np.float32), "two")
    made = helper.make_graph(nodes, "branches", [given_], [gives], initializer=[two])
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    graph = foreign.read(examine("m.onnx", proto.SerializeToString()))
    package = Package({"inputs": {"wind": "float32"}}, graph.packaged().SerializeToString(), "", 1)
    for wind in ([1.0, -1.0], [3.0, 1.0]):
        wanted = graph.answers({"wind": np.array(wind, dtype=np.float32)})
        assert package.predict({"wind": wind}).tolist() == wanted.tolist()


def test_what_others_wrote_into_it_is_not_kept() -> None:
    import onnx

    proto = onnx.ModelProto.FromString(mixed(False, "[n]"))
    proto.doc_string = proto.graph.doc_string = "/home/somebody"
    proto.metadata_props.add().key = "token"
    graph, _ = taken(proto.SerializeToString())
    kept = graph.packaged()
    assert (kept.doc_string, kept.graph.doc_string, list(kept.metadata_props)) == ("", "", [])


@pytest.mark.parametrize(
    ("wanted", "held", "match"),
    [
        ({"a": "float32"}, {"b": "float32"}, "takes a, which"),
        ({"a": "float32"}, {"a": "string"}, "takes a as float32, and it is of type string"),
        ({"a": "float64"}, {"a": "string"}, "as float64"),
        ({"a": "string"}, {"a": "float32"}, "as string"),
        ({"a": "int64"}, {"a": "float32"}, "as int64"),
        ({"a": "int64"}, {"a": "string"}, "as int64"),
    ],
)
def test_features_of_another_type(wanted: dict[str, str], held: dict[str, str], match: str) -> None:
    with pytest.raises(ModelRefused, match=match):
        check_features("m", wanted, held)


@pytest.mark.parametrize("kind", ["string", "int64", "float32", "float64"])
def test_a_vector_is_no_input_of_a_foreign_model(kind: str) -> None:
    with pytest.raises(ModelRefused, match=r"takes pixels as .*, and it is of type list") as error:
        check_features("m", {"pixels": kind}, {"pixels": "list"})
    assert "vectors" in error.value.hint


def test_what_a_package_feeds() -> None:
    held = {"text": "string", "whole": "int64", "flag": "bool", "number": "float32"}
    fed = {
        ("string", "text"): "string",
        ("string", "whole"): "int64",
        ("string", "flag"): "bool",
        ("float32", "whole"): "float32",
        ("float64", "flag"): "float64",
        ("int64", "whole"): "float64",
        ("int64", "flag"): "float64",
        ("float32", "number"): "float32",
    }
    for (kind, feature), wanted in fed.items():
        assert check_features("m", {feature: kind}, held) == {feature: wanted}


def test_a_graph_that_fails_on_rows_says_so() -> None:
    graph, _ = taken(mixed(False, "[n]"))
    with pytest.raises(TrainingInvalid, match="fails on these rows"):
        graph.answers({name: np.zeros(1, dtype=object) for name in ("single", "double", "whole", "text")})
