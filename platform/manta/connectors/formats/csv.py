"""csv with a header, separated by commas. A row with too many or too few fields is broken, not guessed at."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from typing import IO, cast

import polars as pl
import pyarrow as pa
import pyarrow.csv

from manta.connectors.files import Files
from manta.connectors.formats import PIECE_BYTES, FilePiece, opened, ranges
from manta.definitions.sources import Ask, Broken, Rows
from manta.errors import SourceUnreadable


def split(_source: Files, whole: FilePiece, ask: Ask) -> list[FilePiece]:
    if whole.size <= PIECE_BYTES or whole.compressed:
        return [whole]
    with opened(whole) as stream:
        header = _header(stream, whole.file)
        begin = stream.tell()
    starts = _record_starts(whole, ask)
    if starts is None:
        return [whole]
    return ranges(whole, [start for start in starts if start > begin], header)


def read(source: Files, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    with opened(piece) as stream:
        header = piece.header or _header(stream, piece.file)
        if piece.stop is not None:
            stream.seek(max(piece.start, stream.tell()))
            text = stream.read(piece.stop - stream.tell())
            stream = io.BufferedReader(cast(io.RawIOBase, io.BytesIO(text)))
        columns = [name for name in ask.columns if name in header]
        for name in columns:
            if header.count(name) > 1:
                raise SourceUnreadable(f"{piece.file} has column {name!r} {header.count(name)} times")
        broken: list[tuple[int, Broken]] = []
        batches = _csv_batches(source, stream, header, columns, broken)
        empty = pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
        yield from _with_broken(batches, broken, empty, header)


def _header(stream: IO[bytes], file: str) -> tuple[str, ...]:
    """The names in the first line; the stream then stands behind it."""
    line = stream.readline()
    while line.count(b'"') % 2 and (more := stream.readline()):
        line += more
    names = next(csv.reader(io.StringIO(line.decode("utf-8-sig"), newline="")), None)
    if not names:
        raise SourceUnreadable(
            f"{file} is empty: its first line must name the columns",
            hint="write the file again, with a header",
        )
    return tuple(names)


def _csv_batches(
    source: Files,
    stream: io.BufferedReader,
    header: Sequence[str],
    columns: list[str],
    broken: list[tuple[int, Broken]],
) -> Iterator[pl.DataFrame]:
    """The well-formed rows; the others are added to ``broken`` with their number, counted from 0."""

    def note(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"the row has {row.actual_columns} fields, the header {row.expected_columns}"
        broken.append((row.number - 1, Broken(0, reason, "wrong number of fields", row.text)))
        return "skip"

    if not stream.peek(1):
        return  # pyarrow calls no rows at all an error
    reader = pyarrow.csv.open_csv(
        stream,
        # Only one thread knows the numbers of rows.
        read_options=pyarrow.csv.ReadOptions(
            use_threads=False, block_size=PIECE_BYTES, column_names=list(header)
        ),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=columns or [header[0]],
            column_types={name: pa.string() for name in header},
            null_values=list(source.null_values),
            strings_can_be_null=True,
        ),
    )
    for batch in reader:
        if batch.num_rows:
            yield cast(pl.DataFrame, pl.from_arrow(batch)).select(columns)


def _with_broken(
    batches: Iterator[pl.DataFrame],
    broken: list[tuple[int, Broken]],
    empty: pl.DataFrame,
    header: Sequence[str],
) -> Iterator[Rows]:
    """Put the well-formed rows and the broken ones, which are known up to the batch at least, together."""
    start = 0
    for values in batches:
        stop, mine = start + values.height, []
        while broken and broken[0][0] <= stop:
            number, row = broken.pop(0)
            mine.append(row._replace(row=number - start))
            stop += 1
        yield Rows(stop - start, values, mine, header)
        start = stop
    if broken or start == 0:
        rest = [row._replace(row=number - start) for number, row in broken]
        yield Rows(len(rest), empty, rest, header)


_STRAY_QUOTE = re.compile(rb'[^",\r\n]"[^",\r\n]')


def _record_starts(whole: FilePiece, ask: Ask) -> list[int] | None:
    """Where records begin, about every PIECE_BYTES: newlines within quotes do not count.

    None when quotes are used so that this cannot be told without reading all that is before.
    """
    cuts = [(whole.path, start, PIECE_BYTES) for start in range(0, whole.size, PIECE_BYTES)]
    looks = dict(ask.each(_look, cuts))
    starts, quoted = [], False
    for index, (_, start, _) in enumerate(cuts):
        quotes, stray, newline = looks[index]
        if stray:
            return None
        if index and newline[quoted] is not None:
            starts.append(start + newline[quoted] + 1)
        quoted ^= bool(quotes % 2)
    return None if quoted else starts


def _look(cut: tuple[str, int, int]) -> tuple[int, bool, tuple[int | None, int | None]]:
    """How many quotes a range of bytes has, whether one stands where none may, and where the first newline
    outside of quotes is: when the range begins outside of quotes, and when it begins inside."""
    path, start, size = cut
    with open(path, "rb") as stream:
        stream.seek(start)
        text = stream.read(size)
    first: list[int | None] = [None, None]
    at = 0
    for index, run in enumerate(text.split(b'"')):
        newline = run.find(b"\n")
        if newline >= 0 and first[index % 2] is None:
            first[index % 2] = at + newline
            if None not in first:
                break
        at += len(run) + 1
    return text.count(b'"'), bool(_STRAY_QUOTE.search(text)), (first[0], first[1])
