"""On-demand features: the same call of the same function for a training set and for a request.

A function in Feast's Python mode takes a dict of columns (lists of one length) and gives a dict of columns.
It is called once for all rows. It sees the features it declares, under `name` and under `view__name`, the
fields of the request and the join keys; a missing value is None.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from manta.errors import DefinitionInvalid
from manta.features.compiled import OnDemand
from manta.features.wire import item_type

Function = Callable[[dict[str, Any]], Mapping[str, Any]]
Columns = Mapping[str, Sequence[Any]]


def compute(
    view: OnDemand, function: Function, inputs: Columns, known: Columns, rows: int
) -> dict[str, list[Any]]:
    """The view's features for ``rows`` rows.

    ``inputs`` has the features it reads, by `view__name`; ``known`` the join keys and request fields.

    Raises:
        DefinitionInvalid: the function fails, or gives something else than it declares.
    """
    columns: dict[str, Any] = dict(known)
    for source, name in view.inputs:
        columns[name] = columns[f"{source}__{name}"] = inputs[f"{source}__{name}"]
    try:
        if view.singleton:
            each = [function({name: column[i] for name, column in columns.items()}) for i in range(rows)]
            answer: Mapping[str, Any] = {name: [row[name] for row in each] for name in view.features}
        else:
            answer = function(columns)
        return {name: _column(answer[name], kind, rows) for name, kind in view.features.items()}
    except Exception as error:
        raise DefinitionInvalid(
            f"on-demand view {view.name!r} ({view.function}) failed: {type(error).__name__}: {error}",
            hint="a missing feature comes as None; it must give a list of one value per row for each of "
            f"{', '.join(view.features)}",
        ) from error


def _column(values: Any, kind: str, rows: int) -> list[Any]:
    """The values as declared: the right number of them, of the right type, NaN as None."""
    listed: list[Any] = values.tolist() if hasattr(values, "tolist") else list(values)
    if len(listed) != rows:
        raise ValueError(f"{len(listed)} values for {rows} rows")
    item = item_type(kind)
    if item is not None:
        each = _CONVERT.get(item)
        return [None if value is None else _list(value, each) for value in listed]
    convert = _CONVERT.get(kind)
    if convert is None:
        return listed
    return [None if value is None or value != value else convert(value) for value in listed]


def _list(values: Any, convert: Callable[[Any], Any] | None) -> list[Any]:
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    return listed if convert is None else [None if each is None else convert(each) for each in listed]


def _integer(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise TypeError(f"{value!r} is not an integer")
    return int(value)


def _single(value: Any) -> float:
    return float(_F32.unpack(_F32.pack(value))[0])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    return value


def _instant(value: Any) -> datetime:
    if not isinstance(value, datetime):
        raise TypeError(f"{value!r} is not a time")
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


_F32 = struct.Struct("<f")
_CONVERT: dict[str, Callable[[Any], Any]] = {
    "float64": float,
    "float32": _single,
    "int64": _integer,
    "int32": _integer,
    "bool": bool,
    "string": _text,
    "timestamp": _instant,
}
