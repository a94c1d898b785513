"""Whole columns at once of what `wire.py` writes and reads one by one: the keys of a request, and the values
that it finds.

A call per value costs more than reading it does. What is given is that of `wire.py`, to the last value; what
is not of the plain form goes there.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from manta.features.wire import decode_value, key_encoder

Keys = Callable[[Sequence[Sequence[Any]], int], list[bytes | None]]
Decoded = tuple[list[Any], bool]
Decoder = Callable[[Sequence[bytes | None]], Decoded]


def keys_encoder(keys: Sequence[tuple[str, str]]) -> Keys:
    """As :func:`key_encoder`, for many rows: the function takes a column for each of ``keys``, and how many
    rows there are, and raises what that raises."""
    encode = key_encoder(keys)

    def one_by_one(columns: Sequence[Sequence[Any]], rows: int) -> list[bytes | None]:
        return [encode(values) for values in (zip(*columns, strict=True) if columns else [()] * rows)]

    plain = _PLAIN.get(keys[0][1]) if len(keys) == 1 else None
    if plain is None:
        return one_by_one
    kind, head_and_values = plain
    own = head_and_values(encode([kind()]) or b"")

    def together(columns: Sequence[Sequence[Any]], rows: int) -> list[bytes | None]:
        if set(map(type, columns[0])) == {kind}:
            try:
                return own(columns[0])
            except struct.error:
                pass  # a number does not fit: it is named below
        return one_by_one(columns, rows)

    return together


def each_once(keys: Sequence[bytes | None]) -> list[bytes]:
    """Those keys, in order, without the missing ones."""
    return [key for key in dict.fromkeys(keys) if key is not None]


def _texts_after(sample: bytes) -> Callable[[Sequence[str]], list[bytes | None]]:
    head, size = sample[:-4], struct.Struct("<I").pack
    return lambda column: [head + size(len(data)) + data for data in map(str.encode, column)]


def _numbers_after(form: str) -> Callable[[bytes], Callable[[Sequence[int]], list[bytes | None]]]:
    number = struct.Struct(form)

    def after(sample: bytes) -> Callable[[Sequence[int]], list[bytes | None]]:
        head, pack = sample[: -number.size], number.pack
        return lambda column: [head + pack(value) for value in column]

    return after


# The type that values have, and what makes an encoder of the key of nothing, or nought.
_PLAIN: dict[str, tuple[type, Callable[[bytes], Callable[[Sequence[Any]], list[bytes | None]]]]] = {
    "string": (str, _texts_after),
    "int64": (int, _numbers_after("<q")),
    "int32": (int, _numbers_after("<i")),
}


def column_decoder(type_name: str) -> Decoder:
    """How a column of that type is read: the function gives what :func:`decode_value` gives for each value,
    whatever that value's own type, and whether none of them is None."""
    return _COLUMN.get(type_name, _each)


def _each(column: Sequence[bytes | None]) -> Decoded:
    values = [decode_value(data) for data in column]
    return values, None not in values


def _numbers(tag: int, form: str) -> Decoder:
    """Of numbers that are written as they are in memory."""
    one = struct.Struct("<x" + form)
    size, unpack = one.size, one.unpack

    @lru_cache(1024)
    def tags_and_all(rows: int) -> tuple[bytes, Callable[[bytes], tuple[Any, ...]]]:
        return bytes([tag]) * rows, struct.Struct("<" + f"x{form}" * rows).unpack

    def decode(column: Sequence[bytes | None]) -> Decoded:
        try:
            if set(map(len, column)) == {size}:  # type: ignore[arg-type]
                data = b"".join(column)  # type: ignore[arg-type]
                tags, unpack_all = tags_and_all(len(column))
                if data[::size] == tags:
                    return list(unpack_all(data)), True
        except TypeError:
            pass  # one is not held, and has no length
        values = [
            unpack(data)[0] if data and data[0] == tag and len(data) == size else decode_value(data)
            for data in column
        ]
        return values, None not in values

    return decode


def _integers(tag: int) -> Decoder:
    """Most are small: one byte or two after the tag, seven bits in each."""

    def decode(column: Sequence[bytes | None]) -> Decoded:
        values = [
            decode_value(data)
            if not data or data[0] != tag or len(data) > 3
            else data[1]
            if len(data) == 2
            else data[1] & 0x7F | data[2] << 7
            for data in column
        ]
        return values, None not in values

    return decode


def _truths(column: Sequence[bytes | None]) -> Decoded:
    try:
        return [_TRUTH[data] for data in column], True  # type: ignore[index]
    except KeyError:
        return _each(column)


def _texts(column: Sequence[bytes | None]) -> Decoded:
    values = [
        data[2:].decode() if data and data[0] == 0x12 and data[1] < 0x80 else decode_value(data)
        for data in column
    ]
    return values, None not in values


_TRUTH = {b"\x38\x01": True, b"\x38\x00": False}
_COLUMN: dict[str, Decoder] = {
    "float64": _numbers(0x29, "d"),
    "float32": _numbers(0x35, "f"),
    "int64": _integers(0x20),
    "int32": _integers(0x18),
    "bool": _truths,
    "string": _texts,
}
