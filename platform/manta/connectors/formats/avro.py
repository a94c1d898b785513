"""Avro, as typed in the file. Its blocks are found by the marker that ends each."""

from __future__ import annotations

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import polars as pl

from manta.connectors.files import Files
from manta.connectors.formats import PIECE_BYTES, FilePiece, Held, opened, ranges
from manta.definitions.sources import Ask, Rows, driver
from manta.errors import SourceUnreadable

# What fastavro raises of a damaged file, beside EOFError.
DAMAGES = (ValueError, TypeError, IndexError, KeyError, AssertionError, MemoryError, OverflowError)
HEADER_BYTES = 2**20
MARKER = 16
BATCH_ROWS = 50_000


def split(source: Files, whole: FilePiece, ask: Ask) -> list[FilePiece]:
    if whole.size <= PIECE_BYTES or not whole.cuttable:
        return [whole]
    header = _header(source, whole)
    starts = []
    for at in range(PIECE_BYTES, whole.size, PIECE_BYTES):
        behind = _behind_marker(source, whole, max(at, len(header)), header[-MARKER:])
        if behind is not None and behind < whole.size:
            starts.append(behind)
    return ranges(whole, sorted(set(starts)))


def read(source: Files, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    fastavro = driver("fastavro", "avro")
    if piece.start:
        header = _header(source, piece)
        stream: Any = Held(header + source.store.read(piece.path, piece.start, piece.stop or 0))
        yield from _rows(fastavro, stream, piece, ask)
        return
    with opened(source, piece) as stream:
        yield from _rows(fastavro, stream, piece, ask)


def _rows(fastavro: Any, stream: io.BufferedIOBase, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    reader = fastavro.reader(stream)
    schema = reader.writer_schema
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise SourceUnreadable(f"{piece.file} holds no records", hint="its schema must be one of a record")
    fields = {field["name"]: field["type"] for field in schema["fields"]}
    columns = [name for name in ask.columns if name in fields]
    types = {name: _type(fields[name]) for name in columns}
    yield Rows(0, pl.DataFrame(schema={name: types[name] or pl.Null for name in columns}), [], list(fields))
    held: dict[str, list[Any]] = {name: [] for name in columns}
    count = 0
    for row in reader:
        for name, values in held.items():
            values.append(row[name])
        count += 1
        if count == BATCH_ROWS:
            yield Rows(count, _frame(held, types, count), [], list(fields))
            held, count = {name: [] for name in columns}, 0
    if count:
        yield Rows(count, _frame(held, types, count), [], list(fields))


def _frame(held: dict[str, list[Any]], types: dict[str, Any], height: int) -> pl.DataFrame:
    return pl.DataFrame(
        [pl.Series(name, values, dtype=types[name], strict=False) for name, values in held.items()]
    )


_PLAIN = {
    "boolean": pl.Boolean(),
    "int": pl.Int32(),
    "long": pl.Int64(),
    "float": pl.Float32(),
    "double": pl.Float64(),
    "bytes": pl.Binary(),
    "fixed": pl.Binary(),
    "string": pl.String(),
    "enum": pl.String(),
}
_LOGICAL = {
    "date": pl.Date(),
    "time-millis": pl.Time(),
    "time-micros": pl.Time(),
    "timestamp-millis": pl.Datetime("us", "UTC"),
    "timestamp-micros": pl.Datetime("us", "UTC"),
    "local-timestamp-millis": pl.Datetime("us"),
    "local-timestamp-micros": pl.Datetime("us"),
}


def _type(kind: Any) -> Any:
    """The Polars type of a field; None for what Polars finds by itself: nested ones, and unions."""
    if isinstance(kind, list):
        others = [each for each in kind if each != "null"]
        return _type(others[0]) if len(others) == 1 else None
    if isinstance(kind, dict):
        logical = kind.get("logicalType")
        if logical == "decimal":
            return pl.Decimal(kind["precision"], kind.get("scale", 0))
        if logical in _LOGICAL:
            return _LOGICAL[logical]
        if logical == "uuid":
            return None
        return _type(kind["type"])
    return _PLAIN.get(kind)


def _header(source: Files, piece: FilePiece) -> bytes:
    """All before the first block: magic, schema, marker."""
    fastavro = driver("fastavro", "avro")
    beginning = source.store.read(piece.path, 0, min(_size(source, piece), HEADER_BYTES))
    stream = io.BytesIO(beginning)
    fastavro.reader(stream)
    return beginning[: stream.tell()]


def _size(source: Files, piece: FilePiece) -> int:
    # Of a piece, the end: what is before it is there.
    return piece.stop or piece.size


def _behind_marker(source: Files, whole: FilePiece, at: int, marker: bytes) -> int | None:
    cuts = [*range(at, whole.size, HEADER_BYTES), whole.size]
    for start, stop in pairwise(cuts):
        text = source.store.read(whole.path, start, min(whole.size, stop + MARKER))
        found = text.find(marker)
        if found >= 0:
            return int(start + found + MARKER)
    return None
