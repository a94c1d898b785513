"""Files on this machine or in a store: S3, Google Cloud Storage, Azure, HDFS, an HTTP server.

Large uncompressed text is read in byte ranges, Parquet and ORC by row groups and stripes, Avro in blocks,
everything else file by file.
"""

from __future__ import annotations

import csv
import hashlib
import importlib
import importlib.util
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from manta import secrets
from manta.connectors._seen import only_new
from manta.connectors._stores import SCHEMES, Found, Store, local_found, scheme
from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import MantaError, SourceUnreadable

_SECRET = re.compile(r"secret|key$|token|password|credential|connection_string|sas", re.IGNORECASE)
_COMPRESSED = re.compile(r"\.(gz|bz2|zst|lz4|zip)$", re.IGNORECASE)
_ENDINGS = {
    (".parquet", ".pq"): "parquet",
    (".jsonl", ".ndjson"): "jsonl",
    (".avro",): "avro",
    (".orc",): "orc",
    (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"): "image",
}
# Named like secrets, and none.
_OPEN = {"anon", "key_file"}


class Files(Source):
    """Files in one format.

    Attributes:
        path: a file or a glob, relative to the project folder; ``package:NAME/inner/path`` for files that an
            installed Python package carries; or a URL: ``s3://``, ``gs://``, ``abfs://``, ``hdfs://`` (globs
            too), ``https://`` (one file).
        format: ``csv``, ``jsonl``, ``parquet``, ``avro``, ``orc`` or ``image``; not given, what the path's
            ending says, and ``csv`` where it says nothing. Text may be compressed, as the file's name says
            (.gz, .bz2, .zst, .lz4; a .zip holds one file). Of images each file is a row:
            ``path``, ``label``, ``bytes``, ``width``, ``height``, ``mode``; broken ones are refused.
        null_values: texts that stand for a missing value (csv).
        delimiter, quote: one ASCII character each (csv).
        columns: the names of the columns of a csv that has no header.
        encoding: of csv.
        multiline: whether a quoted text may hold line ends (csv). If none does, say False: large files are
            then cut without being read through first, which spares half the traffic of a remote one.
        label: of an image, where it is in the path: a regular expression with one group; not given, the name
            of the folder that the image is in.
        storage: how the store is reached, as its fsspec driver calls it: ``endpoint_url``, ``key``,
            ``secret`` … Secrets stand in it as references, ``${env:NAME}``.
        new_only: read only files that no committed reading of this ingest has read, known by path, size and
            time or ETag. Files that are gone are forgotten.
        changed: what to do with a file that has changed since it was read: ``refuse`` the run; or ``read`` it
            again, which takes ``mode="upsert"``.
    """

    kind: Literal["files"] = "files"
    path: str
    format: Literal["csv", "jsonl", "parquet", "avro", "orc", "image"] = "csv"
    null_values: tuple[str, ...] = Field(default=("",))
    delimiter: str = Field(default=",", pattern=r"\A[\x01-\x7f]\z")
    quote: str = Field(default='"', pattern=r"\A[\x01-\x7f]\z")
    columns: tuple[str, ...] | None = None
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    multiline: bool = True
    label: str | None = None
    storage: Mapping[str, Any] = Field(default_factory=dict)
    new_only: bool = False
    changed: Literal["refuse", "read"] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _as_the_path_ends(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "format" in given or not isinstance(given.get("path"), str):
            return given
        path = given["path"]
        path = path.partition("?")[0] if path.startswith(("http://", "https://")) else path
        name = _COMPRESSED.sub("", path).lower()
        found = next((form for ends, form in _ENDINGS.items() if name.endswith(ends)), None)
        return given if found is None else given | {"format": found}

    @model_validator(mode="after")
    def _can_be_read(self) -> Files:
        if scheme(self.path) not in {None, *SCHEMES}:
            raise ValueError(f"path begins with none of {', '.join(f'{name}://' for name in SCHEMES)}")
        if self.label is not None and re.compile(self.label).groups != 1:
            raise ValueError("label must be a regular expression with one group")
        if secrets.plain_passwords(self.path) or _plain_secrets(self.storage):
            raise ValueError(
                "storage and path hold references to secrets (${env:NAME}), not secrets themselves"
            )
        if self.changed == "read" and not self.new_only:
            raise ValueError("changed='read' goes with new_only=True: without it all is read each time")
        return self

    @property
    def incremental(self) -> bool:
        return self.new_only

    @property
    def overlaps(self) -> bool:
        return self.changed == "read"

    @property
    def store(self) -> Store:
        return Store(self.path, self.storage)

    def resolve(self, root: Path) -> list[Path]:
        """The local files as they are now, sorted.

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

    def observe(self, root: Path) -> str | None:
        """A hash of the local files' names, sizes and modification times; None when they are elsewhere."""
        return _token(self._found(root)) if scheme(self.path) is None else None

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        found = self._found(ask.root)
        cursor, wanted = None, found
        if self.new_only:
            cursor, wanted = only_new(self.path, found, ask.cursor, changed=self.changed == "read")

        def verify() -> None:
            now = {each.path: each for each in self._found(ask.root)}
            if any(now.get(each.path) != each for each in wanted) or not (
                self.new_only or len(now) == len(found)
            ):
                raise SourceUnreadable(
                    f"the files of {self.path!r} changed while they were read",
                    hint="run the ingest again when whoever writes the files has finished",
                )

        yield Reading(self._pieces(wanted, ask), _token(wanted), cursor=cursor, verify=verify)

    def read(self, piece: Any, ask: Ask) -> Iterator[Rows]:
        with self._reading(piece.file):
            yield from self._format().read(self, piece, ask)

    # --- inside ---------------------------------------------------------------------------------------

    def _found(self, root: Path) -> list[Found]:
        if scheme(self.path) is None:
            return [local_found(path) for path in self.resolve(root)]
        found = self.store.find(self.path)
        if not found:
            raise SourceUnreadable(
                f"there is no {self.path}",
                hint="correct `path` in the ingest's Files(…), or put the file there",
            )
        return found

    def _pieces(self, found: list[Found], ask: Ask) -> list[Any]:
        from manta.connectors.formats import FilePiece

        if not found:
            return []
        form = self._format()
        names = _names(found)
        whole = [
            FilePiece(each.path, name, each.size or 0, ranges=each.ranges)
            for each, name in zip(found, names, strict=True)
        ]
        if hasattr(form, "gather"):
            return list(form.gather(self, whole, ask))
        pieces: list[Any] = []
        for each in whole:
            with self._reading(each.file):
                pieces += form.split(self, each, ask)
        return pieces

    def _format(self) -> Any:
        return importlib.import_module(f"manta.connectors.formats.{self.format}")

    @contextmanager
    def _reading(self, file: str) -> Iterator[None]:
        import polars as pl
        import pyarrow as pa

        try:
            yield
        except MantaError:
            raise
        except PermissionError as error:
            raise SourceUnreadable(
                f"{file} may not be read", hint="let the user that the cluster runs as read it"
            ) from error
        except (
            OSError,  # what gzip, bz2 and vanished files raise
            EOFError,
            UnicodeError,
            csv.Error,
            zlib.error,
            zipfile.BadZipFile,
            pa.ArrowException,
            pl.exceptions.PolarsError,
            *self._damages(),
        ) as error:
            raise SourceUnreadable(
                f"{file} cannot be read as {self.format}: {error}",
                hint="the file is damaged, or `format` in Files(…) does not say what it is",
            ) from error

    def _damages(self) -> tuple[type[Exception], ...]:
        """What else the format's library raises of a damaged file."""
        return tuple(getattr(self._format(), "DAMAGES", ()))


def _names(found: list[Found]) -> list[str]:
    """What each is called where a person reads it: its path, without what is common to the folders of all."""
    if scheme(found[0].path) is None:
        base = os.path.commonpath([os.path.dirname(each.path) for each in found])
        return [os.path.relpath(each.path, base) for each in found]
    paths = [each.path.partition("?")[0] for each in found]
    base = os.path.commonpath([path.rpartition("/")[0].partition("://")[2] for path in paths])
    return [path.partition("://")[2].removeprefix(base).lstrip("/") for path in paths]


def _token(found: list[Found]) -> str:
    held = [(os.path.basename(each.path), each.size, each.tag) for each in found]
    return hashlib.sha256(repr(held).encode()).hexdigest()[:16]


def _plain_secrets(options: Any) -> bool:
    """Whether a value that is named like a secret, or a URL's password, stands there itself."""
    if isinstance(options, Mapping):
        return any(
            (
                isinstance(value, str)
                and _SECRET.search(name)
                and name not in _OPEN
                and not secrets.references(value)
            )
            or _plain_secrets(value)
            for name, value in options.items()
        )
    return isinstance(options, str) and bool(secrets.plain_passwords(options))


def _package_folder(package: str) -> Path:
    # The package itself is not imported: it may be data only, and some fail to import.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceUnreadable(
            f"the Python package {package!r} is not installed",
            hint="the reference project's data: pip install 'manta-ml[examples]'",
        )
    return Path(next(iter(spec.submodule_search_locations)))
