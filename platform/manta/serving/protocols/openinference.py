"""The Open Inference Protocol, version 2, over REST: what Triton's, KServe's and MLServer's clients speak.

A feature is a tensor of shape [n] or [n, 1] by its name, or [n, L] where it is a vector of L numbers; a model
of numbers alone also takes them all as one tensor of shape [n, D], in the order that the metadata gives.
Tensors named as the endpoint's keys are looked up. Missing is null in JSON, NaN in binary numbers, and an
empty text.

Written after the protocol's specification (https://github.com/kserve/open-inference-protocol) and that of the
binary tensor extension (https://github.com/triton-inference-server/server, docs/protocol).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from manta import __version__
from manta.errors import NotFound, RequestInvalid
from manta.features.wire import item_type
from manta.models.encoding import vector_length
from manta.serving import core
from manta.serving.http import JSON, Answer, json_of, require_media_type
from manta.serving.protocols import Call

LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"
EXTENSIONS = ["binary_tensor_data"]
# The protocol's names of types, as NumPy has them; BYTES is text, in UTF-8.
DTYPES = {
    "BOOL": "?",
    "UINT8": "u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
    "BYTES": "O",
}
# What a feature or key of a type may be sent as. Any number fits where a fraction does.
NUMBERS = tuple(name for name in DTYPES if name != "BYTES")
WHOLE = tuple(name for name in NUMBERS if "INT" in name)
SENT_AS = {
    "string": ("BYTES",),
    "timestamp": ("BYTES",),
    "bool": ("BOOL",),
    "int32": WHOLE,
    "int64": WHOLE,
    "float32": NUMBERS,
    "float64": NUMBERS,
}
DATATYPES = {"string": "BYTES", "timestamp": "BYTES", "bool": "BOOL", "int32": "INT32", "int64": "INT64"}
DATATYPES |= {"float32": "FP32", "float64": "FP64"}


class Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class Wanted(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class Infer(msgspec.Struct):
    inputs: list[Tensor]
    id: str = ""
    parameters: dict[str, Any] = {}
    outputs: list[Wanted] | None = None


def answer(call: Call) -> Answer:
    """Raises:
    NotFound: nothing has this path; or another model, or version, than is served.
    RequestInvalid: what is sent does not fit the model.
    """
    match call.path.split("/")[1:]:
        case []:
            call.asked.only("GET", "HEAD")
            return json_of({"name": "manta", "version": __version__, "extensions": EXTENSIONS})
        case ["health", "live"]:
            call.asked.only("GET", "HEAD")
            return json_of({"live": True})
        case ["health", "ready"]:
            call.asked.only("GET", "HEAD")
            return json_of({"ready": True})
        case ["models", name, "versions", version, *rest]:
            return _model(call, name, version, rest)
        case ["models", name, *rest]:
            return _model(call, name, "", rest)
    raise NotFound(
        f"there is no {call.path!r:.80} here", hint="GET …/v2/models/NAME, POST …/v2/models/NAME/infer"
    )


def _model(call: Call, name: str, version: str, rest: Sequence[str]) -> Answer:
    served = call.loaded.version
    if name != call.endpoint.name:
        raise NotFound(f"there is no model {name!r:.80} here", hint=f"this endpoint is {call.endpoint.name}")
    if version not in ("", served):
        raise NotFound(
            f"version {version!r:.80} of {name} is not served",
            hint=f"version {served} is; without /versions/… whichever is served answers",
        )
    match rest:
        case []:
            call.asked.only("GET", "HEAD")
            return json_of(_metadata(call))
        case ["ready"]:
            call.asked.only("GET", "HEAD")
            return json_of({"name": name, "ready": True})
        case ["infer"]:
            call.asked.only("POST")
            return _infer(call)
    raise NotFound(f"there is no {'/'.join(rest)!r:.80} of a model", hint="GET …/ready, or POST …/infer")


def _metadata(call: Call) -> dict[str, Any]:
    inputs = call.loaded.package.inputs
    return {
        "name": call.endpoint.name,
        "versions": [call.loaded.version],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [-1, length]}
            if (length := vector_length(kind))
            else {"name": name, "datatype": DATATYPES[kind], "shape": [-1]}
            for name, kind in inputs.items()
        ],
        "outputs": [
            {"name": name, "datatype": each.datatype, "shape": [-1, *each.each]}
            for name, each in core.outputs(call.loaded.package).items()
        ],
        # By keys: what to send instead, where features are to be looked up.
        "parameters": {"keys": {name: DATATYPES[kind] for name, kind in call.loaded.fields.items()}},
    }


def _infer(call: Call) -> Answer:
    length = call.asked.headers.get(LENGTH)
    # Triton's own client names no type.
    require_media_type(call.asked.media_type, JSON, BINARY, "")
    header, binary = _parts(call.content, length)
    try:
        asked = msgspec.json.decode(header, type=Infer)
    except (ValueError, RecursionError) as error:  # ValueError: msgspec's own, and text that is not UTF-8
        raise RequestInvalid(
            f"the body is no inference request: {error}", hint='send {"inputs": [{"name", "shape", …}]}'
        ) from None
    columns = _columns(call, asked.inputs, binary)
    outputs = core.by_columns(call.endpoint, call.loaded, columns)
    wanted = asked.outputs if asked.outputs is not None else [Wanted(name) for name in outputs]
    by_default = bool(asked.parameters.get("binary_data_output", False))
    tensors, pieces = [], []
    for each in wanted:
        if each.name not in outputs:
            raise RequestInvalid(
                f"there is no output {each.name!r:.80}", hint=f"ask for {' or '.join(outputs)}"
            )
        tensor = _tensor(each.name, outputs[each.name])
        if each.parameters.get("binary_data", by_default):
            pieces.append(_to_binary(tensor["datatype"], outputs[each.name]))
            tensor["parameters"] = {"binary_data_size": len(pieces[-1])}
        else:
            tensor["data"] = outputs[each.name].ravel().tolist()
        tensors.append(tensor)
    body = {"model_name": call.endpoint.name, "model_version": call.loaded.version, "outputs": tensors}
    body["id"] = asked.id or call.request_id
    content = msgspec.json.encode(body)
    if not pieces:
        return Answer(200, JSON, content)
    sent = ((LENGTH, str(len(content))),)
    return Answer(200, BINARY, b"".join([content, *pieces]), sent)


def _parts(content: bytes, length: str | None) -> tuple[bytes, bytes]:
    """The JSON of a request, and the binary tensors behind it."""
    if length is None:
        return content, b""
    if not length.isdecimal() or int(length) > len(content):
        raise RequestInvalid(
            f"{LENGTH}: {length!r:.80} is not within the body's {len(content)} bytes",
            hint="it is the size of the JSON that comes before the binary tensors",
        )
    return content[: int(length)], content[int(length) :]


def _columns(call: Call, tensors: Sequence[Tensor], binary: bytes) -> dict[str, Any]:
    """The values of each feature or key."""
    known: Mapping[str, str] = call.loaded.fields | call.loaded.service.types | call.loaded.package.inputs
    columns: dict[str, Any] = {}
    at = 0
    for tensor in tensors:
        size = tensor.parameters.get("binary_data_size")
        if tensor.datatype not in DTYPES:
            raise _wrong(tensor, f"has no datatype of the protocol: {tensor.datatype!r:.40}")
        if not all(each >= 0 for each in tensor.shape):
            raise _wrong(tensor, f"has a negative shape: {tensor.shape}")
        if size is None:
            values = _from_json(tensor)
        else:
            if not isinstance(size, int) or not 0 <= size <= len(binary) - at:
                raise _wrong(tensor, f"says {size!r:.40} binary bytes, and {len(binary) - at} are left")
            values = _from_binary(tensor, binary[at : at + size])
            at += size
        if tensor.name in columns:
            raise _wrong(tensor, "is sent twice")
        if tensor.name not in known and len(tensors) == 1:
            return _from_one(call, tensor, values)
        kind = known.get(tensor.name)
        if kind is not None and (item_type(kind) or vector_length(kind)):
            columns[tensor.name] = _vectors(tensor, values)
            continue
        if kind is not None and tensor.datatype not in SENT_AS[kind]:
            raise _wrong(tensor, f"must be {' or '.join(SENT_AS[kind])}, not {tensor.datatype}")
        if len(tensor.shape) > 2 or tensor.shape[1:] not in ([], [1]):
            raise _wrong(tensor, f"must have the shape [n] or [n, 1], not {tensor.shape}")
        columns[tensor.name] = values
    if at < len(binary):
        raise RequestInvalid(f"{len(binary) - at} binary bytes belong to no tensor")
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RequestInvalid(f"the tensors have different lengths: {lengths}", fields=sorted(lengths))
    rows = next(iter(lengths.values()), 0)
    if rows > call.endpoint.max_rows:
        raise core.too_many(rows, call.endpoint)
    return columns


def _vectors(tensor: Tensor, values: Any) -> list[list[Any]]:
    """A list for each row; how long it must be is the model's to say."""
    if tensor.datatype not in NUMBERS or tensor.datatype == "BOOL":
        raise _wrong(tensor, f"must be of numbers, not {tensor.datatype}")
    if len(tensor.shape) != 2:
        raise _wrong(tensor, f"is a vector, and must have the shape [n, length], not {tensor.shape}")
    rows, length = tensor.shape
    return [values[row * length : (row + 1) * length] for row in range(rows)]


def _from_one(call: Call, tensor: Tensor, values: Any) -> dict[str, Any]:
    """All features of a model of numbers, from one tensor."""
    inputs = call.loaded.package.inputs
    numbers = all(kind in ("float32", "float64") for kind in inputs.values())
    if not numbers or len(tensor.shape) != 2 or tensor.shape[1] != len(inputs) or tensor.datatype == "BYTES":
        takes = f"or one of numbers, of shape [n, {len(inputs)}]" if numbers else ""
        raise RequestInvalid(
            f"there is no input {tensor.name!r:.80} of shape {tensor.shape}",
            hint=f"send a tensor each: {', '.join(inputs)} {takes}".strip(),
            fields=[tensor.name[:80]],
        )
    if tensor.shape[0] > call.endpoint.max_rows:
        raise core.too_many(tensor.shape[0], call.endpoint)
    matrix = np.asarray(values).reshape(tensor.shape)
    return {name: matrix[:, at] for at, name in enumerate(inputs)}


def _from_json(tensor: Tensor) -> Any:
    flat = tensor.data
    for _ in tensor.shape[1:]:
        if isinstance(flat, list) and flat and isinstance(flat[0], list):
            if not all(isinstance(each, list) for each in flat):
                raise _wrong(tensor, "has rows of different depth")
            flat = [value for each in flat for value in each]
    count = math.prod(tensor.shape)
    if not isinstance(flat, list) or len(flat) != count or any(isinstance(each, list) for each in flat):
        held = f"{len(flat)} values" if isinstance(flat, list) else "no list"
        raise _wrong(tensor, f"has {held} in data, and {count} by its shape {tensor.shape}")
    if tensor.datatype == "BYTES":
        wrong = next((each for each in flat if each is not None and not isinstance(each, str)), None)
        if wrong is not None:
            raise _wrong(tensor, f"holds {wrong!r:.40} where it says BYTES")
        return flat
    kinds: tuple[type, ...] = (bool,) if tensor.datatype == "BOOL" else (int, float)
    if "INT" in tensor.datatype:
        kinds = (int,)
    for each in flat:
        if each is not None and (not isinstance(each, kinds) or isinstance(each, bool) != (kinds == (bool,))):
            raise _wrong(tensor, f"holds {each!r:.40} where it says {tensor.datatype}")
    return flat


def _from_binary(tensor: Tensor, content: bytes) -> Any:
    count = math.prod(tensor.shape)
    if tensor.datatype == "BYTES":
        return _texts(tensor, content, count)
    dtype = np.dtype(DTYPES[tensor.datatype])
    if len(content) != count * dtype.itemsize:
        raise _wrong(
            tensor, f"has {len(content)} bytes, and {count * dtype.itemsize} by its shape and datatype"
        )
    return np.frombuffer(content, dtype).tolist()


def _texts(tensor: Tensor, content: bytes, count: int) -> list[str]:
    """Each is four bytes of its length, and then itself."""
    found: list[str] = []
    at = 0
    while at + 4 <= len(content) and len(found) < count:
        size = int.from_bytes(content[at : at + 4], "little")
        piece = content[at + 4 : at + 4 + size]
        if len(piece) < size:
            break
        try:
            found.append(piece.decode())
        except UnicodeDecodeError:
            raise _wrong(tensor, "holds bytes that are not UTF-8") from None
        at += 4 + size
    if at != len(content) or len(found) != count:
        raise _wrong(tensor, f"does not hold {count} texts, each after its length in four bytes")
    return found


def _tensor(name: str, values: np.ndarray) -> dict[str, Any]:
    datatype = {"b": "BOOL", "O": "BYTES", "U": "BYTES"}.get(values.dtype.kind)
    if datatype is None:
        datatype = f"{'FP' if values.dtype.kind == 'f' else 'INT'}{values.dtype.itemsize * 8}"
    return {"name": name, "shape": list(values.shape), "datatype": datatype}


def _to_binary(datatype: str, values: np.ndarray) -> bytes:
    if datatype != "BYTES":
        return values.astype(DTYPES[datatype]).tobytes()
    texts = [str(each).encode() for each in values.ravel()]
    return b"".join(len(each).to_bytes(4, "little") + each for each in texts)


def _wrong(tensor: Tensor, what: str) -> RequestInvalid:
    return RequestInvalid(f"tensor {tensor.name!r:.80} {what}", fields=[tensor.name[:80]])
