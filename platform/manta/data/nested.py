"""Lists and structs: taken apart to their plain values, which are converted, and put together again.

A list or struct fits when all that is in it does. ``convert`` is :func:`manta.data.values.as_kind`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa

from manta.definitions.types import Kind

Convert = Callable[[pl.Series, Kind], pl.Series | None]


def lists(values: pl.Series, item: Kind, convert: Convert) -> pl.Series | None:
    """Lists with each element converted; null where one does not fit; None when no element ever does."""
    arrow = cast(pa.LargeListArray, values.rechunk().to_arrow())
    elements = pl.Series(values=pl.from_arrow(arrow.values))
    found = convert(elements, item)
    if found is None:
        return None
    offsets = arrow.offsets.to_numpy(zero_copy_only=False)
    unfit = np.concatenate([[0], np.cumsum((elements.is_not_null() & found.is_null()).to_numpy())])
    gone = values.is_null().to_numpy() | (unfit[offsets[1:]] > unfit[offsets[:-1]])
    # Its own copy of the offsets: a mask and a slice do not go together.
    made = pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), found.rechunk().to_arrow(), mask=pa.array(gone)
    )
    return pl.Series(values.name, pl.from_arrow(made))


def structs(values: pl.Series, fields: tuple[tuple[str, Kind], ...], convert: Convert) -> pl.Series | None:
    """Structs with each field converted, others dropped; null where one does not fit; None when one never
    does, or is missing."""
    held = {field.name for field in cast(pl.Struct, values.dtype).fields}
    gone, made = values.is_null(), []
    for name, kind in fields:
        if name not in held:
            return None
        before = values.struct.field(name)
        found = convert(before, kind)
        if found is None:
            return None
        gone = gone | (before.is_not_null() & found.is_null())
        made.append(found.alias(name))
    whole = pl.struct([pl.lit(field) for field in made])
    return pl.select(pl.when(pl.lit(~gone)).then(whole).alias(values.name)).to_series()


def from_json(values: pl.Series, kind: Kind, convert: Convert) -> pl.Series | None:
    """JSON texts; what is inside is converted from its own text, so that no number goes through a float.

    A field that an object lacks is null; one that the type lacks is dropped.
    """
    # `strict`, so that nothing but text gets in.
    texts = pl.Series(values.name, [_texts(text, kind) for text in values], dtype=_held_as(kind), strict=True)
    return convert(texts, kind)


def _texts(text: str | None, kind: Kind) -> Any:
    if text is None:
        return None
    try:
        whole = json.loads(
            text,
            parse_int=str,
            parse_float=str,
            parse_constant=_refuse,
            object_pairs_hook=_object,
        )
        return _shaped(whole, kind)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name comes twice")
    return found


def _shaped(value: Any, kind: Kind) -> Any:
    """The value with the shape of ``kind`` and texts for what is plain.

    Raises:
        ValueError: it has another shape.
    """
    if value is None:
        return None
    if kind.name == "list" and kind.item is not None and isinstance(value, list):
        return [_shaped(element, kind.item) for element in value]
    if kind.name == "struct" and isinstance(value, dict):
        return {name: _shaped(value.get(name), field) for name, field in kind.fields}
    if kind.name in ("list", "struct") or isinstance(value, (list, dict)):
        raise ValueError("another shape")
    if isinstance(value, bool):
        return "true" if value else "false"
    text = cast(str, value)
    if not text.isascii():
        text.encode()  # half a surrogate pair is no text
    return text


def _held_as(kind: Kind) -> pl.DataType:
    if kind.item is not None:
        return pl.List(_held_as(kind.item))
    if kind.fields:
        return pl.Struct({name: _held_as(field) for name, field in kind.fields})
    return pl.String()
