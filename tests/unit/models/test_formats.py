"""What may be loaded from whom: each malicious file is refused, and nothing of it runs."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import onnx
import pytest
import torch
import xgboost
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save

from manta.errors import ModelRefused
from manta.models import boosters, foreign, formats
from manta.models.formats import Kind, examine, kind_of

FLOATS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(2, dtype=np.int64)}


class Payload:
    """Unpickled, it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def graph(**changes: Any) -> onnx.ModelProto:
    """``wind`` float [n] → ``probability``."""
    given = helper.make_tensor_value_info("wind", TensorProto.FLOAT, ["n"])
    gives = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["n"])
    nodes = changes.pop("nodes", [helper.make_node("Sigmoid", ["wind"], ["probability"])])
    initializer = changes.pop("initializer", [])
    opsets = changes.pop("opsets", [helper.make_opsetid("", 17)])
    made = helper.make_graph(nodes, "g", [given], [gives], initializer=initializer)
    return helper.make_model(made, opset_imports=opsets, ir_version=8)


def booster() -> xgboost.Booster:
    random = np.random.default_rng(1)
    x = random.normal(size=(200, 2)).astype(np.float32)
    rows = xgboost.DMatrix(x, x[:, 0] > 0, feature_names=["wind", "rain"])
    return xgboost.train({"objective": "binary:logistic", "max_depth": 2}, rows, 3)


def zipped(files: dict[str, bytes], **how: Any) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **how) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def mlmodel(flavors: dict[str, Any], **files: bytes) -> bytes:
    named = {name.replace("__", "."): content for name, content in files.items()}
    return zipped({"MLmodel": json.dumps({"flavors": flavors}).encode(), **named})


PYFUNC = {"python_function": {"loader_module": "mlflow.onnx", "env": {"conda": "conda.yaml"}}}
ONNX = graph().SerializeToString()


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("m.onnx", ONNX, Kind.ONNX),
        ("m", ONNX, Kind.ONNX),
        ("m.json", bytes(booster().save_raw("json")), Kind.XGBOOST),
        ("m.ubj", bytes(booster().save_raw("ubj")), Kind.XGBOOST),
        ("m.safetensors", save(FLOATS), Kind.SAFETENSORS),
        ("m.safetensors", save(FLOATS, {"by": "me"}), Kind.SAFETENSORS),
        ("m.zip", mlmodel({"onnx": {"data": "model.onnx"}, **PYFUNC}, model__onnx=ONNX), Kind.ONNX),
    ],
)
def test_what_may_be_loaded(name: str, content: bytes, kind: Kind) -> None:
    found = examine(name, content)
    assert found.kind is kind
    assert found.content == content or kind_of(content) is Kind.MLFLOW


def test_an_mlflow_folder_of_xgboost() -> None:
    content = bytes(booster().save_raw("ubj"))
    flavors = {
        "xgboost": {"data": "model.ubj", "code": None},
        "python_function": {"loader_module": "mlflow.xgboost"},
    }
    found = examine("m.zip", mlmodel(flavors, model__ubj=content))
    assert (found.name, found.content) == ("model.ubj", content)


def _torch(payload: Payload) -> bytes:
    buffer = io.BytesIO()
    torch.save({"weights": payload}, buffer)
    return buffer.getvalue()


def _pt2(payload: Payload) -> bytes:
    """As `torch.export.save` lays it out, with a record that is unpickled."""
    return zipped(
        {
            "archive/archive_format": b"pt2",
            "archive/archive_version": b"0",
            "archive/models/model.json": b"{}",
            "archive/data/sample_inputs/model.pt": pickle.dumps(payload),
        }
    )


def _joblib(compress: Any) -> Callable[[Payload], bytes]:
    def dumped(payload: Payload) -> bytes:
        buffer = io.BytesIO()
        joblib.dump(payload, buffer, compress=compress)
        return buffer.getvalue()

    return dumped


def _folder(flavors: dict[str, Any], *pickled: str, **files: bytes) -> Callable[[Payload], bytes]:
    def made(payload: Payload) -> bytes:
        more = {name.replace(".", "__"): pickle.dumps(payload) for name in pickled}
        return mlmodel(flavors, **more, **files)

    return made


def _skops(payload: Payload) -> bytes:
    schema = {"__class__": "mkdir", "__module__": "os", "__loader__": "FunctionNode", "trusted": ["os.mkdir"]}
    return zipped(
        {"schema.json": json.dumps(schema).encode(), "0.npy": b"", "evil.bin": pickle.dumps(payload)}
    )


OWN = {"onnx": {"data": "model.onnx"}}
LOADER = {"loader_module": "mlflow.onnx"}
CLASS = {"loader_module": "mlflow.pyfunc.model", "python_model": "p.pkl"}
BEARERS: dict[str, tuple[str, Callable[[Payload], bytes], str]] = {
    **{f"pickle {n}": ("m.bin", lambda p, n=n: pickle.dumps(p, n), "is a pickle") for n in range(6)},
    "joblib": ("m.joblib", _joblib(0), "is a pickle"),
    "joblib zlib": ("m.joblib", _joblib(("zlib", 3)), "compressed"),
    "joblib gzip": ("m.joblib", _joblib(("gzip", 3)), "compressed"),
    "joblib bz2": ("m.joblib", _joblib(("bz2", 3)), "compressed"),
    "joblib xz": ("m.joblib", _joblib(("xz", 3)), "compressed"),
    "joblib lzma": ("m.joblib", _joblib(("lzma", 3)), "compressed"),
    "gzipped pickle": ("m.onnx", lambda p: gzip.compress(pickle.dumps(p)), "compressed"),
    "torch": ("m.pt", _torch, "torch archive"),
    "torch as ONNX": ("m.onnx", _torch, "torch archive"),
    "torch of old": (
        "m.pth",
        lambda p: pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(p, 2),
        "a pickle",
    ),
    "pt2": ("m.pt2", _pt2, "torch archive"),
    "skops": ("m.skops", _skops, "skops"),
    "MLflow, code paths": (
        "m.zip",
        _folder(
            {**OWN, "python_function": {"loader_module": "mlflow.onnx", "code": "code"}}, model__onnx=ONNX
        ),
        "has code in its flavor python_function",
    ),
    "MLflow, a loader": (
        "m.zip",
        _folder({**OWN, "python_function": {"loader_module": "evil"}}, model__onnx=ONNX),
        "wants the module 'evil'",
    ),
    "MLflow, a module in it": (
        "m.zip",
        _folder({**OWN, **PYFUNC}, model__onnx=ONNX, evil__py=b"import os"),
        "holds 'evil.py'",
    ),
    "MLflow, python_model": (
        "m.zip",
        _folder(
            {"python_function": {"loader_module": "mlflow.pyfunc.model", "python_model": "p.pkl"}}, "p.pkl"
        ),
        "holds 'p.pkl'",
    ),
    "MLflow, a python_model by another name": (
        "m.zip",
        _folder({**OWN, "python_function": {"python_model": "p.onnx"}}, "p.onnx", model__onnx=ONNX),
        "has python_model",
    ),
    "MLflow, sklearn": ("m.zip", _folder({"sklearn": {"pickled_model": "m.bin"}}, "m.bin"), "flavor sklearn"),
    "MLflow, pytorch": ("m.zip", _folder({"pytorch": {"model_data": "data"}}, "data"), "flavor pytorch"),
    "MLflow, ONNX that is a pickle": ("m.zip", _folder({**OWN, **PYFUNC}, "model.onnx"), "is a pickle"),
}


@pytest.mark.parametrize("case", BEARERS)
def test_what_bears_a_pickle_is_refused_and_nothing_of_it_runs(case: str, tmp_path: Path) -> None:
    name, make, match = BEARERS[case]
    mark = tmp_path / "ran"
    content = make(Payload(mark))
    with pytest.raises(ModelRefused, match=match):
        examine(name, content)
    assert not mark.exists()


def test_the_payload_does_run_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    """Else the tests above would show nothing."""
    pickle.loads(pickle.dumps(Payload(tmp_path / "ran")))
    assert (tmp_path / "ran").is_dir()
    buffer = io.BytesIO(BEARERS["joblib zlib"][1](Payload(tmp_path / "again")))
    joblib.load(buffer)
    assert (tmp_path / "again").is_dir()


def lying(header: Any, behind: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + behind


def tensor(begin: int, end: int, shape: Any = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (lying({"a": tensor(0, 8)}, b"1234"), "describes 8 bytes of tensors, and holds 4"),
        (lying({"a": tensor(0, 8)}, b"0" * 12), "holds 12"),
        (lying({"a": tensor(0, 2**62, (2**60,))}), "describes 'a' wrongly"),
        (lying({"a": tensor(0, 8, (3,))}, b"0" * 8), "describes 'a' wrongly: 8 bytes"),
        (lying({"a": tensor(0, 8, (-2,))}, b"0" * 8), "describes 'a' wrongly"),
        (lying({"a": tensor(0, 8, (2.0,))}, b"0" * 8), "describes 'a' wrongly"),
        (lying({"a": tensor(0, 8, dtype="OBJECT")}, b"0" * 8), "describes 'a' wrongly"),
        (lying({"a": tensor(0, 8), "b": tensor(4, 12)}, b"0" * 12), "overlap"),
        (lying({"a": tensor(0, 8), "b": tensor(12, 20)}, b"0" * 20), "gap"),
        (lying({"a": 5}), "describes 'a' wrongly"),
        (lying({"a": tensor(0, 8)}, b"0" * 8, length=2**39), "says that its header has"),
        (lying({"a": tensor(0, 8)}, b"0" * 8, length=500), "says that its header has"),
        (lying(b'{"a": '), "no JSON"),
        (lying(b'{"a":' * 100_000), "nested too deeply"),
    ],
)
def test_safetensors_that_lie(content: bytes, match: str) -> None:
    with pytest.raises(ModelRefused, match=match):
        examine("m.safetensors", content)


def test_zips_that_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = zipped({"MLmodel": b"{}", "model.onnx": bytes(200 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 1 << 20
    many = zipped({"MLmodel": b"{}"} | {str(at): b"" for at in range(formats.MOST_FILES)})
    linked = io.BytesIO()
    with zipfile.ZipFile(linked, "w") as archive:
        info = zipfile.ZipInfo("MLmodel")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
    for content, match in [
        (bomb, "more than 128 MiB"),
        (many, "more than 1000 files"),
        (linked.getvalue(), "leads out"),
        (zipped({"MLmodel": b"{}", "../../etc/passwd": b""}), "leads out"),
        (zipped({"MLmodel": b"{}", "/etc/passwd": b""}), "leads out"),
        (b"PK\x03\x04" + b"x" * 100, "damaged zip"),
        (zipped({"anything": b""}), "a zip archive"),
    ]:
        with pytest.raises(ModelRefused, match=match):
            examine("m.zip", content)
    # One that says it is small, and is not: what it says is believed no further than that.
    small = bytearray(zipped({"MLmodel": b"{}", "model.onnx": bytes(1000)}, compression=zipfile.ZIP_DEFLATED))
    size = struct.pack("<I", 1000)
    while (at := small.find(size)) >= 0:
        small[at : at + 4] = struct.pack("<I", 10)
    with pytest.raises(ModelRefused):
        formats._read(bytes(small), "model.onnx")


@pytest.mark.parametrize(
    ("flavors", "match"),
    [
        (b"flavors: [", "cannot be read"),
        (b"no: flavors", "cannot be read"),
        (b"flavors: 5", "without flavors"),
        (b"flavors: !!python/object/apply:os.mkdir [ran]", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b"flavors: {python_function: {loader_module: mlflow.onnx}}", "has not one"),
        (b"flavors: {onnx: {data: ../../model.onnx}}", "holds no"),
        (b"flavors: {onnx: {data: [1]}}", "does not name"),
        (b"flavors: {onnx: {data: MLmodel}}", "none of the formats"),
        (b"flavors: {xgboost: {data: model.onnx}}", "says that 'model.onnx' is an XGBoost model"),
    ],
)
def test_mlflow_folders_that_lie(
    flavors: bytes, match: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelRefused, match=match):
        examine("m.zip", zipped({"MLmodel": flavors, "model.onnx": ONNX}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("m.onnx", save(FLOATS), "is named .onnx, and is safetensors"),
        ("m.safetensors", ONNX, "is named .safetensors, and is an ONNX graph"),
        ("m.json", ONNX, "is named .json"),
        ("m.zip", ONNX, "is named .zip"),
        ("m.onnx", b"", "is empty"),
        ("m.onnx", b"\x08\x08", "none of the formats"),
        ("m.json", b"[1, 2]", "none of the formats"),
        ("m.onnx", os.urandom(0) + bytes(range(200, 255)), "none of the formats"),
        ("m.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "none of the formats"),
        ("m.txt", b"tree\nversion=v4\n", "none of the formats"),
        ("m.npy", b"\x93NUMPY\x01\x00", "none of the formats"),
    ],
)
def test_a_file_that_is_not_what_it_is_called(name: str, content: bytes, match: str) -> None:
    with pytest.raises(ModelRefused, match=match):
        examine(name, content)


def test_a_file_that_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MOST_BYTES", 10)
    with pytest.raises(ModelRefused, match="10 are the most"):
        examine("m.onnx", ONNX)


# --- ONNX ------------------------------------------------------------------------------------------------


def outside(location: str) -> onnx.ModelProto:
    held = numpy_helper.from_array(np.ones(4, dtype=np.float32), "w")
    held.ClearField("raw_data")
    held.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        entry = held.external_data.add()
        entry.key, entry.value = key, value
    nodes = [
        helper.make_node("Add", ["wind", "w"], ["x"]),
        helper.make_node("Sigmoid", ["x"], ["probability"]),
    ]
    return graph(nodes=nodes, initializer=[held])


def in_a_branch() -> onnx.ModelProto:
    """The same, in a constant of a branch."""
    held = outside("../../etc/passwd").graph.initializer[0]
    constant = helper.make_node("Constant", [], ["c"], value=held)
    branch = helper.make_graph([constant], "b", [], [helper.make_tensor_value_info("c", 1, [4])])
    flag = numpy_helper.from_array(np.array(True), "flag")
    nodes = [
        helper.make_node("If", ["flag"], ["x"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["wind", "x"], ["probability"]),
    ]
    return graph(nodes=nodes, initializer=[flag])


def looped() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, ["n"]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, ["n"]),
        ],
    )
    flag = numpy_helper.from_array(np.array(True), "flag")
    return graph(
        nodes=[helper.make_node("Loop", ["", "flag", "wind"], ["probability"], body=body)], initializer=[flag]
    )


def custom() -> onnx.ModelProto:
    nodes = [helper.make_node("Evil", ["wind"], ["probability"], domain="com.evil")]
    return graph(nodes=nodes, opsets=[helper.make_opsetid("", 17), helper.make_opsetid("com.evil", 1)])


def own_function() -> onnx.ModelProto:
    made = graph(
        nodes=[helper.make_node("F", ["wind"], ["probability"], domain="ai.onnx")],
        opsets=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx", 17)],
    )
    inner = [helper.make_node("Sigmoid", ["x"], ["y"])]
    made.functions.append(
        helper.make_function("ai.onnx", "F", ["x"], ["y"], inner, [helper.make_opsetid("", 17)])
    )
    return made


def with_io(inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
    made = graph()
    del made.graph.input[:], made.graph.output[:]
    made.graph.input.extend(helper.make_tensor_value_info(*each) for each in inputs)
    made.graph.output.extend(helper.make_tensor_value_info(*each) for each in outputs)
    return made


FLOAT = TensorProto.FLOAT


@pytest.mark.parametrize(
    ("made", "match"),
    [
        (outside("../../etc/passwd"), "keeps 'w' in another file, '../../etc/passwd'"),
        (outside("/etc/passwd"), "in another file"),
        (outside("weights.bin"), "in another file"),
        (in_a_branch(), "in another file"),
        (custom(), "operators of com.evil"),
        (graph(nodes=[helper.make_node("Evil", ["wind"], ["probability"])]), "no graph that can be run"),
        (own_function(), "functions of its own"),
        (looped(), "Loop, which need not end"),
        (graph(opsets=[helper.make_opsetid("", 12)]), "operator set before 13"),
        (with_io([("x", FLOAT, ["n", 5])], [("probability", FLOAT, ["n"])]), "not one feature"),
        (with_io([("wind", FLOAT, [7])], [("probability", FLOAT, ["n"])]), "takes 7 rows"),
        (with_io([("wind", TensorProto.BOOL, ["n"])], [("probability", FLOAT, ["n"])]), "none of float32"),
        (with_io([("probability", FLOAT, ["n"])], [("y", FLOAT, ["n"])]), "feature called"),
        (with_io([], [("probability", FLOAT, ["n"])]), "takes no inputs"),
        (with_io([("wind", FLOAT, ["n"])], [("a", FLOAT, ["n"]), ("b", FLOAT, ["n"])]), "must be the"),
        (with_io([("wind", FLOAT, ["n"])], [("label", TensorProto.INT64, ["n"])]), "must be the"),
    ],
)
def test_graphs_that_are_not_taken(made: onnx.ModelProto, match: str) -> None:
    with pytest.raises(ModelRefused, match=match):
        foreign.read(examine("m.onnx", made.SerializeToString()))


# --- XGBoost ---------------------------------------------------------------------------------------------


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    document = json.loads(bytes(booster().save_raw("json")))
    change(document["learner"])
    return json.dumps(document).encode()


def tree(learner: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = learner["gradient_booster"]["model"]["trees"][0]
    return found


def put(field: str, at: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda learner: tree(learner)[field].__setitem__(at, value)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"learner": 5}', "is no XGBoost model"),
        (b'{"version": [3]}', "has no 'learner'"),
        (b'{"learner', "no JSON"),
        (changed(put("left_children", 0, 10**6)), "goes on at node 1000000"),
        (changed(put("left_children", 0, 0)), "goes on at node 0"),
        (changed(put("right_children", 0, 1)), "goes on at node 1"),
        (changed(put("right_children", 0, -1)), "half a split"),
        (changed(put("split_indices", 0, 99)), "feature 99 of 2"),
        (changed(put("split_indices", 0, -1)), "feature -1 of 2"),
        (changed(put("split_conditions", 0, float("nan"))), "no number"),
        (changed(put("split_type", 0, 1)), "sets of categories"),
        (changed(lambda learner: tree(learner)["left_children"].append(-1)), "different lengths"),
        (changed(lambda learner: tree(learner).update(default_left=[["x"]])), "list of numbers"),
        (changed(lambda learner: learner.update(feature_names=[])), "names 0 of its 2 features"),
        (changed(lambda learner: learner.update(feature_names=["a", "a"])), "names 1 of its 2"),
        (changed(lambda learner: learner["gradient_booster"].update(name="dart")), "booster=dart"),
        (changed(lambda learner: learner["objective"].update(name="multi:softprob")), "multi:softprob"),
        (
            changed(lambda learner: learner["learner_model_param"].update(num_class="3")),
            "gives no probability",
        ),
        (changed(lambda learner: learner["learner_model_param"].update(base_score="[2E0]")), "base score"),
        (b"{L" + bytes(7) + b"\x07learner{" + b"{" * 300, "no XGBoost model"),
        (b"{L" + struct.pack(">q", 2**60), "ends before"),
        (b"{L" + struct.pack(">q", 1) + b"a[$d#L" + struct.pack(">q", 2**50), "ends before"),
        (b"{L" + struct.pack(">q", 1) + b"a[$Z#L" + struct.pack(">q", 2**50), "an array of b'Z'"),
        (b"{L" + struct.pack(">q", 1) + b"a[#L" + struct.pack(">q", 2**50), "ends before"),
        (b"{L" + struct.pack(">q", 1) + b"a" + b"[" * 100_000, "nested too deeply"),
        (bytes(booster().save_raw("ubj"))[:-100], "is no XGBoost model"),
        (bytes(booster().save_raw("ubj")) + b"Z", "goes on after"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_boosters_that_lie(content: bytes, match: str) -> None:
    with pytest.raises(ModelRefused, match=match):
        boosters.read(examine("m", content))


def test_nothing_is_left_of_compressions_unused() -> None:
    for packed in (zlib.compress(b"x"), gzip.compress(b"x"), bz2.compress(b"x"), lzma.compress(b"x")):
        assert kind_of(packed) is Kind.COMPRESSED
    assert kind_of(base64.b64encode(b"x" * 30)) is Kind.UNKNOWN
