"""Images, each a row: path, label, bytes, width, height, mode. One that cannot be decoded whole is broken.

Columns that nobody asked for are not made, but every image is decoded: a broken one is found here, not in a
training. A row's number is the image's place among the files, in the order of their paths.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any, NamedTuple

import polars as pl

from manta.connectors.files import Files
from manta.connectors.formats import PIECE_BYTES, FilePiece
from manta.definitions.sources import Ask, Broken, Rows, driver

COLUMNS: dict[str, pl.DataType] = {
    "path": pl.String(),
    "label": pl.String(),
    "bytes": pl.Binary(),
    "width": pl.Int64(),
    "height": pl.Int64(),
    "mode": pl.String(),
}
PIECE_FILES = 1000


class Images(NamedTuple):
    """Some files, one row each."""

    file: str
    size: int
    files: tuple[FilePiece, ...]


def gather(source: Files, files: list[FilePiece], ask: Ask) -> list[Images]:
    pieces: list[Images] = []
    held: list[FilePiece] = []
    size = 0
    for number, each in enumerate(files, 1):
        held.append(each)
        size += each.size
        if size >= PIECE_BYTES or len(held) == PIECE_FILES or number == len(files):
            pieces.append(Images(source.path, size, tuple(held)))
            held, size = [], 0
    return pieces


def read(source: Files, piece: Images, ask: Ask) -> Iterator[Rows]:
    pillow = driver("PIL.Image", "image")
    columns = [name for name in COLUMNS if name in ask.columns]
    rows: list[dict[str, Any]] = []
    broken: list[Broken] = []
    for number, file in enumerate(piece.files):
        content = source.store.read(file.path, 0, file.size)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pillow.DecompressionBombWarning)
                with pillow.open(io.BytesIO(content)) as image:
                    image.load()
                    width, height, mode = image.width, image.height, image.mode
        except Exception as error:  # whatever the decoder of a format raises
            reason = f"{file.file} cannot be decoded: {str(error) or type(error).__name__}"
            broken.append(Broken(number, _plain(reason), "not an image", file.file))
            continue
        made = {
            "path": file.file,
            "label": _label(source, file.path),
            "bytes": content,
            "width": width,
            "height": height,
            "mode": mode,
        }
        rows.append({name: made[name] for name in columns})
    values = pl.DataFrame(rows, schema={name: COLUMNS[name] for name in columns})
    yield Rows(len(piece.files), values, broken, list(COLUMNS))


def _plain(reason: str) -> str:
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", reason)  # no address: it tells nothing


def _label(source: Files, path: str) -> str | None:
    if source.label is None:
        return PurePosixPath(path).parent.name or None
    found = re.search(source.label, path)
    return found[1] if found else None
