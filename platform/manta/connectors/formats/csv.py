"""csv, with or without a header. A row with too many or too few fields is broken, not guessed at.

A block of whole records is parsed in memory, by Arrow, straight to the contract's types where Arrow's opinion
of a text is the contract's (see :func:`_types`); a column in which it is not is left as text.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import IO, NamedTuple, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv

from manta.connectors.files import Files
from manta.connectors.formats import (
    BOM,
    PIECE_BYTES,
    RECORD_BYTES,
    FilePiece,
    Held,
    line_start,
    opened,
    ranges,
)
from manta.definitions.sources import Ask, Broken, Rows
from manta.errors import SourceUnreadable

HEADER_BYTES = 2**20
LOOK_BYTES = 2**18
_INTEGERS = {"int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64()}
_TYPED: dict[str, pa.DataType] = {**_INTEGERS, "float64": pa.float64(), "bool": pa.bool_()}
_CONVERSION = re.compile(r"In CSV column #(\d+): (?:Row #\d+: )?CSV conversion error to ")


def split(source: Files, whole: FilePiece, ask: Ask) -> list[FilePiece]:
    if whole.size <= PIECE_BYTES or not whole.cuttable:
        return [whole]
    beginning = source.store.read(whole.path, 0, min(whole.size, HEADER_BYTES))
    with Held(beginning) as stream:
        header = _header(source, stream, whole.file)
        begin = stream.tell()
    starts = _record_starts(source, whole, ask)
    if starts is None:
        return [whole]
    return ranges(whole, [start for start in starts if start > begin], header)


def read(source: Files, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    with opened(source, piece) as stream:
        header = piece.header or _header(source, stream, piece.file)
        columns = [name for name in ask.columns if name in header]
        for name in columns:
            if header.count(name) > 1:
                raise SourceUnreadable(f"{piece.file} has column {name!r} {header.count(name)} times")
        table = _Table(source, header, columns)
        some = False
        whole_records = piece.stop is not None
        blocks = iter([(stream.read(), True)]) if whole_records else _blocks(source, stream)
        for text, whole in blocks:
            for rows in _typed(table, text, ask.types) if whole else _streamed(table, text, stream):
                some = True
                yield rows
        if not some:
            yield Rows(0, pl.DataFrame(schema=dict.fromkeys(columns, pl.String)), [], header)


class _Table(NamedTuple):
    """What is to be read of a file: ``columns``, some of those in ``header``."""

    source: Files
    header: Sequence[str]
    columns: list[str]


def _header(source: Files, stream: io.BufferedReader | Held, file: str) -> tuple[str, ...]:
    """The names in the first line, if they are not given; the stream then stands behind it."""
    if source.encoding == "utf-8" and stream.peek(len(BOM)).startswith(BOM):
        stream.read(len(BOM))
    if source.columns is not None:
        return source.columns
    quote = source.quote.encode()
    line = stream.readline(RECORD_BYTES)
    while line.count(quote) % 2 and len(line) < RECORD_BYTES and (more := stream.readline(RECORD_BYTES)):
        line += more
    text = line.decode(source.encoding)
    # Named unlike the formats: the reader of the standard library.
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=source.delimiter, quotechar=source.quote)
    names = next(rows, None)
    if not names:
        raise SourceUnreadable(
            f"{file} is empty: its first line must name the columns",
            hint="write the file again with a header, or name them in `columns`",
        )
    return tuple(names)


# --- blocks of whole records --------------------------------------------------------------------------


def _blocks(source: Files, stream: io.BufferedReader | Held) -> Iterator[tuple[bytes, bool]]:
    """Texts of whole records; with False the last, from which on it cannot be told where records end."""
    rest = b""
    while text := stream.read(PIECE_BYTES):
        last = len(text) < PIECE_BYTES
        text = rest + text if rest else text
        if last:
            yield text, True
            return
        if len(text) > PIECE_BYTES + RECORD_BYTES:
            raise SourceUnreadable(
                f"a row is longer than {RECORD_BYTES >> 20} MiB",
                hint="a quote may be opened that none closes, or the file is no csv",
            )
        seen = _look(text, source.delimiter, source.quote)
        if seen.stray[0]:
            yield text, False
            return
        if seen.end:
            yield text[: seen.end], True
        rest = text[seen.end :]
    if rest:
        yield rest, True


class _Seen(NamedTuple):
    """What a range of bytes looks like; of two, the first when it begins outside of quotes, the second when
    it begins inside.

    Attributes:
        quotes: how many there are.
        stray: whether one stands where a well-written file has none, so that nothing else said here holds.
        newline: where the first newline outside of quotes is, None if there is none.
        end: behind the last one, when the range begins outside; 0 if there is none.
    """

    quotes: int
    stray: tuple[bool, bool]
    newline: tuple[int | None, int | None]
    end: int


def _look(text: bytes, delimiter: str, quote: str, before: int = 10, after: int = 10) -> _Seen:
    """``before`` and ``after`` are the bytes around it."""
    if quote.encode() not in text:
        newline = text.find(b"\n")
        first = None if newline < 0 else newline
        return _Seen(0, (False, False), (first, None), text.rfind(b"\n") + 1)
    around = np.frombuffer(bytes([before]) + text + bytes([after]), dtype=np.uint8)
    at = np.flatnonzero(around[1:-1] == ord(quote))
    ends = np.zeros(256, dtype=bool)
    ends[[ord(delimiter), ord(quote), 10, 13]] = True
    opens, closes = ends[around[at]], ends[around[at + 2]]
    # Quotes open a text and close it in turn; one between two of another text does both.
    stray = tuple(
        not (opens[begin::2].all() and closes[1 - begin :: 2].all())
        for begin in (0, 1)  # the first that opens one
    )
    newlines = np.flatnonzero(around[1:-1] == 10)
    inside = np.searchsorted(at, newlines) % 2 == 1
    outer, inner = newlines[~inside], newlines[inside]
    first_of = [int(some[0]) if len(some) else None for some in (outer, inner)]
    end = int(outer[-1]) + 1 if len(outer) else 0
    return _Seen(len(at), (stray[0], stray[1]), (first_of[0], first_of[1]), end)


def _record_starts(source: Files, whole: FilePiece, ask: Ask) -> list[int] | None:
    """Where records begin, about every PIECE_BYTES: newlines within quotes do not count.

    None when quotes are used so that this cannot be told without reading all that is before.
    """
    cuts = list(range(0, whole.size, PIECE_BYTES))
    if not source.multiline:
        return [at for at in (line_start(source, whole, cut) for cut in cuts[1:]) if at is not None]
    starts, quoted = [], False
    for (index, start), seen in zip(enumerate(cuts), _looks(source, whole, cuts, ask), strict=True):
        if seen.stray[quoted]:
            return None
        newline = seen.newline[quoted]
        if index and newline is not None:
            starts.append(start + newline + 1)
        quoted ^= bool(seen.quotes % 2)
    return None if quoted else starts


def _looks(source: Files, whole: FilePiece, cuts: Sequence[int], ask: Ask) -> Iterable[_Seen]:
    """Of all the pieces that begin at ``cuts``."""
    if source.store.scheme is None:
        quick = []
        for start in cuts:
            seen = _look_quickly(source, whole, start, min(whole.size, start + PIECE_BYTES))
            if seen is None:
                break
            quick.append(seen)
        else:
            return quick
    looks = dict(ask.each(partial(_look_at, source, whole, PIECE_BYTES), cuts))
    return [looks[index] for index in range(len(cuts))]


def _look_at(source: Files, whole: FilePiece, size: int, start: int) -> _Seen:
    stop = min(whole.size, start + size)
    begin, end = max(0, start - 1), min(whole.size, stop + 1)
    around = source.store.read(whole.path, begin, end)
    text = around[start - begin : stop - begin]
    if not start and text.startswith(BOM):
        text = text.replace(BOM, b"\n\n\n", 1)  # no text of its own: a quote may follow it
    return _look(
        text,
        source.delimiter,
        source.quote,
        before=around[0] if begin < start else 10,
        after=around[-1] if end > stop else 10,
    )


def _look_quickly(source: Files, whole: FilePiece, start: int, stop: int) -> _Seen | None:
    """The same where there are no quotes, None where there are: some ten gigabytes a second, in parts that
    fit the processor's cache."""
    newline: int | None = None
    with open(whole.path, "rb", buffering=0) as stream:
        stream.seek(start)
        for at in range(start, stop, LOOK_BYTES):
            text = stream.read(min(LOOK_BYTES, stop - at))
            if source.quote.encode() in text:
                return None
            if newline is None and b"\n" in text:
                newline = at - start + text.index(b"\n")
    return _Seen(0, (False, False), (newline, None), 0)


# --- parsing ------------------------------------------------------------------------------------------


def _typed(table: _Table, text: bytes, wanted: Mapping[str, str]) -> Iterator[Rows]:
    """A block's rows, in the contract's types as far as possible; their texts can be had too."""
    encoded = text if table.source.encoding == "utf-8" else text.decode(table.source.encoding).encode()
    types = _types(table, encoded, wanted)
    while True:
        broken: list[tuple[int, Broken]] = []
        try:
            batches = list(_parse(table, io.BytesIO(encoded), len(encoded) + 1, types, broken))
            break
        except pa.ArrowInvalid as error:
            column = _CONVERSION.search(str(error))
            if column is None or types.pop(table.header[int(column[1])], None) is None:
                raise  # in texts nothing is converted
    unlike = [
        name
        for name, kind in types.items()
        if kind == pa.float64() and any(not values[name].is_finite().all() for values in batches)
    ]
    if unlike:  # "inf" and "nan" are few, and the contract's affair
        kept = {name: kind for name, kind in types.items() if name not in unlike}
        broken = []
        batches = list(_parse(table, io.BytesIO(encoded), len(encoded) + 1, kept, broken))
        types = kept

    def texts() -> pl.DataFrame:
        return pl.concat(_parse(table, io.BytesIO(encoded), len(encoded) + 1, {}, []))

    values = pl.concat(batches) if batches else pl.DataFrame(schema=dict.fromkeys(table.columns, pl.String))
    for rows in _with_broken(table, iter([values]), broken):
        yield rows._replace(texts=texts) if types and values.height else rows


def _types(table: _Table, text: bytes, wanted: Mapping[str, str]) -> dict[str, pa.DataType]:
    """The columns that Arrow parses as the contract would, or not at all: it knows fewer spellings.

    It knows one more, integers in hexadecimal: they are no integers to the contract.
    """
    types = {name: _TYPED[wanted[name]] for name in table.columns if wanted.get(name) in _TYPED}
    if any(kind in _INTEGERS.values() for kind in types.values()) and _hexadecimal(text):
        types = {name: kind for name, kind in types.items() if kind not in _INTEGERS.values()}
    return types


def _hexadecimal(text: bytes) -> bool:
    """Whether "0x" stands in it. Looked for together, the two characters take ten times as long: the first is
    everywhere."""
    for start in range(0, len(text), LOOK_BYTES):
        part = text[start : start + LOOK_BYTES + 1]
        if (b"x" in part or b"X" in part) and re.search(rb"(?i)0x", part):
            return True
    return False


def _streamed(table: _Table, begun: bytes, stream: io.BufferedReader | Held) -> Iterator[Rows]:
    """The rows of a text whose records can only be told by whoever reads it from the beginning."""
    raw = io.BufferedReader(cast(io.RawIOBase, _Rejoined(begun, stream, table.source.encoding)), 2**20)
    broken: list[tuple[int, Broken]] = []
    return _with_broken(table, _parse(table, raw, max(PIECE_BYTES, 2**20), {}, broken), broken)


class _Rejoined(io.RawIOBase):
    """What was read of a stream already, and the rest of it, in UTF-8."""

    def __init__(self, begun: bytes, stream: io.BufferedReader | Held, encoding: str) -> None:
        self._held, self._stream, self._encoding = begun, stream, encoding
        self._recoded = encoding == "utf-8"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        if not self._held:
            self._held, self._recoded = self._stream.read(2**20), self._encoding == "utf-8"
        if not self._recoded:
            self._held, self._recoded = self._held.decode(self._encoding).encode(), True
        given, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(given)] = given
        return len(given)


def _parse(
    table: _Table,
    stream: IO[bytes] | io.BufferedReader,
    block: int,
    types: Mapping[str, pa.DataType],
    broken: list[tuple[int, Broken]],
) -> Iterator[pl.DataFrame]:
    """The well-formed rows; the others are added to ``broken`` with their number, counted from 0."""

    def note(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"the row has {row.actual_columns} fields, the header {row.expected_columns}"
        broken.append((row.number - 1, Broken(0, reason, "wrong number of fields", row.text)))
        return "skip"

    source, header = table.source, table.header
    try:
        reader = pyarrow.csv.open_csv(
            stream,
            # Only one thread knows the numbers of rows.
            read_options=pyarrow.csv.ReadOptions(
                use_threads=False, block_size=block, column_names=list(header)
            ),
            parse_options=pyarrow.csv.ParseOptions(
                delimiter=source.delimiter,
                quote_char=source.quote,
                newlines_in_values=True,
                invalid_row_handler=note,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                include_columns=table.columns or [header[0]],
                column_types={name: types.get(name, pa.string()) for name in header},
                null_values=list(source.null_values),
                strings_can_be_null=True,
            ),
        )
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return  # pyarrow calls no rows at all an error
        raise
    for batch in reader:
        if batch.num_rows:
            yield cast(pl.DataFrame, pl.from_arrow(batch)).select(table.columns)


def _with_broken(
    table: _Table, batches: Iterator[pl.DataFrame], broken: list[tuple[int, Broken]]
) -> Iterator[Rows]:
    """Put the well-formed rows and the broken ones, which are known up to the batch at least, together."""
    start = 0
    for values in batches:
        stop, mine = start + values.height, []
        while broken and broken[0][0] <= stop:
            number, row = broken.pop(0)
            mine.append(row._replace(row=number - start))
            stop += 1
        yield Rows(stop - start, values, mine, table.header)
        start = stop
    if broken or start == 0:
        rest = [row._replace(row=number - start) for number, row in broken]
        empty = pl.DataFrame(schema=dict.fromkeys(table.columns, pl.String))
        yield Rows(len(rest), empty, rest, table.header)
