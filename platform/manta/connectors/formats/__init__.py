"""File formats: how a file of each is split into pieces, and how a piece is read. One module per format.

A format's module offers ``split(source, whole, ask) -> list[FilePiece]``, run where the ingest begins, and
``read(source, piece, ask) -> Iterator[Rows]``, run in the tasks; both as a connector's (see there), and free
to raise whatever reading damaged data raises.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import cast

import pyarrow as pa

from manta.errors import SourceUnreadable

PIECE_BYTES = 16 * 2**20
COMPRESSED = {".gz", ".bz2", ".zst", ".lz4", ".zip"}


@dataclass(frozen=True)
class FilePiece:
    """Bytes ``start`` to ``stop`` of a file of text, or those row groups of a Parquet file; ``stop`` None
    means the whole file. ``header`` are the columns of a csv whose first line is in another piece.
    """

    path: str
    file: str
    size: int
    start: int = 0
    stop: int | None = None
    header: tuple[str, ...] | None = None

    @property
    def compressed(self) -> bool:
        return Path(self.path).suffix in COMPRESSED


def ranges(whole: FilePiece, starts: list[int], header: tuple[str, ...] | None = None) -> list[FilePiece]:
    """The pieces of a file of text that is cut where its lines ``starts`` begin, in ascending order."""
    return [
        replace(whole, size=stop - start, start=start, stop=stop, header=header if start else None)
        for start, stop in pairwise([0, *starts, whole.size])
        if stop > start
    ]


@contextmanager
def opened(piece: FilePiece) -> Iterator[io.BufferedReader]:
    """A stream of the piece's text, unpacked. For a byte range: of all up to the end of the file."""
    if Path(piece.path).suffix == ".zip":
        with zipfile.ZipFile(piece.path) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            if len(members) != 1:
                raise SourceUnreadable(
                    f"{piece.file} holds {len(members)} files, not one", hint="unpack it, and use a glob"
                )
            with archive.open(members[0]) as member:
                yield io.BufferedReader(cast(io.RawIOBase, member), 2**20)
    elif Path(piece.path).suffix in COMPRESSED:
        with pa.input_stream(piece.path, compression="detect") as unpacked:
            yield io.BufferedReader(cast(io.RawIOBase, unpacked), 2**20)
    else:
        with open(piece.path, "rb", buffering=2**20) as stream:
            yield cast(io.BufferedReader, stream)
