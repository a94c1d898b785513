"""Local files: csv, jsonl and parquet; text may be compressed (.gz, .bz2, .zst, .lz4, or a .zip of one file).

Large uncompressed text is read in byte ranges, Parquet by row groups, everything else file by file.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.util
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    from manta.connectors.formats import FilePiece


class Files(Source):
    """Local files in one format.

    Attributes:
        path: a file or a glob, relative to the project folder; or ``package:NAME/inner/path`` for files that
            an installed Python package carries.
        format: ``csv``, ``jsonl`` or ``parquet``; compressed or not, as the file's name says (.gz,
            .bz2, .zst, .lz4; a .zip holds one file).
        null_values: texts that stand for a missing value (csv).
    """

    kind: Literal["files"] = "files"
    path: str
    format: Literal["csv", "jsonl", "parquet"] = "csv"
    null_values: tuple[str, ...] = Field(default=("",))

    def resolve(self, root: Path) -> list[Path]:
        """The files as they are now, sorted.

        Raises:
            SourceUnreadable: the package is not installed, or nothing matches.
        """
        base, pattern = root, self.path
        if self.path.startswith("package:"):
            package, _, pattern = self.path.removeprefix("package:").partition("/")
            base = _package_folder(package)
        elif Path(pattern).is_absolute():
            base, pattern = Path("/"), pattern.lstrip("/")
        found = sorted(path for path in base.glob(pattern) if path.is_file())
        if not found:
            raise SourceUnreadable(
                f"no file matches {self.path!r} in {base}",
                hint="correct `path` in the ingest's Files(…), or put the file there",
            )
        return found

    def observe(self, root: Path) -> str:
        """A hash of the files' names, sizes and modification times."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.resolve(root)]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        token = self.observe(ask.root)

        def verify() -> None:
            if self.observe(ask.root) != token:
                raise SourceUnreadable(
                    f"the files of {self.path!r} changed while they were read",
                    hint="run the ingest again when whoever writes the files has finished",
                )

        yield Reading(self._pieces(ask), token, verify=verify)

    def _pieces(self, ask: Ask) -> list[FilePiece]:
        from manta.connectors.formats import FilePiece

        paths = self.resolve(ask.root)
        base = os.path.commonpath([path.parent for path in paths])
        found: list[FilePiece] = []
        for path in paths:
            file = os.path.relpath(path, base)
            with self._reading(file):
                found += self._format().split(self, FilePiece(str(path), file, path.stat().st_size), ask)
        return found

    def read(self, piece: FilePiece, ask: Ask) -> Iterator[Rows]:
        with self._reading(piece.file):
            yield from self._format().read(self, piece, ask)

    def _format(self) -> Any:
        return importlib.import_module(f"manta.connectors.formats.{self.format}")

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        import polars as pl
        import pyarrow as pa

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
                f"{file} cannot be read as {self.format}: {error}",
                hint="the file is damaged, or `format` in Files(…) does not say what it is",
            ) from error


def _package_folder(package: str) -> Path:
    # The package itself is not imported: it may be data only, and some fail to import.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceUnreadable(
            f"the Python package {package!r} is not installed",
            hint="the reference project's data: pip install 'manta-ml[examples]'",
        )
    return Path(next(iter(spec.submodule_search_locations)))
