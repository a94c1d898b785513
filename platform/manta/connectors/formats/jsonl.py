"""jsonl: one JSON object a line. A line that is none is broken; a name that an object lacks is null."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import msgspec
import polars as pl

from manta.connectors.files import Files
from manta.connectors.formats import PIECE_BYTES, RECORD_BYTES, FilePiece, line_start, opened, ranges
from manta.definitions.sources import Ask, Broken, Rows


def split(source: Files, whole: FilePiece, ask: Ask) -> list[FilePiece]:
    if whole.size <= PIECE_BYTES or not whole.cuttable:
        return [whole]
    cuts = range(PIECE_BYTES, whole.size, PIECE_BYTES)
    starts = sorted({start for start in (line_start(source, whole, cut) for cut in cuts) if start})
    return ranges(whole, starts)


def read(source: Files, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    with opened(source, piece) as stream:
        while text := stream.read(PIECE_BYTES):
            text += stream.readline(RECORD_BYTES)
            lines = [line for line in text.split(b"\n") if line and not line.isspace()]
            yield json_rows(lines, ask.columns)


def json_rows(lines: list[bytes], wanted: Sequence[str], what: str = "line") -> Rows:
    """The rows of texts that hold an object each, none empty and none with a line's end in it; ``what`` is
    how a broken one is called."""
    schema = dict.fromkeys(wanted, pl.String)
    broken: list[Broken] = []
    good = lines
    try:
        values = pl.read_ndjson(b"\n".join(lines), schema=schema) if lines else pl.DataFrame(schema=schema)
        if values.height != len(lines):
            raise pl.exceptions.ComputeError("more than one value in a line")
    except pl.exceptions.PolarsError:
        good = []
        for number, line in enumerate(lines):
            problem = json_problem(line, what)
            if problem is None:
                good.append(line)
            else:
                broken.append(Broken(number, problem, "not a JSON object", line.decode(errors="replace")))
        values = pl.read_ndjson(b"\n".join(good), schema=schema) if good else pl.DataFrame(schema=schema)
        if values.height != len(good):
            raise
    values = _with_digits(_with_nested(values, good), good)
    seen = {name for name in wanted if values[name].null_count() < values.height}
    if len(seen) < len(wanted):
        seen |= _json_names(lines, set(wanted) - seen)
    return Rows(len(lines), values, broken, sorted(seen))


def _with_nested(values: pl.DataFrame, lines: list[bytes]) -> pl.DataFrame:
    """Put lists and objects in as they are written: Polars gives their texts without the escapes in them."""
    nested = [name for name in values.columns if values[name].str.contains(r"^[\[{]").any()]
    if not nested:
        return values
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    raw = [decoder.decode(line) for line in lines]
    for name in nested:
        texts = [bytes(row[name]).decode() if name in row else "" for row in raw]
        written = pl.Series(name, [text if text[:1] in ("[", "{") else None for text in texts], pl.String)
        values = values.with_columns(written.fill_null(values[name]))
    return values


# Up to 15 digits come through a float as they are; whole numbers do not go through one.
_MANY_DIGITS = r"[0-9]{8}\.[0-9]|\.[0-9]{8}|[0-9]{16}[eE]"


def _with_digits(values: pl.DataFrame, lines: list[bytes]) -> pl.DataFrame:
    """Put numbers with more digits than a float has in as they are written: to Polars they are floats."""
    some = pl.Series(lines, dtype=pl.Binary).cast(pl.String, strict=False).str.contains(_MANY_DIGITS)
    index = some.fill_null(False).arg_true().to_list()
    if not index:
        return values
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    raw = [decoder.decode(lines[at]) for at in index]
    for name in values.columns:
        texts = [bytes(row[name]).decode() if name in row else "" for row in raw]
        numbers = [text if re.fullmatch(r"[-0-9].*", text) else None for text in texts]
        # The number alone decides, not what else is in the line.
        exact = pl.Series(numbers, dtype=pl.String)
        exact = exact.set(~exact.str.contains(_MANY_DIGITS).fill_null(False), None)
        if exact.null_count() < len(exact):
            written = (
                pl.Series(name, [None], pl.String).new_from_index(0, values.height).scatter(index, exact)
            )
            values = values.with_columns(written.fill_null(values[name]))
    return values


def json_problem(line: bytes, what: str) -> str | None:
    """Why the text is not that of one object."""
    try:
        value = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeError) as error:
        return f"the {what} is not JSON: {error}"
    return None if isinstance(value, dict) else f"the {what} is not a JSON object"


def _json_names(lines: list[bytes], wanted: set[str]) -> set[str]:
    """The names that the objects use, up to the line by which all the wanted ones have been seen."""
    seen: set[str] = set()
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    for line in lines:
        try:
            seen.update(decoder.decode(line))
        except (msgspec.DecodeError, UnicodeError):
            continue  # refused as a broken row
        if wanted <= seen:
            break
    return seen
