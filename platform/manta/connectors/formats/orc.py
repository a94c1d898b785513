"""ORC, as typed in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import polars as pl
import pyarrow as pa
from pyarrow import orc

from manta.connectors.files import Files
from manta.connectors.formats import PIECE_BYTES, FilePiece
from manta.definitions.sources import Ask, Rows


def split(source: Files, whole: FilePiece, ask: Ask) -> list[FilePiece]:
    """By stripes, as many as take about a piece's bytes on disk."""
    with source.store.opened(whole.path, whole.ranges) as stream:
        stripes = orc.ORCFile(stream).nstripes
    each = max(1, round(stripes * PIECE_BYTES / max(whole.size, 1)))
    return [
        replace(whole, size=whole.size * len(mine) // stripes, start=mine.start, stop=mine.stop)
        for mine in (range(start, min(start + each, stripes)) for start in range(0, stripes, each))
    ] or [replace(whole, stop=0)]


def read(source: Files, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    with source.store.opened(piece.path, piece.ranges) as stream:
        file = orc.ORCFile(stream)
        names = file.schema.names
        columns = [name for name in ask.columns if name in names]
        empty = pa.schema([file.schema.field(name) for name in columns]).empty_table()
        yield Rows(0, cast(pl.DataFrame, pl.from_arrow(empty)), [], names)
        for number in range(piece.start, piece.stop or 0):
            # Of no columns at all it would not tell how many rows there are.
            stripe = file.read_stripe(number, columns=columns or names[:1])
            values = cast(pl.DataFrame, pl.from_arrow(pa.Table.from_batches([stripe])))
            yield Rows(values.height, values.select(columns), [], names)
