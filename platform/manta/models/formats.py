"""What may be loaded, and from whom.

| a file of          | the platform's own runs           | anybody else                                   |
|--------------------|-----------------------------------|------------------------------------------------|
| ONNX               | yes                               | standard operators, everything within the file |
| XGBoost JSON, UBJ  | yes                               | read here, written anew, and only then loaded  |
| safetensors        | yes                               | as weights of the training's own module        |
| MLflow folder      | it is made, and never loaded      | that holds one of these, and no code           |
| torch              | with ``weights_only`` alone       | never: it bears pickles                        |
| pickle, joblib     | by the very run that wrote it     | never                                          |
| all else           | never                             | never                                          |

What a file is, is told by its content. A name that says otherwise is a reason to refuse it, and never one to
load it. Nothing of a foreign file is executed to find out, and nothing is unpacked onto a disk.
"""

from __future__ import annotations

import io
import json
import pickletools
import re
import stat
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any

from manta.definitions.training import MOST_IMPORT_BYTES
from manta.errors import ModelRefused

MOST_BYTES = MOST_IMPORT_BYTES  # as many may come out of a folder that came as a zip
MOST_FILES = 1000  # in a folder
MOST_HEADER = 8 * 2**20  # of safetensors, and of MLmodel


class Kind(StrEnum):
    """What a file is."""

    ONNX = "an ONNX graph"
    XGBOOST = "an XGBoost model"
    SAFETENSORS = "safetensors"
    MLFLOW = "an MLflow folder"
    PICKLE = "a pickle"
    COMPRESSED = "a compressed file, as joblib writes pickles"
    TORCH = "a torch archive, which bears pickles"
    SKOPS = "a skops file, which names the types that it wants trusted"
    ARCHIVE = "a zip archive"
    UNKNOWN = "none of the formats that are known here"


FOREIGN = (Kind.ONNX, Kind.XGBOOST, Kind.SAFETENSORS, Kind.MLFLOW)
SUFFIXES = {
    ".onnx": Kind.ONNX,
    ".json": Kind.XGBOOST,
    ".ubj": Kind.XGBOOST,
    ".safetensors": Kind.SAFETENSORS,
    ".zip": Kind.MLFLOW,
}
TAKEN = "export it as ONNX, XGBoost JSON or UBJ, or safetensors (weights alone)"
COMPRESSIONS = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18", b"\x5d\x00\x00")
PICKLES = tuple(bytes((0x80, protocol)) for protocol in range(6))
ZIPS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")


@dataclass(frozen=True)
class File:
    """A foreign file that may be loaded. ``kind`` is ONNX, XGBOOST or SAFETENSORS."""

    name: str
    kind: Kind
    content: bytes


def examine(name: str, content: bytes) -> File:
    """See what a foreign file is; of an MLflow folder, which came as a zip, the model in it.

    Raises:
        ModelRefused: it may not be loaded.
    """
    if not content:
        raise refused(name, "is empty")
    if len(content) > MOST_BYTES:
        raise refused(name, f"has {len(content)} bytes, and {MOST_BYTES} are the most")
    if content.startswith(ZIPS):
        try:
            _members(content)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            raise refused(name, f"is a damaged zip: {error!s:.200}") from None
    kind = kind_of(content)
    suffix = PurePosixPath(name).suffix.lower()
    said = SUFFIXES.get(suffix)
    if kind not in FOREIGN:
        raise refused(name, f"is {kind}", TAKEN)
    if said is not None and said is not kind:
        raise refused(name, f"is named {suffix}, and is {kind}", "give it the name of what it is")
    if kind is Kind.SAFETENSORS:
        check_safetensors(name, content)
    if kind is Kind.MLFLOW:
        return _in_folder(name, content)
    return File(name, kind, content)


def refused(name: str, why: str, hint: str = TAKEN) -> ModelRefused:
    return ModelRefused(f"{name} may not be loaded: it {why}", hint=hint)


def kind_of(content: bytes) -> Kind:
    """By the content alone; nothing of it is executed or unpacked."""
    if content.startswith(ZIPS):
        return _kind_of_zip(content)
    if content.startswith(PICKLES):
        return Kind.PICKLE
    if content.startswith(COMPRESSIONS) or _is_zlib(content):
        return Kind.COMPRESSED
    if _header_length(content) is not None:
        return Kind.SAFETENSORS
    if re.match(rb'\{L|\s*\{\s*"', content):
        return Kind.XGBOOST
    if _is_onnx(content):
        return Kind.ONNX
    return Kind.PICKLE if _is_old_pickle(content) else Kind.UNKNOWN


def _is_zlib(content: bytes) -> bool:
    return content[:1] == b"\x78" and len(content) > 1 and int.from_bytes(content[:2], "big") % 31 == 0


def _is_old_pickle(content: bytes) -> bool:
    """Protocols 0 and 1 have no mark: whether it reads as one from end to end."""
    try:
        return sum(1 for _ in pickletools.genops(content[: 2**20])) > 1
    except Exception:  # whatever it says of what it cannot read
        return False


def _is_onnx(content: bytes) -> bool:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError:
        return False
    return bool(model.ir_version and model.graph.node)


def _header_length(content: bytes) -> int | None:
    """Of safetensors' header; None where there is none."""
    if len(content) < 10 or content[8:9] != b"{":
        return None
    (length,) = struct.unpack("<Q", content[:8])
    return int(length) if length < 2**40 else None


# --- safetensors -----------------------------------------------------------------------------------------

WIDTHS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def check_safetensors(name: str, content: bytes) -> None:
    """Raises:
    ModelRefused: the header does not describe exactly what follows it.
    """
    length = _header_length(content)
    if length is None or length > min(MOST_HEADER, len(content) - 8):
        raise refused(name, f"says that its header has {length} bytes, and has {len(content)} in all")
    header = parsed_json(name, content[8 : 8 + length])
    parts = []
    for tensor, told in header.items():
        if tensor == "__metadata__":
            continue
        try:
            begin, end = told["data_offsets"]
            count = 1
            for size in told["shape"]:
                if type(size) is not int or not 0 <= size <= MOST_BYTES:
                    raise ValueError(f"shape {told['shape']}")
                count *= size
            if type(begin) is not int or type(end) is not int or end - begin != count * WIDTHS[told["dtype"]]:
                raise ValueError(f"{end - begin} bytes for shape {told['shape']} of {told['dtype']}")
        except (KeyError, TypeError, ValueError) as error:
            raise refused(name, f"describes {tensor!r:.80} wrongly: {error!s:.200}") from None
        parts.append((begin, end))
    reached = 0
    for begin, end in sorted(parts):
        if begin != reached:
            raise refused(name, f"has tensors that overlap or leave a gap at byte {begin}")
        reached = end
    if reached != len(content) - 8 - length:
        raise refused(name, f"describes {reached} bytes of tensors, and holds {len(content) - 8 - length}")


def parsed_json(name: str, content: bytes) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ModelRefused: it is none, or nested too deeply.
    """
    try:
        found = json.loads(content)
    except RecursionError:
        raise refused(name, "is nested too deeply") from None
    except ValueError as error:
        raise refused(name, f"is no JSON: {error!s:.200}") from None
    if not isinstance(found, dict):
        raise refused(name, "is no JSON object")
    return found


# --- folders that come as a zip --------------------------------------------------------------------------


def _kind_of_zip(content: bytes) -> Kind:
    try:
        names = {info.filename for info in _members(content)}
    except (ModelRefused, zipfile.BadZipFile, ValueError, NotImplementedError):
        return Kind.ARCHIVE
    last = {PurePosixPath(name).name for name in names}
    if "MLmodel" in names:
        return Kind.MLFLOW
    if last & {"data.pkl", "archive_format", "archive_version", "byteorder"}:
        return Kind.TORCH
    if any(name.endswith((".pkl", ".pickle", ".joblib")) for name in last):
        return Kind.PICKLE
    return Kind.SKOPS if "schema.json" in names else Kind.ARCHIVE


def _members(content: bytes) -> list[zipfile.ZipInfo]:
    """Raises:
    ModelRefused: too many, too large, or with names that lead elsewhere.
    """
    # Before the list of them is read: it could be all that the file holds.
    if content.count(b"PK\x01\x02") > MOST_FILES:
        raise refused("the zip", f"holds more than {MOST_FILES} files")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        found = archive.infolist()
    if sum(info.file_size for info in found) > MOST_BYTES:
        raise refused("the zip", f"holds more than {MOST_BYTES >> 20} MiB when it is unpacked")
    names = [info.filename for info in found]
    for info in found:
        path = PurePosixPath(info.filename)
        linked = stat.S_ISLNK(info.external_attr >> 16)
        if path.is_absolute() or ".." in path.parts or "\\" in info.filename or linked:
            raise refused("the zip", f"holds {info.filename!r:.80}, which leads out of it")
        if info.flag_bits & 1:
            raise refused("the zip", "is encrypted")
    if len(set(names)) != len(names):
        raise refused("the zip", "holds a file twice")
    return found


def _read(content: bytes, member: str) -> bytes:
    """Raises:
    ModelRefused: it is not there, damaged, or larger than it says.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(member) as opened:
            found = opened.read(MOST_BYTES + 1)
    except KeyError:
        raise refused("the folder", f"holds no {member!r:.80}, which its MLmodel names") from None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise refused(member, f"cannot be read from its zip: {error!s:.200}") from None
    if len(found) > MOST_BYTES:
        raise refused(member, f"is larger than {MOST_BYTES >> 20} MiB")
    return found


# --- MLflow ----------------------------------------------------------------------------------------------

FLAVORS = {"onnx": (Kind.ONNX, "mlflow.onnx"), "xgboost": (Kind.XGBOOST, "mlflow.xgboost")}
CODE = ("code", "code_paths", "python_model", "model_code_path", "model_class", "pickled_model")
CODE_SUFFIXES = (".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle", ".py", ".pyc", ".so", ".pt", ".pth")


def _in_folder(name: str, content: bytes) -> File:
    """The model of an MLflow folder.

    Raises:
        ModelRefused: it has code, a pickle, or another flavor than ONNX and XGBoost.
    """
    members = [info.filename for info in _members(content)]
    for member in members:
        if member.lower().endswith(CODE_SUFFIXES):
            raise refused(name, f"holds {member!r:.80}, and code and pickles are not loaded")
    flavors = _flavors(name, _read(content, "MLmodel"))
    strange = sorted(str(flavor) for flavor in flavors if flavor not in (*FLAVORS, "python_function"))
    if strange:
        raise refused(name, f"is of the flavor {', '.join(strange)!s:.80}", "only onnx and xgboost are taken")
    own = [flavor for flavor in FLAVORS if flavor in flavors]
    if len(own) != 1:
        raise refused(name, "has not one of the flavors onnx and xgboost", TAKEN)
    kind, loader = FLAVORS[own[0]]
    for flavor, told in flavors.items():
        with_code = [field for field in CODE if told.get(field)]
        if with_code:
            raise refused(name, f"has {with_code[0]} in its flavor {flavor}: code is not loaded")
    loads = flavors.get("python_function", {}).get("loader_module", loader)
    if loads != loader:
        raise refused(name, f"wants the module {loads!r:.80} to load it: code is not loaded")
    data = flavors[own[0]].get("data")
    if not isinstance(data, str):
        raise refused(name, "does not name its model's file")
    found = examine(data, _read(content, data))
    if found.kind is not kind:
        raise refused(name, f"says that {data!r:.80} is {kind}, and it is {found.kind}")
    return found


def _flavors(name: str, content: bytes) -> Mapping[str, Mapping[str, Any]]:
    import yaml

    if len(content) > MOST_HEADER:
        raise refused(name, "has an MLmodel that is too large")
    try:
        flavors = yaml.safe_load(content)["flavors"]
    except (yaml.YAMLError, RecursionError, TypeError, KeyError, ValueError) as error:
        raise refused(name, f"has an MLmodel that cannot be read: {type(error).__name__}") from None
    if not isinstance(flavors, dict) or not all(isinstance(each, dict) for each in flavors.values()):
        raise refused(name, "has an MLmodel without flavors")
    return flavors
