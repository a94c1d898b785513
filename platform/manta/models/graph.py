"""The ONNX graph that answers requests: raw feature columns in, probabilities or numbers out.

The encoding is part of the graph, so that what a replica computes cannot drift from what was trained. Its
second half is what a trainer exports: a graph with the inputs ``categories`` int64 [n, C] and ``numbers``
float32 [n, N] and the output ``logits`` float32 [n], or [n, k] of k classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.models.encoding import Encoding

# By what is predicted: what the graph's output is called. A package's card says so too.
OUTPUTS: dict[Task, str] = {
    "binary": "probability",
    "multiclass": "probabilities",
    "regression": "prediction",
}
OUTPUT = OUTPUTS["binary"]
IR_VERSION = 10
OPSET = 20  # what the trainers export to; the two halves must agree
ML_OPSET = 4  # of ai.onnx.ml, for LabelEncoder


def raw_graph(
    encoding: Encoding, module: onnx.ModelProto, task: Task = "binary", outputs: int = 1
) -> onnx.ModelProto:
    """Both halves as one checked graph.

    Inputs: one per feature, by its name, shape [n]; tensor(string) for categories ("" is missing), float32
    for numbers (NaN is missing); of a vector float32 [n, length]. Output: ``probability`` float32 [n], the
    logits' sigmoid; of several classes ``probabilities`` float32 [n, outputs], their softmax; of a regression
    ``prediction`` float32 [n], which they are.

    Raises:
        TrainingInvalid: the module's graph has other inputs or outputs, or a feature is called like the
            output.
    """
    output = OUTPUTS[task]
    if output in encoding.inputs:
        raise TrainingInvalid(f"a feature may not be called {output!r}, as the model's output is")
    found = {one.name for one in (*module.graph.input, *module.graph.output)}
    if found != {"categories", "numbers", "logits"}:
        raise TrainingInvalid(
            f"the exported graph has {', '.join(sorted(found))}, not categories, numbers, logits"
        )
    module = compose.add_prefix(_without_traces(module), "module/")
    whole = compose.merge_models(
        _encoder(encoding),
        module,
        io_map=[("encoder/categories", "module/categories"), ("encoder/numbers", "module/numbers")],
        producer_name="manta",
    )
    _answer(whole.graph, task, outputs)
    onnx.checker.check_model(whole, full_check=True)
    return whole


def _answer(graph: onnx.GraphProto, task: Task, outputs: int) -> None:
    """Put what makes answers of logits behind them."""
    name, logits = OUTPUTS[task], ["module/logits"]
    if task == "multiclass":
        node = helper.make_node("Softmax", logits, [name], name=name, axis=1)
    else:
        node = helper.make_node("Sigmoid" if task == "binary" else "Identity", logits, [name], name=name)
    graph.node.append(node)
    shape: list[str | int | None] = ["n", outputs] if task == "multiclass" else ["n"]
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))


def _encoder(encoding: Encoding) -> onnx.ModelProto:
    nodes: list[onnx.NodeProto] = []
    held: list[onnx.TensorProto] = []
    inputs = [
        helper.make_tensor_value_info(
            name, TensorProto.FLOAT if kind == "float32" else TensorProto.STRING, ["n"]
        )
        for name, kind in encoding.inputs.items()
        if name not in encoding.vectors
    ]
    inputs += [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", length])
        for name, length in encoding.lengths.items()
    ]

    def constant(name: str, value: np.ndarray) -> str:
        held.append(numpy_helper.from_array(value, f"encoder/{name}"))
        return f"encoder/{name}"

    def node(op: str, given: Iterable[str], name: str, **attributes: Any) -> str:
        out = f"encoder/{name}"
        nodes.append(helper.make_node(op, list(given), [out], name=out, **attributes))
        return out

    column = constant("column", np.array([1], dtype=np.int64))
    indices = [
        node("Unsqueeze", [_lookup(node, name, values), column], f"{name}/column")
        for name, values in encoding.vocabularies.items()
    ]
    raw = [node("Unsqueeze", [name, column], f"{name}/column") for name in encoding.moments]
    raw += encoding.vectors
    # Where there is nothing to join, a slice of no columns takes the batch's size from the other half.
    nothing = constant("nothing", np.array([0], dtype=np.int64))
    if raw:
        joined = node("Concat", raw, "raw", axis=1)
        means, deviations = (
            np.array(
                [*(each[at] for each in encoding.moments.values()), *_of_vectors(encoding, at)], "float32"
            )
            for at in (0, 1)
        )
        absent = node("Or", [node("IsNaN", [joined], "nan"), node("IsInf", [joined], "inf")], "absent")
        centred = node("Sub", [joined, constant("means", means)], "centred")
        scaled = node("Div", [centred, constant("deviations", deviations)], "scaled")
        zero = constant("zero", np.array(0, dtype=np.float32))
        values = node("Where", [absent, zero, scaled], "values")
        flags = node("Cast", [absent], "flags", to=TensorProto.FLOAT)
        if encoding.vectors:
            flags = node("Concat", _shares(node, constant, encoding, flags, column), "shares", axis=1)
        node("Concat", [values, flags], "numbers", axis=1)
    if indices:
        node("Concat", indices, "categories", axis=1)
    if not raw:
        empty = node("Slice", ["encoder/categories", nothing, nothing, column], "no_numbers")
        node("Cast", [empty], "numbers", to=TensorProto.FLOAT)
    if not indices:
        empty = node("Slice", ["encoder/numbers", nothing, nothing, column], "no_categories")
        node("Cast", [empty], "categories", to=TensorProto.INT64)
    shape = encoding.shape
    outputs = [
        helper.make_tensor_value_info(
            "encoder/categories", TensorProto.INT64, ["n", len(shape["categories"])]
        ),
        helper.make_tensor_value_info("encoder/numbers", TensorProto.FLOAT, ["n", shape["numbers"]]),
    ]
    graph = helper.make_graph(nodes, "manta", inputs, outputs, initializer=held)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="manta")


def _of_vectors(encoding: Encoding, which: int) -> list[float]:
    """The means (0) or deviations (1) of the vectors' elements."""
    return [each for moments in encoding.vectors.values() for each in moments[which]]


def _shares(
    node: Callable[..., str],
    constant: Callable[[str, np.ndarray], str],
    encoding: Encoding,
    flags: str,
    column: str,
) -> list[str]:
    """From a flag for each value to one for each feature: of a vector, the share of its elements."""

    def cut(name: str, start: int, end: int) -> str:
        bounds = [
            constant(f"{name}/{side}", np.array([at], dtype=np.int64))
            for side, at in (("from", start), ("to", end))
        ]
        return node("Slice", [flags, *bounds, column], name)

    found = [cut("of_numbers", 0, len(encoding.moments))] if encoding.moments else []
    for name, (start, length) in encoding.shape["vectors"].items():
        # A sum of ones and a quotient are exact: the same share as NumPy's.
        count = node("ReduceSum", [cut(f"{name}/flags", start, start + length), column], f"{name}/count")
        whole = constant(f"{name}/length", np.array(length, dtype=np.float32))
        found.append(node("Div", [count, whole], f"{name}/share"))
    return found


def _lookup(node: Callable[..., str], name: str, values: tuple[str, ...]) -> str:
    # An empty vocabulary is not allowed; "" stands for missing, which is index 0 anyhow.
    return node(
        "LabelEncoder",
        [name],
        f"{name}/index",
        domain="ai.onnx.ml",
        keys_strings=["", *values],
        values_int64s=list(range(len(values) + 1)),
        default_int64=0,
    )


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    # The exporter writes source lines and paths of the machine it ran on into every node.
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.doc_string = clean.graph.doc_string = ""
    graph = clean.graph
    for part in (
        clean,
        graph,
        *graph.node,
        *graph.value_info,
        *graph.initializer,
        *graph.input,
        *graph.output,
    ):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    clean.ir_version = IR_VERSION
    return clean
