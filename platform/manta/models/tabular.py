"""Around a graph that takes one matrix and answers margins or probabilities: the second half of
:func:`manta.models.graph.raw_graph`."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from manta.models.graph import IR_VERSION, ML_OPSET, OPSET

LEAST, MOST = 1e-7, 1 - 1e-7  # probabilities beyond have no logit in float32


def wrapped(
    inner: onnx.GraphProto,
    shape: dict[str, Any],
    answer: str,
    what: Literal["margin", "probability", "probabilities"],
) -> onnx.ModelProto:
    """``categories`` int64 [n, C], ``numbers`` float32 [n, 2·D] → ``logits`` float32 [n], or [n, k] where
    ``shape`` says that there are k ``outputs``.

    Args:
        inner: its one input gets float32 [n, C + 2·D]: the categories' indices, then the numbers.
        answer: the output of it to be taken: a margin or a probability, [n, 1], or the probabilities of both
            classes, [n, 2]; of k outputs margins or probabilities, [n, k].
    """
    outputs = shape.get("outputs", 1)
    matrix = inner.input[0].name
    before = [
        helper.make_node("Cast", ["categories"], ["categories/float"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["categories/float", "numbers"], [matrix], axis=1),
    ]
    if outputs > 1:
        behind, constants = _several(answer, what)
    else:
        behind, constants = _one(answer, what)
    held = [numpy_helper.from_array(value, f"logits/{name}") for name, value in constants.items()]
    made = helper.make_graph(
        [*before, *inner.node, *behind],
        "tabular",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", len(shape["categories"])]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", shape["numbers"]]),
        ],
        [
            helper.make_tensor_value_info(
                "logits", TensorProto.FLOAT, ["n"] if outputs == 1 else ["n", outputs]
            )
        ],
        initializer=[*inner.initializer, *held],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)


Behind = tuple[list[onnx.NodeProto], dict[str, np.ndarray]]


def _one(answer: str, what: str) -> Behind:
    """From an answer to ``logits`` [n]; and the constants that it takes."""
    held = {"flat": np.array([-1], dtype=np.int64)}
    if what == "margin":
        return [helper.make_node("Reshape", [answer, "logits/flat"], ["logits"])], held
    held |= {
        "last": np.array([-1], dtype=np.int64),
        "least": np.array(LEAST, dtype=np.float32),
        "most": np.array(MOST, dtype=np.float32),
        "one": np.array(1.0, dtype=np.float32),
    }
    return [
        helper.make_node("Gather", [answer, "logits/last"], ["logits/second"], axis=1),
        helper.make_node("Reshape", ["logits/second", "logits/flat"], ["logits/all"]),
        helper.make_node("Clip", ["logits/all", "logits/least", "logits/most"], ["logits/p"]),
        helper.make_node("Sub", ["logits/one", "logits/p"], ["logits/q"]),
        helper.make_node("Div", ["logits/p", "logits/q"], ["logits/odds"]),
        helper.make_node("Log", ["logits/odds"], ["logits"]),
    ], held


def _several(answer: str, what: str) -> Behind:
    """As :func:`_one`, to ``logits`` [n, k]: the softmax of probabilities' logarithms is themselves."""
    if what == "margin":
        return [helper.make_node("Identity", [answer], ["logits"])], {}
    held = {"least": np.array(LEAST, dtype=np.float32), "one": np.array(1.0, dtype=np.float32)}
    return [
        helper.make_node("Clip", [answer, "logits/least", "logits/one"], ["logits/p"]),
        helper.make_node("Log", ["logits/p"], ["logits"]),
    ], held
