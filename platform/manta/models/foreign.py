"""ONNX graphs that others have made: what of them is taken, and how one comes to answer as a package does.

A graph takes features by their names, each [n] or [n, 1], of float32, float64, int64 or string, and gives
probabilities: [n], [n, 1], or of both classes [n, 2], with the label beside it or without. A missing value is
NaN in numbers with a point, 0 in whole numbers, which have none of their own, and "" in text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from manta.errors import ModelRefused, TrainingInvalid
from manta.models.formats import File, refused
from manta.models.graph import OUTPUT

DOMAINS = ("", "ai.onnx", "ai.onnx.ml")
OLDEST = 13  # operator set whose operators the wrapping nodes can stand beside
NEVER = ("Loop",)  # it need not end
KINDS: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT64: "int64",
    TensorProto.STRING: "string",
}
EXACT = 2**53  # whole numbers up to here are exact as float64


@dataclass(frozen=True)
class Input:
    """``kind`` is a value of :data:`KINDS`; ``column`` says that it takes [n, 1]."""

    name: str
    kind: str
    column: bool


@dataclass(frozen=True)
class Graph:
    """A graph that was checked. ``output`` is the one that gives the probabilities."""

    name: str
    proto: onnx.ModelProto
    inputs: tuple[Input, ...]
    output: str

    def answers(self, columns: Mapping[str, np.ndarray]) -> np.ndarray:
        """The probabilities that the graph itself gives, float64 [n].

        Args:
            columns: per input an array [n] of its kind, without missing values but NaN and "".

        Raises:
            TrainingInvalid: it fails on them, or does not answer one probability per row.
        """
        feeds = {
            each.name: columns[each.name].reshape(-1, 1) if each.column else columns[each.name]
            for each in self.inputs
        }
        try:
            (found,) = _session(self.proto).run([self.output], feeds)
        except Exception as error:  # onnxruntime's own errors share no base below Exception
            raise TrainingInvalid(
                f"{self.name} fails on these rows: {error!s:.500}",
                hint="it must take missing values, and categories that it has never seen",
            ) from None
        rows = len(next(iter(feeds.values())))
        if found.shape not in ((rows,), (rows, 1), (rows, 2)):
            raise TrainingInvalid(f"{self.name} answers shape {list(found.shape)} to {rows} rows")
        return np.asarray(found, dtype=np.float64).reshape(rows, -1)[:, -1]

    def packaged(self) -> onnx.ModelProto:
        """Inputs as a package feeds them: float32, float64 and string, [n]; whole numbers come as float64.
        Output: ``probability`` float32 [n].

        Raises:
            TrainingInvalid: the wrapped graph is none.
        """
        inner = _without_words(self.proto)
        _rename(inner.graph)
        inner.ir_version = max(inner.ir_version, 8)  # from 4 on an initializer need not be an input
        graph, held = inner.graph, {"wrap/column": [-1, 1], "wrap/flat": [-1], "wrap/last": [-1]}
        before: list[onnx.NodeProto] = []
        outside = []
        for each in self.inputs:
            kind = TensorProto.DOUBLE if each.kind == "int64" else _type(each.kind)
            outside.append(helper.make_tensor_value_info(each.name, kind, ["n"]))
            before += _entering(each)
        last = f"foreign/{self.output}"
        after = [
            helper.make_node("Cast", [last], ["wrap/float"], to=TensorProto.FLOAT),
            *_leaving(self._width()),
        ]
        nodes = [*before, *graph.node, *after]
        del graph.node[:]
        graph.node.extend(nodes)
        del graph.input[:]
        graph.input.extend(outside)
        del graph.output[:]
        graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n"]))
        graph.initializer.extend(
            numpy_helper.from_array(np.array(value, dtype=np.int64), name) for name, value in held.items()
        )
        graph.initializer.append(numpy_helper.from_array(np.array(0.0, dtype=np.float64), "wrap/zero"))
        try:
            onnx.checker.check_model(inner)
        except onnx.checker.ValidationError as error:
            raise TrainingInvalid(f"{self.name} cannot be packaged: {error!s:.500}") from None
        return inner

    def _width(self) -> int:
        """2 where both classes' probabilities come, else 1; asked of the graph itself where it does not
        say."""
        (told,) = (each for each in self.proto.graph.output if each.name == self.output)
        shape = told.type.tensor_type.shape.dim
        if len(shape) == 1:
            return 1
        if len(shape) == 2 and shape[1].dim_value in (1, 2):
            return int(shape[1].dim_value)
        feeds = {
            each.name: np.full((2, 1) if each.column else 2, "", dtype=object)
            if each.kind == "string"
            else np.zeros((2, 1) if each.column else 2, dtype=each.kind)
            for each in self.inputs
        }
        (found,) = _session(self.proto).run([self.output], feeds)
        return int(found.shape[1]) if found.ndim == 2 else 1


def read(file: File) -> Graph:
    """Raises:
    ModelRefused: it has operators or data from elsewhere, or other inputs and outputs than those above.
    """
    name = file.name
    try:
        model = onnx.ModelProto.FromString(file.content)
    except DecodeError as error:
        raise refused(name, f"is no ONNX: {error}") from None
    _check_alone(name, model)
    given = {each.name for each in model.graph.initializer}
    inputs = tuple(_input(name, each) for each in model.graph.input if each.name not in given)
    if not inputs:
        raise refused(name, "takes no inputs")
    if any(each.name == OUTPUT for each in inputs):
        raise refused(name, f"takes a feature called {OUTPUT!r}, as a package's output is")
    output = _output(name, model)
    try:
        onnx.checker.check_model(model)
        _session(model)
    except Exception as error:  # onnxruntime's own errors share no base below Exception
        raise refused(name, f"is no graph that can be run: {error!s:.500}") from None
    return Graph(name, model, inputs, output)


def _check_alone(name: str, model: onnx.ModelProto) -> None:
    """Raises:
    ModelRefused: the graph needs something that is not in it, or operators that are not ONNX's own.
    """
    versions = {each.domain: each.version for each in model.opset_import}
    strange = sorted(domain for domain in versions if domain not in DOMAINS)
    if model.functions:
        raise refused(name, "has functions of its own", "inline them: onnx.inliner.inline_local_functions")
    if max(versions.get("", 0), versions.get("ai.onnx", 0)) < OLDEST:
        raise refused(name, f"is of an operator set before {OLDEST}", "onnx.version_converter brings it up")
    for node in _nodes(model.graph):
        if node.domain not in DOMAINS:
            strange.append(f"{node.domain}.{node.op_type}")
        if node.domain != "ai.onnx.ml" and node.op_type in NEVER:
            raise refused(name, f"has the operator {node.op_type}, which need not end")
        if node.op_type == "ZipMap":
            raise refused(name, "answers maps", 'to_onnx(…, options={"zipmap": False})')
    if strange:
        raise refused(name, f"needs operators of {', '.join(strange)!s:.200}", "only ONNX's own are taken")
    for tensor in _tensors(model.graph):
        if tensor.external_data or tensor.data_location == TensorProto.EXTERNAL:
            told = {each.key: each.value for each in tensor.external_data}
            raise refused(
                name,
                f"keeps {tensor.name!r:.80} in another file, {told.get('location', '')!r:.80}",
                "onnx.save(model, path) without save_as_external_data keeps all in one",
            )


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _graphs(inner)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for each in _graphs(graph):
        yield from each.node


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    for each in _graphs(graph):
        yield from each.initializer
        for sparse in each.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(graph):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ):
                yield from (sparse.values, sparse.indices)


def _input(name: str, told: onnx.ValueInfoProto) -> Input:
    tensor = told.type.tensor_type
    shape = tensor.shape.dim
    kind = KINDS.get(int(tensor.elem_type))
    if kind is None:
        raise refused(name, f"takes {told.name!r:.80}, which is none of {', '.join(KINDS.values())}")
    fits = len(shape) == 1 or (len(shape) == 2 and shape[1].dim_value == 1)
    if not fits:
        raise refused(
            name,
            f"takes {told.name!r:.80} of {len(shape)} dimensions, and not one feature",
            'an input for each feature, by its name: initial_types=[("wind", FloatTensorType([None, 1])), …]',
        )
    if shape[0].HasField("dim_value"):
        raise refused(
            name, f"takes {shape[0].dim_value} rows, not any number", "leave the first dimension open"
        )
    return Input(told.name, kind, len(shape) == 2)


def _output(name: str, model: onnx.ModelProto) -> str:
    numbers = [
        each.name
        for each in model.graph.output
        if each.type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.DOUBLE)
    ]
    named = [each for each in numbers if each.startswith(OUTPUT[:-1])]
    found = numbers if len(numbers) == 1 else named
    if len(found) != 1:
        raise refused(
            name,
            f"answers {', '.join(each.name for each in model.graph.output)!s:.200}, of which one must be the "
            "probability",
            f"leave one output of numbers, or call it {OUTPUT!r}",
        )
    return str(found[0])


def _entering(each: Input) -> list[onnx.NodeProto]:
    """From what a package feeds to what the graph takes."""
    at, nodes = each.name, list[onnx.NodeProto]()

    def node(op: str, given: list[str], **attributes: Any) -> str:
        out = f"wrap/{each.name}/{len(nodes)}"
        nodes.append(helper.make_node(op, given, [out], **attributes))
        return out

    if each.kind == "int64":
        at = node("Cast", [node("Where", [node("IsNaN", [at]), "wrap/zero", at])], to=TensorProto.INT64)
    op, given = ("Reshape", [at, "wrap/column"]) if each.column else ("Identity", [at])
    nodes.append(helper.make_node(op, given, [f"foreign/{each.name}"]))
    return nodes


def _leaving(width: int) -> list[onnx.NodeProto]:
    if width == 1:
        return [helper.make_node("Reshape", ["wrap/float", "wrap/flat"], [OUTPUT])]
    return [
        helper.make_node("Gather", ["wrap/float", "wrap/last"], ["wrap/second"], axis=1),
        helper.make_node("Reshape", ["wrap/second", "wrap/flat"], [OUTPUT]),
    ]


def _type(kind: str) -> int:
    return next(number for number, name in KINDS.items() if name == kind)


def _without_words(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy, without what others have written into it for people to read."""
    clean = onnx.ModelProto()
    clean.CopyFrom(model)
    clean.ClearField("metadata_props")
    clean.ClearField("training_info")
    clean.doc_string = clean.graph.doc_string = ""
    return clean


def _rename(graph: onnx.GraphProto) -> None:
    """Put "foreign/" before the name of every value, in branches too: those outside are the features'."""
    # Not by onnx.compose, which leaves what a branch takes from outside under its old name.
    for each in _graphs(graph):
        for named in (*each.input, *each.output, *each.value_info, *each.initializer):
            named.name = f"foreign/{named.name}"
        for sparse in each.sparse_initializer:
            sparse.values.name = f"foreign/{sparse.values.name}"
        for node in each.node:
            for names in (node.input, node.output):
                names[:] = [f"foreign/{name}" if name else "" for name in names]


def _session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def check_features(name: str, wanted: Mapping[str, str], held: Mapping[str, str]) -> dict[str, str]:
    """What a package feeds a foreign model: feature → its kind.

    Args:
        wanted: per input the kind that the model takes. held: per feature "string", "int64", "bool" or
            "float32".

    Raises:
        ModelRefused: an input is no feature, or of a type that it cannot be made from.
    """
    gone = sorted(set(wanted) - set(held))
    if gone:
        raise ModelRefused(
            f"{name} takes {', '.join(gone)!s:.300}, which the feature service does not have",
            hint=f"its features are {', '.join(held)}",
        )
    fed = {}
    for feature, kind in wanted.items():
        have = held[feature]
        fits = {"string": have != "float32", "int64": have in ("int64", "bool")}.get(kind, have != "string")
        if not fits or have == "list":
            raise ModelRefused(
                f"{name} takes {feature} as {kind}, and it is of type {have}",
                hint="a model that was made elsewhere cannot take vectors yet: put its weights into a module"
                if have == "list"
                else "train it on the features as they are",
            )
        # As a package feeds them; whole numbers as float64, which holds them exactly.
        fed[feature] = have if kind == "string" else "float64" if kind == "int64" else kind
    return fed
