"""The types that a dataset's columns may have, as a contract writes them.

    string  bool  binary  date  int8 int16 int32 int64  float32 float64
    timestamp        a moment, kept as microseconds in UTC
    datetime         a reading of calendar and clock in no named zone, to the microsecond
    decimal(p,s)     exact, of at most p digits, s of them behind the point; p up to 38
    list[T]          values of T in an order
    struct{a: T, b: U}   named values; a name that is no identifier is written as a JSON string

A value inside a list or a struct may always be null. These are the types that Delta keeps as they are.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator

WHOLE = ("int8", "int16", "int32", "int64")
FLOATS = ("float32", "float64")
PLAIN = ("string", "bool", "binary", "date", "timestamp", "datetime", *WHOLE, *FLOATS)
MAX_DIGITS = 38
MAX_DEPTH = 16

_TOKEN = re.compile(r'\s*([A-Za-z_][A-Za-z0-9_]*|[0-9]+|"(?:[^"\\]|\\.)*"|[\[\]{}(),:])\s*')
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Kind:
    """A type, taken apart.

    Attributes:
        name: one of PLAIN, or ``decimal``, ``list``, ``struct``.
        precision, scale: of a decimal.
        item: what a list holds.
        fields: what a struct holds.
    """

    name: str
    precision: int = 0
    scale: int = 0
    item: Kind | None = None
    fields: tuple[tuple[str, Kind], ...] = ()

    @property
    def is_number(self) -> bool:
        return self.name == "decimal" or self.name in WHOLE or self.name in FLOATS

    @property
    def is_nested(self) -> bool:
        return self.item is not None or bool(self.fields)

    def __str__(self) -> str:
        if self.name == "decimal":
            return f"decimal({self.precision},{self.scale})"
        if self.name == "list":
            return f"list[{self.item}]"
        if self.name == "struct":
            inside = (
                f"{name if _IDENTIFIER.fullmatch(name) else json.dumps(name, ensure_ascii=False)}: {kind}"
                for name, kind in self.fields
            )
            return f"struct{{{', '.join(inside)}}}"
        return self.name


@lru_cache(maxsize=4096)
def parse(text: str) -> Kind:
    """Raises:
    ValueError: ``text`` names no type; says where it stops to.
    """
    reader = _Reader(text)
    kind = reader.kind()
    reader.end()
    return kind


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def kind(self) -> Kind:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ValueError(f"a type of more than {MAX_DEPTH} levels cannot be kept")
        start = self.at
        name = self.next()
        if name in PLAIN:
            kind = Kind(name)
        elif name == "decimal":
            kind = self.decimal()
        elif name == "list":
            self.expect("[")
            kind = Kind(name, item=self.kind())
            self.expect("]")
        elif name == "struct":
            self.expect("{")
            kind = Kind(name, fields=self.fields())
        else:
            self.at = start
            raise self.wrong(f"one of {', '.join(PLAIN)}, decimal(p,s), list[T], struct{{name: T, …}}")
        self.depth -= 1
        return kind

    def decimal(self) -> Kind:
        self.expect("(")
        precision = self.number()
        self.expect(",")
        scale = self.number()
        self.expect(")")
        if not 1 <= precision <= MAX_DIGITS or scale > precision:
            raise ValueError(
                f"decimal({precision},{scale}): 1 to {MAX_DIGITS} digits, of which no more stand behind the "
                "point than there are"
            )
        return Kind("decimal", precision, scale)

    def fields(self) -> tuple[tuple[str, Kind], ...]:
        found: dict[str, Kind] = {}
        while True:
            name = self.next()
            if name.startswith('"'):
                name = json.loads(name)
            elif not _IDENTIFIER.fullmatch(name):
                raise self.wrong("the name of a field")
            if name.lower() in {other.lower() for other in found}:
                raise ValueError(f"{self.text!r} has field {name!r} twice (case does not count)")
            self.expect(":")
            found[name] = self.kind()
            if self.peek() != ",":
                self.expect("}")
                return tuple(found.items())
            self.expect(",")

    def number(self) -> int:
        token = self.next()
        if not token.isdigit():
            raise self.wrong("a number")
        return int(token)

    def peek(self) -> str | None:
        found = _TOKEN.match(self.text, self.at)
        return found[1] if found else None

    def next(self) -> str:
        found = _TOKEN.match(self.text, self.at)
        if not found:
            raise self.wrong("a type")
        self.at = found.end()
        return found[1]

    def expect(self, token: str) -> None:
        if self.peek() != token:
            raise self.wrong(repr(token))
        self.next()

    def end(self) -> None:
        if self.at != len(self.text):
            raise self.wrong("nothing more")

    def wrong(self, wanted: str) -> ValueError:
        return ValueError(f"{self.text!r} is no type: {wanted} is expected at {self.text[self.at :]!r}")


def _canonical(text: str) -> str:
    return str(parse(text))


ColumnType = Annotated[str, AfterValidator(_canonical)]
"""A type as text, in the one spelling that :class:`Kind` gives it."""
