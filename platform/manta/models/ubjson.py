"""Reads UBJSON, the binary form in which XGBoost writes its models, from somebody who is not trusted.

What comes out is never much larger than what went in: a typed array is a NumPy array over the bytes that are
there, and one that names more elements than there are bytes is refused.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

MOST_DEPTH = 64
INTEGERS = {b"i": ">b", b"U": ">B", b"I": ">h", b"l": ">i", b"L": ">q"}
NUMBERS = {**INTEGERS, b"d": ">f", b"D": ">d"}
ARRAYS = {b"i": "i1", b"U": "u1", b"I": ">i2", b"l": ">i4", b"L": ">i8", b"d": ">f4", b"D": ">f8"}
CONSTANTS = {b"Z": None, b"T": True, b"F": False}


def decode(content: bytes) -> Any:
    """The one value in ``content``.

    Raises:
        ValueError: it is no UBJSON, is cut short, goes on behind, or is nested too deeply.
    """
    reader = _Reader(content)
    try:
        value = reader.value(reader.marker(), 0)
    except struct.error:
        raise ValueError("it is cut short") from None
    if reader.at != len(content):
        raise ValueError(f"it goes on after byte {reader.at}")
    return value


class _Reader:
    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def marker(self) -> bytes:
        return self.take(1)

    def take(self, count: int) -> bytes:
        if not 0 <= count <= len(self.content) - self.at:
            raise ValueError(f"it names {count} bytes at byte {self.at}, and ends before")
        self.at += count
        return self.content[self.at - count : self.at]

    def value(self, marker: bytes, depth: int) -> Any:
        if depth > MOST_DEPTH:
            raise ValueError("it is nested too deeply")
        if marker in CONSTANTS:
            return CONSTANTS[marker]
        if marker in NUMBERS:
            return self.number(NUMBERS[marker])
        if marker == b"S":
            return self.text()
        if marker == b"C":
            return self.take(1).decode("ascii")
        if marker == b"[":
            return self.array(depth)
        if marker == b"{":
            return self.object(depth)
        raise ValueError(f"it holds {marker!r} at byte {self.at - 1}, which begins no value")

    def number(self, form: str) -> Any:
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value

    def length(self) -> int:
        marker = self.marker()
        if marker not in INTEGERS:
            raise ValueError(f"it holds {marker!r} at byte {self.at - 1}, and no length")
        return int(self.number(INTEGERS[marker]))

    def text(self) -> str:
        return self.take(self.length()).decode()

    def array(self, depth: int) -> Any:
        kind = self.marker()
        if kind == b"$":
            kind = self.marker()
            if kind not in ARRAYS or self.marker() != b"#":
                raise ValueError(f"it holds an array of {kind!r} at byte {self.at}")
            dtype = np.dtype(ARRAYS[kind])
            return np.frombuffer(self.take(self.length() * dtype.itemsize), dtype)
        if kind == b"#":
            count = self.length()
            if not 0 <= count <= len(self.content) - self.at:
                raise ValueError(f"it names {count} elements at byte {self.at}, and ends before")
            return [self.value(self.marker(), depth + 1) for _ in range(count)]
        found = []
        while kind != b"]":
            found.append(self.value(kind, depth + 1))
            kind = self.marker()
        return found

    def object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while (marker := self.marker()) != b"}":
            if marker not in INTEGERS:
                raise ValueError(f"it holds {marker!r} at byte {self.at - 1}, and no name")
            name = self.take(int(self.number(INTEGERS[marker]))).decode()
            found[name] = self.value(self.marker(), depth + 1)
        return found
