"""Local files: csv, jsonl and parquet; text may be compressed (.gz, .bz2, .zst, .lz4, or a .zip of one file).

Large uncompressed text is read in byte ranges, Parquet by row groups, everything else file by file.
"""

from __future__ import annotations

import csv
import importlib
import os
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from manta.data.connectors import Rows
from manta.data.formats import FilePiece
from manta.definitions.sources import Files
from manta.errors import SourceUnreadable


def pieces(source: Files, root: Path) -> list[FilePiece]:
    paths = source.resolve(root)
    base = os.path.commonpath([path.parent for path in paths])
    found: list[FilePiece] = []
    for path in paths:
        file = os.path.relpath(path, base)
        with _reading(file, source.format):
            whole = FilePiece(str(path), file, path.stat().st_size)
            found += _format(source).split(source, whole)
    return found


def read(source: Files, piece: FilePiece, wanted: Sequence[str]) -> Iterator[Rows]:
    with _reading(piece.file, source.format):
        yield from _format(source).read(source, piece, wanted)


def _format(source: Files) -> Any:
    return importlib.import_module(f"manta.data.formats.{source.format}")


@contextmanager
def _reading(file: str, form: str) -> Iterator[None]:
    try:
        yield
    except (
        OSError,  # what gzip, bz2 and vanished files raise
        EOFError,
        UnicodeError,
        csv.Error,
        zlib.error,
        zipfile.BadZipFile,
        pa.ArrowException,
        pl.exceptions.PolarsError,
    ) as error:
        raise SourceUnreadable(
            f"{file} cannot be read as {form}: {error}",
            hint="the file is damaged, or `format` in Files(…) does not say what it is",
        ) from error
