"""The model package: a folder that answers predictions anywhere, with onnxruntime and NumPy alone.

    model.onnx     raw feature columns → probabilities, or numbers (see manta.models.graph)
    package.json   what it is, what it takes, and the SHA-256 of every other file
    …              whatever the trainer adds, listed in package.json too

The digest of a package is the SHA-256 of its package.json, and so of everything in it. A package is written
whole or not at all, and never changed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manta.errors import ModelUnavailable, RequestInvalid
from manta.models.encoding import vector_length

GRAPH = "model.onnx"
CARD = "package.json"
FORMAT = 1
NUMBERS = ("float32", "float64")


def write(folder: Path, files: Mapping[str, bytes], card: Mapping[str, Any]) -> tuple[Path, str]:
    """Write a package below ``folder`` and return ``(location, digest)``; the same content again gives the
    same answer.

    Args:
        files: by name; one is :data:`GRAPH`.
        card: what package.json says besides; ``inputs`` maps each feature to its type.
    """
    sums = {name: _sha256(content) for name, content in sorted(files.items())}
    text = json.dumps({"format": FORMAT, **card, "files": sums}, indent=2, sort_keys=True).encode()
    digest = _sha256(text)
    location = folder / digest[:16]
    if location.exists():
        return location, digest
    folder.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=".staged-", dir=folder))
    staged.chmod(0o755)
    for name, content in {**files, CARD: text}.items():
        (staged / name).write_bytes(content)
    try:
        staged.rename(location)
    except OSError:
        # Another attempt of the same run was faster; what it wrote is the same.
        shutil.rmtree(staged)
        if not location.exists():
            raise
    return location, digest


def load(location: str | Path, digest: str | None = None, *, threads: int = 1) -> Package:
    """The package in a folder, ready to predict.

    Args:
        digest: what the package must be; None takes it as it is (its files are still checked).
        threads: for one prediction; replicas scale by processes.

    Raises:
        ModelUnavailable: nothing there, or not what ``digest`` and package.json say.
    """
    folder = Path(str(location).removeprefix("file://"))
    try:
        text = (folder / CARD).read_bytes()
        if digest is not None and _sha256(text) != digest:
            raise ModelUnavailable(
                f"the package in {folder} is not the one that was registered: its digest is {_sha256(text)}, "
                f"not {digest}",
                hint="train again, or point the alias at another version",
            )
        card = json.loads(text)
        if card.get("format") != FORMAT:
            raise ModelUnavailable(f"the package in {folder} has format {card.get('format')}, not {FORMAT}")
        graph = b""
        for name, expected in card["files"].items():
            content = (folder / name).read_bytes()
            if _sha256(content) != expected:
                raise ModelUnavailable(
                    f"{folder / name} has been changed since it was packaged",
                    hint="train again, or point the alias at another version",
                )
            graph = content if name == GRAPH else graph
        return Package(card, graph, digest or _sha256(text), threads)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelUnavailable(
            f"{folder} holds no model package: {error}",
            hint="train again, or point the alias at another version",
        ) from error


class Package:
    """A loaded model. Safe to use from several threads.

    Attributes:
        card: what package.json says.
        digest: the package's identity.
        inputs: feature → "string", "int64", "bool" (categories), "float32" or "float64" (any number or
            boolean), "float32[64]" (a vector of as many).
        task: what it predicts: "binary", "multiclass" or "regression".
        classes: what a multiclass model tells apart, in the order of its probabilities; else empty.
    """

    def __init__(self, card: dict[str, Any], graph: bytes, digest: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread pool takes the cores from the replicas beside it.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own errors share no base below Exception
            raise ModelUnavailable(f"onnxruntime cannot load the model: {error}") from error
        self.card = card
        self.digest = digest
        # In the graph's order, which is that of the training's features: package.json is sorted.
        order = {one.name: at for at, one in enumerate(self._session.get_inputs())}
        kinds: dict[str, str] = card["inputs"]
        self.inputs = {name: kinds[name] for name in sorted(kinds, key=lambda name: order.get(name, -1))}
        self._lengths = {name: length for name, kind in kinds.items() if (length := vector_length(kind))}
        self.task: str = card.get("task", "binary")  # before there were others, cards did not say
        self.classes: tuple[str, ...] = tuple(card.get("classes", ()))

    def predict(self, columns: Mapping[str, Any]) -> np.ndarray:
        """The answer to each row, float32: its probability, [n]; of a multiclass model that of each class,
        [n, k]; of a regression the number, [n].

        Args:
            columns: per feature a list, a NumPy or a pyarrow array, all of one length; None and NaN are
                missing values. Vectors are lists of numbers, or a matrix. Columns that the model does not
                take are ignored.

        Raises:
            RequestInvalid: a column is missing, of another length, or of the wrong type; a vector is of
                another length than the model takes.
        """
        missing = [name for name in self.inputs if name not in columns]
        if missing:
            raise RequestInvalid(
                f"missing: {', '.join(missing)}",
                hint=f"the model takes {', '.join(self.inputs)}",
                fields=missing,
            )
        feeds = {
            name: _numbers(name, kind, columns[name])
            if kind in NUMBERS
            else _vectors(name, self._lengths[name], columns[name])
            if name in self._lengths
            else _texts(name, kind, columns[name])
            for name, kind in self.inputs.items()
        }
        lengths = {name: len(values) for name, values in feeds.items()}
        if len(set(lengths.values())) > 1:
            raise RequestInvalid(f"the columns have different lengths: {lengths}")
        if not next(iter(lengths.values())):
            return np.empty((0, len(self.classes)) if self.classes else 0, dtype=np.float32)
        answered: np.ndarray = self._session.run(None, feeds)[0]
        return answered


def _numbers(name: str, kind: str, values: Any) -> np.ndarray:
    try:
        raw = np.asarray(values)  # of a pyarrow array: null becomes NaN, or None among booleans
    except ValueError:
        raise _wrong(name, "numbers, one per row", values) from None
    if raw.ndim == 1 and raw.dtype.kind == "O":
        wrong = next((one for one in raw if one is not None and not _is_number(one)), None)
        if wrong is not None:
            raise _wrong(name, "a number", wrong)
        raw = np.array([np.nan if one is None else float(one) for one in raw], dtype=np.float64)
    if raw.ndim != 1 or raw.dtype.kind not in "fiub":
        raise _wrong(name, "a number", raw.tolist()[0] if raw.ndim and len(raw) else values)
    with np.errstate(
        over="ignore"
    ):  # what float32 cannot hold becomes infinite, which the graph takes as missing
        return raw.astype(kind)


def _vectors(name: str, length: int, values: Any) -> np.ndarray:
    """float32 [n, length], NaN where something is missing."""
    try:
        raw = np.asarray(values)
    except ValueError:
        raw = np.empty(0, dtype=object)  # of several lengths
    if raw.ndim == 0:
        raise _wrong(name, f"a list of {length} numbers per row", values)
    if raw.ndim != 2 or raw.dtype.kind not in "fiub":
        rows = values.tolist() if hasattr(values, "tolist") else list(values)
        raw = np.array([_vector(name, length, row, number) for number, row in enumerate(rows)])
        raw = raw.reshape(len(rows), length)
    elif raw.shape[1] != length:
        raise _of_another_length(name, length, raw.shape[1], 0)
    with np.errstate(over="ignore"):
        return raw.astype(np.float32)


def _vector(name: str, length: int, row: Any, number: int) -> np.ndarray:
    if row is None or (isinstance(row, float) and row != row):
        return np.full(length, np.nan)
    if not isinstance(row, list | tuple | np.ndarray):
        raise _wrong(name, f"a list of {length} numbers", row)
    if len(row) != length:
        raise _of_another_length(name, length, len(row), number)
    wrong = next((one for one in row if one is not None and not _is_number(one)), None)
    if wrong is not None:
        raise _wrong(name, f"a list of {length} numbers", wrong)
    return np.array([np.nan if one is None else float(one) for one in row], dtype=np.float64)


def _of_another_length(name: str, length: int, found: int, number: int) -> RequestInvalid:
    return RequestInvalid(
        f"{name}: the model takes vectors of {length} numbers, and row {number} has {found}",
        hint="give as many numbers as it was trained with; null stands for one that is missing",
        fields=[name],
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number | np.bool_)


def _texts(name: str, kind: str, values: Any) -> np.ndarray:
    rows = values.tolist() if hasattr(values, "tolist") else list(values)
    try:
        return np.array([_text(kind, value) for value in rows], dtype=object)
    except TypeError as error:
        expected = {"string": "a string", "int64": "a whole number", "bool": "true or false"}[kind]
        raise _wrong(name, expected, error.args[0]) from None


def _text(kind: str, value: Any) -> str:
    if kind == "string" and type(value) is str:
        return value
    if value is None or value != value:
        return ""
    if kind == "bool" and isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if kind == "int64" and isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    raise TypeError(value)


def _wrong(name: str, expected: str, value: Any) -> RequestInvalid:
    return RequestInvalid(f"{name}: expected {expected}, got {value!r}", fields=[name])


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _MlflowModel:
    """The face that `mlflow.pyfunc.load_model` wants."""

    def __init__(self, package: Package) -> None:
        self._package = package

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> Any:
        """An array [n]; of a multiclass model a frame with a column of probabilities for each class."""
        columns: Mapping[str, Sequence[Any]] = rows
        if hasattr(rows, "to_dict") and not isinstance(rows, Mapping):
            columns = {str(name): rows[name].tolist() for name in rows.columns}
        answered = self._package.predict(columns)
        if self._package.task != "multiclass":
            return answered
        import pandas as pd  # whoever has MLflow has it

        return pd.DataFrame(answered, columns=list(self._package.classes))


def _load_pyfunc(path: str) -> _MlflowModel:
    # Named by the MLmodel that `manta.models.registry` writes; MLflow calls it.
    return _MlflowModel(load(path))
