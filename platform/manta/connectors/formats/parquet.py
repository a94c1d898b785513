"""Parquet, as typed in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import polars as pl
import pyarrow.parquet as pq

from manta.connectors.files import Files
from manta.connectors.formats import PIECE_BYTES, FilePiece
from manta.definitions.sources import Ask, Rows

BATCH_ROWS = 250_000


def split(source: Files, whole: FilePiece, _ask: Ask) -> list[FilePiece]:
    with source.store.opened(whole.path, whole.ranges) as stream:
        metadata = pq.read_metadata(stream)
    found: list[FilePiece] = []
    start, size = 0, 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        last = group + 1 == metadata.num_row_groups
        if last or size >= 4 * PIECE_BYTES:  # in memory: on disk it is a fraction
            found.append(replace(whole, size=size, start=start, stop=group + 1))
            start, size = group + 1, 0
    return found or [replace(whole, stop=0)]


def read(source: Files, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
    with (
        source.store.opened(piece.path, piece.ranges) as stream,
        pq.ParquetFile(stream, pre_buffer=True) as file,
    ):
        names = file.schema_arrow.names
        columns = [name for name in ask.columns if name in names]
        groups = list(range(piece.start, piece.stop or 0))
        empty = cast(pl.DataFrame, pl.from_arrow(file.schema_arrow.empty_table().select(columns)))
        yield Rows(0, empty, [], names)
        for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=columns):
            values = cast(pl.DataFrame, pl.from_arrow(batch))
            yield Rows(batch.num_rows, values, [], names)
