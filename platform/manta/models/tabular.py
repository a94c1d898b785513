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
    """``categories`` int64 [n, C], ``numbers`` float32 [n, 2·D] → ``logits`` float32 [n].

    Args:
        inner: its one input gets float32 [n, C + 2·D]: the categories' indices, then the numbers.
        answer: the output of it to be taken: a margin or a probability, [n, 1], or the probabilities of both
            classes, [n, 2].
    """
    matrix = inner.input[0].name
    before = [
        helper.make_node("Cast", ["categories"], ["categories/float"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["categories/float", "numbers"], [matrix], axis=1),
    ]
    held = [numpy_helper.from_array(np.array([-1], dtype=np.int64), "logits/flat")]
    if what == "margin":
        behind = [helper.make_node("Reshape", [answer, "logits/flat"], ["logits"])]
    else:
        held += [
            numpy_helper.from_array(np.array(value, dtype=kind), f"logits/{name}")
            for name, value, kind in (
                ("last", [-1], np.int64),
                ("least", LEAST, np.float32),
                ("most", MOST, np.float32),
                ("one", 1.0, np.float32),
            )
        ]
        second = helper.make_node("Gather", [answer, "logits/last"], ["logits/second"], axis=1)
        behind = [
            second,
            helper.make_node("Reshape", ["logits/second", "logits/flat"], ["logits/all"]),
            helper.make_node("Clip", ["logits/all", "logits/least", "logits/most"], ["logits/p"]),
            helper.make_node("Sub", ["logits/one", "logits/p"], ["logits/q"]),
            helper.make_node("Div", ["logits/p", "logits/q"], ["logits/odds"]),
            helper.make_node("Log", ["logits/odds"], ["logits"]),
        ]
    made = helper.make_graph(
        [*before, *inner.node, *behind],
        "tabular",
        [
            helper.make_tensor_value_info("categories", TensorProto.INT64, ["n", len(shape["categories"])]),
            helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", shape["numbers"]]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n"])],
        initializer=[*inner.initializer, *held],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION)
