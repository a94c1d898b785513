"""File formats: how a file of each is split into pieces, and how a piece is read. One module per format.

A format's module offers ``split(source, whole, ask) -> list[FilePiece]``, run where the ingest begins, and
``read(source, piece, ask) -> Iterator[Rows]``, run in the tasks; both as a connector's (see there), and free
to raise whatever reading damaged data raises. A format of which one piece holds many files offers
``gather(source, files, ask)`` in place of ``split``.
"""

from __future__ import annotations

import io
import urllib.parse
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import pyarrow as pa

from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    from manta.connectors.files import Files

PIECE_BYTES = 16 * 2**20
RECORD_BYTES = 256 * 2**20  # a longer record is none, but a file of another kind
COMPRESSED = {".gz", ".bz2", ".zst", ".lz4", ".zip"}
BOM = b"\xef\xbb\xbf"
# What is more than a small file unpacks to many times its size is made to fill disks, not to be read.
BOMB_BYTES, BOMB_RATIO = 2**30, 200


@dataclass(frozen=True)
class FilePiece:
    """Bytes ``start`` to ``stop`` of a file of text, or those row groups of a Parquet file; ``stop`` None
    means the whole file. ``header`` are the columns of a csv whose first line is in another piece.
    ``ranges``: whether parts of the file can be had.
    """

    path: str
    file: str
    size: int
    start: int = 0
    stop: int | None = None
    header: tuple[str, ...] | None = None
    ranges: bool = True

    @property
    def suffix(self) -> str:
        return Path(urllib.parse.urlsplit(self.path).path if "://" in self.path else self.path).suffix

    @property
    def cuttable(self) -> bool:
        return self.ranges and self.suffix not in COMPRESSED


def ranges(whole: FilePiece, starts: list[int], header: tuple[str, ...] | None = None) -> list[FilePiece]:
    """The pieces of a file of text that is cut where its lines ``starts`` begin, in ascending order."""
    return [
        replace(whole, size=stop - start, start=start, stop=stop, header=header if start else None)
        for start, stop in pairwise([0, *starts, whole.size])
        if stop > start
    ]


def line_start(source: Files, whole: FilePiece, at: int) -> int | None:
    """Where the first line begins that does so behind ``at``; None if none does."""
    while at < whole.size:
        text = source.store.read(whole.path, at, min(whole.size, at + 2**16))
        newline = text.find(b"\n")
        if newline >= 0:
            return at + newline + 1
        at += len(text)
    return None


@contextmanager
def opened(source: Files, piece: FilePiece) -> Iterator[io.BufferedReader | Held]:
    """A stream of the piece's text, unpacked."""
    if piece.stop is not None:
        text = source.store.read(piece.path, piece.start, piece.stop)
        yield Held(text)
        return
    with source.store.local(piece.path) as path:
        if piece.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                members = [name for name in archive.namelist() if not name.endswith("/")]
                if len(members) != 1:
                    raise SourceUnreadable(
                        f"{piece.file} holds {len(members)} files, not one", hint="unpack it, and use a glob"
                    )
                with archive.open(members[0]) as member:
                    yield io.BufferedReader(_Unpacked(member, piece), 2**20)
        elif piece.suffix in COMPRESSED:
            with pa.input_stream(str(path), compression="detect") as unpacked:
                yield io.BufferedReader(_Unpacked(unpacked, piece), 2**20)
        else:
            with open(path, "rb", buffering=2**20) as stream:
                yield cast(io.BufferedReader, stream)


class Held(io.BytesIO):
    """A text in memory, as a stream."""

    def peek(self, size: int = 0) -> bytes:
        at = self.tell()
        ahead = self.read(size)
        self.seek(at)
        return ahead


class _Unpacked(io.RawIOBase):
    """What a compressed file holds, as long as that is in proportion."""

    def __init__(self, inner: IO[bytes] | Any, piece: FilePiece) -> None:
        self._inner, self._piece, self._given = inner, piece, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        text = self._inner.read(len(buffer))
        self._given += len(text)
        if self._given > max(BOMB_BYTES, BOMB_RATIO * self._piece.size):
            raise SourceUnreadable(
                f"{self._piece.file} unpacks to more than {BOMB_RATIO} times its size",
                hint="if it is to be read nevertheless, unpack it first",
            )
        buffer[: len(text)] = text
        return len(text)
