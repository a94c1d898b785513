"""MLflow's scoring protocol: `/invocations` beside `/ping`, `/health` and `/version`, as its own server
answers them. What a row holds may also be the endpoint's keys: then its features are looked up.

Written after MLflow's documentation of its inference server's forms of input.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from manta import __version__
from manta.errors import RequestInvalid
from manta.serving import core
from manta.serving.http import JSON, Answer, json_of, require_media_type
from manta.serving.protocols import Call

CSV = "text/csv"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
HINT = f"send one of {', '.join(FORMS)}, or text/csv"
Columns = dict[str, Any]


def answer(call: Call) -> Answer:
    """Raises:
    RequestInvalid: what is sent does not fit the model.
    """
    if call.path in ("ping", "health"):
        call.asked.only("GET", "HEAD")
        return Answer(200, JSON, b"\n")
    if call.path == "version":
        call.asked.only("GET", "HEAD")
        return Answer(200, "text/plain", f"manta {__version__}".encode())
    call.asked.only("POST")
    require_media_type(call.asked.media_type, JSON, CSV)
    columns = _of_csv(call) if call.asked.media_type == CSV else _of_json(call)
    rows = len(next(iter(columns.values()), ()))
    if rows > call.endpoint.max_rows:
        raise core.too_many(rows, call.endpoint)
    # As the registered model answers when MLflow itself loads it: its first output alone, of several classes
    # a column each.
    found = next(iter(core.by_columns(call.endpoint, call.loaded, columns).values())).tolist()
    if call.loaded.package.task == "multiclass":
        found = [dict(zip(call.loaded.package.classes, row, strict=True)) for row in found]
    return json_of({"predictions": found})


def _of_json(call: Call) -> Columns:
    body = _json(call.content)
    if not isinstance(body, dict):
        raise RequestInvalid("the body must be an object", hint=HINT)
    if body.get("params"):
        raise RequestInvalid("this model takes no params", hint="leave params out", fields=["params"])
    forms = [name for name in body if name != "params"]
    if len(forms) != 1 or forms[0] not in FORMS:
        raise RequestInvalid(f"the body has {', '.join(map(repr, forms)) or 'nothing':.200}", hint=HINT)
    given = body[forms[0]]
    if forms[0] == "dataframe_split":
        return _of_split(given)
    if forms[0] == "inputs" and isinstance(given, dict):
        return _of_columns(given)
    if isinstance(given, dict) and forms[0] == "instances":
        return _of_columns(given)
    return _of_list(call, given, forms[0])


def _json(content: bytes) -> Any:
    try:
        return msgspec.json.decode(content)
    except (ValueError, RecursionError):  # ValueError: msgspec's own, and text that is not UTF-8
        pass
    try:
        return json.loads(
            content
        )  # slower; and takes the NaN that MLflow's client writes for a missing value
    except (ValueError, RecursionError) as error:
        raise RequestInvalid(f"the body is not JSON: {error}", hint=HINT) from None


def _of_split(given: Any) -> Columns:
    names, data = (given.get("columns"), given.get("data")) if isinstance(given, dict) else (None, None)
    if not isinstance(data, list) or not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise RequestInvalid(
            "dataframe_split must have columns, a list of names, and data, a list of rows", hint=HINT
        )
    return _transposed(names, data)


def _of_columns(given: Mapping[str, Any]) -> Columns:
    """A column each; what is no list is one row's."""
    columns = {name: values if isinstance(values, list) else [values] for name, values in given.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise RequestInvalid(f"the columns have different lengths: {lengths}", fields=sorted(lengths))
    return columns


def _of_list(call: Call, given: Any, form: str) -> Columns:
    if not isinstance(given, list):
        raise RequestInvalid(f"{form} must be a list of rows", hint=HINT)
    if given and all(isinstance(row, dict) for row in given):
        names = list(given[0])
        for number, row in enumerate(given):
            other = set(row) ^ set(names)
            if other:
                raise RequestInvalid(
                    f"row {number} of {form} has other names than row 0: {', '.join(sorted(other)):.200}",
                    hint="null is a missing value",
                    fields=sorted(other),
                )
        return {name: [row[name] for row in given] for name in names}
    if form != "dataframe_records" and all(isinstance(row, list) for row in given):
        return _transposed(list(call.loaded.package.inputs), given)
    raise RequestInvalid(f"{form} must be a list of objects", hint=HINT)


def _transposed(names: Sequence[str], data: Sequence[Any]) -> Columns:
    if len(set(names)) < len(names):
        raise RequestInvalid(
            "a column is named twice", fields=sorted({n for n in names if names.count(n) > 1})
        )
    for number, row in enumerate(data):
        if not isinstance(row, list) or len(row) != len(names):
            held = f"{len(row)} values" if isinstance(row, list) else "no list"
            raise RequestInvalid(f"row {number} has {held} for {len(names)} columns", hint=", ".join(names))
    return {name: [row[at] for row in data] for at, name in enumerate(names)}


def _of_csv(call: Call) -> Columns:
    """The first line names the columns; an empty field is missing."""
    try:
        lines = list(csv.reader(io.StringIO(call.content.decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RequestInvalid(f"the body is not CSV in UTF-8: {error}", hint=HINT) from None
    if not lines:
        raise RequestInvalid("the body is empty", hint="its first line names the columns")
    columns = _transposed(lines[0], [line for line in lines[1:] if line])
    known = call.loaded.fields | call.loaded.service.types | call.loaded.package.inputs
    return {
        name: [_typed(each, name, known.get(name, "")) for each in column] for name, column in columns.items()
    }


def _typed(text: str, name: str, kind: str) -> Any:
    if text == "":
        return None
    try:
        if kind.startswith("int"):
            return int(text)
        if kind.startswith("float"):
            return float(text)
        if kind == "bool":
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
    except (ValueError, KeyError):
        raise RequestInvalid(f"{name!r:.80}: {text!r:.80} is no {kind}", fields=[name[:80]]) from None
    return text
