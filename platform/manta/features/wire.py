"""Feast's bytes without Feast: entity keys (serialization version 3) and values (`feast.types.Value`).

Types are named `string`, `bytes`, `int32`, `int64`, `float64`, `float32`, `bool`, `timestamp` (an instant,
kept as whole seconds) and `list[…]` of any of them. The golden tests hold every function here to Feast's own.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

# Feast numbers its value types as it numbers the fields of the protobuf message; a list is 10 more.
NUMBER = {
    "bytes": 1,
    "string": 2,
    "int32": 3,
    "int64": 4,
    "float64": 5,
    "float32": 6,
    "bool": 7,
    "timestamp": 8,
}
SCALARS = tuple(NUMBER)
KEY_TYPES = ("bytes", "string", "int32", "int64", "timestamp")

# The placeholder under which Feast keeps the one row of a view without entities.
DUMMY_KEY, DUMMY_VALUE = "__dummy_id", ""

# What Feast writes for a timestamp that is missing.
NO_TIME = -(2**63)

_U32, _F64, _F32 = struct.Struct("<I"), struct.Struct("<d"), struct.Struct("<f")
_VARINT, _LENGTH = 0, 2  # protobuf's wire types that need a loop to read


def item_type(type_name: str) -> str | None:
    """`int64` of `list[int64]`; None for a scalar."""
    return type_name[5:-1] if type_name.startswith("list[") else None


# --- entity keys --------------------------------------------------------------------------------------------


def key_encoder(keys: Sequence[tuple[str, str]]) -> Callable[[Sequence[Any]], bytes | None]:
    """How the entity key of a view with these join keys (name, type) is written.

    The function takes one value per key, in the order of ``keys``, and gives None when one is None: no row is
    kept under a missing key.

    Raises (the function):
        TypeError: a value is not of its key's type.
        OverflowError: an integer does not fit it.
    """
    if not keys:
        whole = key_encoder([(DUMMY_KEY, "string")])([DUMMY_VALUE])
        return lambda _values: whole
    order = sorted(range(len(keys)), key=lambda i: keys[i][0])
    names = [keys[i][0].encode() for i in order]
    prefix = b"".join(
        [_U32.pack(len(names)), *(_U32.pack(NUMBER["string"]) + _U32.pack(len(n)) + n for n in names)]
    )
    parts = [(i, _KEY_VALUE[keys[i][1]]) for i in order]
    if len(parts) == 1:
        encode_one = parts[0][1]
        return lambda values: None if values[0] is None else prefix + encode_one(values[0])

    def encode(values: Sequence[Any]) -> bytes | None:
        out = prefix
        for i, encode_value in parts:
            if values[i] is None:
                return None
            out += encode_value(values[i])
        return out

    return encode


def _key_text(value: Any) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a string")
    data = value.encode()
    return _TEXT_TAG + _U32.pack(len(data)) + data


def _key_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError(f"{value!r} is not bytes")
    return _BYTES_TAG + _U32.pack(len(value)) + value


def _key_number(kind: str, form: str, seconds: bool = False) -> Callable[[Any], bytes]:
    packer = struct.Struct("<II" + form)
    tag, size = NUMBER[kind], struct.calcsize("<" + form)

    def encode(value: Any) -> bytes:
        if seconds:
            value = epoch_seconds(value)
        elif isinstance(value, bool):
            raise TypeError(f"{value!r} is not an integer")
        try:
            return packer.pack(tag, size, operator.index(value))
        except TypeError:
            raise TypeError(f"{value!r} is not an integer") from None
        except struct.error:
            raise OverflowError(f"{value!r} does not fit {kind}") from None

    return encode


_TEXT_TAG, _BYTES_TAG = _U32.pack(NUMBER["string"]), _U32.pack(NUMBER["bytes"])
_KEY_VALUE: dict[str, Callable[[Any], bytes]] = {
    "string": _key_text,
    "bytes": _key_bytes,
    "int32": _key_number("int32", "i"),
    "int64": _key_number("int64", "q"),
    "timestamp": _key_number("timestamp", "q", seconds=True),
}


def epoch_seconds(at: Any) -> int:
    """Whole seconds, rounded down; a naive time is UTC.

    Raises:
        TypeError: it is not a datetime.
    """
    if not isinstance(at, datetime):
        raise TypeError(f"{at!r} is not a time")
    return int((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() // 1)


# --- feature values -----------------------------------------------------------------------------------------


def value_encoder(type_name: str) -> Callable[[Any], bytes]:
    """How a value of the type is written; None as no bytes at all. Values must be of the type already."""
    item = item_type(type_name)
    if item is None:
        encode_one = _VALUE[type_name]
        return lambda value: b"" if value is None else encode_one(value)
    tag = _varint(NUMBER[item] + 10 << 3 | _LENGTH)
    pack = _ITEMS[item]

    def encode(value: Any) -> bytes:
        if value is None:
            return b""
        body = pack(value)
        return tag + _varint(len(body)) + body

    return encode


def _varint(number: int) -> bytes:
    number &= 0xFFFFFFFFFFFFFFFF  # negative numbers are written as 64-bit two's complement
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _tag(type_name: str, wire: int) -> bytes:
    return _varint(NUMBER[type_name] << 3 | wire)


def _sized(tag: bytes) -> Callable[[bytes], bytes]:
    return lambda data: tag + _varint(len(data)) + data


_text, _blob = _sized(_tag("string", _LENGTH)), _sized(_tag("bytes", _LENGTH))
_VALUE: dict[str, Callable[[Any], bytes]] = {
    "string": lambda value: _text(value.encode()),
    "bytes": _blob,
    "int32": lambda value: b"\x18" + _varint(value),
    "int64": lambda value: b"\x20" + _varint(value),
    "float64": lambda value: b"\x29" + _F64.pack(value),
    "float32": lambda value: b"\x35" + _F32.pack(value),
    "bool": lambda value: b"\x38\x01" if value else b"\x38\x00",
    "timestamp": lambda value: b"\x40" + _varint(epoch_seconds(value)),
}


def _packed(encode_item: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    def pack(values: Sequence[Any]) -> bytes:
        body = b"".join([encode_item(value) for value in values])
        return b"\x0a" + _varint(len(body)) + body if body else b""

    return pack


def _packed_floats(form: str) -> Callable[[Sequence[float]], bytes]:
    def pack(values: Sequence[float]) -> bytes:
        body = struct.pack(f"<{len(values)}{form}", *values)
        return b"\x0a" + _varint(len(body)) + body if body else b""

    return pack


def _repeated(encode_item: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], bytes]:
    sized = _sized(b"\x0a")
    return lambda values: b"".join([sized(encode_item(value)) for value in values])


_ITEMS: dict[str, Callable[[Sequence[Any]], bytes]] = {
    "string": _repeated(str.encode),
    "bytes": _repeated(bytes),
    "int32": _packed(_varint),
    "int64": _packed(_varint),
    "float64": _packed_floats("d"),
    "float32": _packed_floats("f"),
    "bool": _packed(lambda value: b"\x01" if value else b"\x00"),
    "timestamp": _packed(lambda value: _varint(epoch_seconds(value))),
}


def decode_value(data: bytes | None) -> Any:
    """The Python value of a `feast.types.Value`; None for a missing one, or none at all. Times are aware, in
    UTC.

    Raises:
        ValueError: a kind of value that manta does not read.
    """
    if not data:
        return None
    tag = data[0]
    if tag == 0x12:  # string; one byte of length is the rule
        size = data[1]
        if size < 0x80:
            return data[2:].decode()
        return data[_read_varint(data, 1)[1] :].decode()
    if tag == 0x29:
        return _F64.unpack_from(data, 1)[0]
    if tag in (0x20, 0x18):
        return _signed(_read_varint(data, 1)[0])
    if tag == 0x35:
        return _F32.unpack_from(data, 1)[0]
    if tag == 0x38:
        return data[1] == 1
    if tag == 0x40:
        return _instant(_signed(_read_varint(data, 1)[0]))
    if tag == 0x0A:
        return data[_read_varint(data, 1)[1] :]
    return _decode_list(data)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number and where it ends."""
    byte = data[at]
    if byte < 0x80:
        return byte, at + 1
    number, shift = byte & 0x7F, 7
    while True:
        at += 1
        byte = data[at]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at + 1
        shift += 7


def _signed(number: int) -> int:
    return number - (1 << 64) if number >> 63 else number


def _instant(seconds: int) -> datetime | None:
    return None if seconds == NO_TIME else datetime.fromtimestamp(seconds, UTC)


_LIST_OF = {number + 10: name for name, number in NUMBER.items()}


def _decode_list(data: bytes) -> list[Any]:
    tag, at = _read_varint(data, 0)
    item = _LIST_OF.get(tag >> 3)
    if item is None or tag & 7 != _LENGTH:
        raise ValueError(f"field {tag >> 3} of feast.types.Value is of a kind that manta does not read")
    size, at = _read_varint(data, at)
    end, out = at + size, []
    while at < end:
        _, at = _read_varint(data, at)  # repeated field 1, by its length: one packed block, or one item each
        size, at = _read_varint(data, at)
        body = data[at : at + size]
        at += size
        if item in ("string", "bytes"):
            out.append(body.decode() if item == "string" else body)
        else:
            out += _unpacked(item, body)
    return out


def _unpacked(item: str, body: bytes) -> list[Any]:
    if item in ("float64", "float32"):
        form, size = ("d", 8) if item == "float64" else ("f", 4)
        return list(struct.unpack(f"<{len(body) // size}{form}", body))
    numbers, at = [], 0
    while at < len(body):
        number, at = _read_varint(body, at)
        numbers.append(_signed(number))
    if item == "bool":
        return [number == 1 for number in numbers]
    return [_instant(number) for number in numbers] if item == "timestamp" else numbers
