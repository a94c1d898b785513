"""GeoJSON (RFC 7946): a row for each feature, its properties as columns, its geometry as JSON."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import SourceUnreadable

BATCH_ROWS = 50_000


class GeoJson(Source):
    """Files that hold a FeatureCollection each.

    The columns are the features' properties, ``id``, and ``geometry`` as JSON text; a property of one of
    these names gives way to the feature's own, where it has one.

    Attributes:
        path: a file or a glob, relative to the project folder.
    """

    kind: Literal["geojson"] = "geojson"
    path: str

    def observe(self, root: Path) -> str:
        """A hash of the files' names, sizes and times of change."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self._files(root)]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        token = self.observe(ask.root)

        def verify() -> None:
            if self.observe(ask.root) != token:
                raise SourceUnreadable(f"{self.path} changed while it was read", hint="run the ingest again")

        files = self._files(ask.root)
        base = os.path.commonpath([path.parent for path in files])
        pieces = [File(os.path.relpath(path, base), path.stat().st_size, str(path)) for path in files]
        yield Reading(pieces, token, verify=verify)

    def read(self, piece: File, ask: Ask) -> Iterator[Rows]:
        from manta.connectors.formats import jsonl

        try:
            collection = msgspec.json.decode(Path(piece.path).read_bytes(), type=Collection)
        except (msgspec.DecodeError, UnicodeError, OSError) as error:
            raise SourceUnreadable(
                f"{piece.file} cannot be read as GeoJSON: {error}", hint="it must hold one FeatureCollection"
            ) from error
        features = collection.features
        for start in range(0, max(1, len(features)), BATCH_ROWS):
            lines = [_line(feature) for feature in features[start : start + BATCH_ROWS]]
            yield jsonl.json_rows(lines, ask.columns, "feature")

    def _files(self, root: Path) -> list[Path]:
        absolute = Path(self.path).is_absolute()
        base, pattern = (Path("/"), self.path.lstrip("/")) if absolute else (root, self.path)
        found = sorted(path for path in base.glob(pattern) if path.is_file())
        if not found:
            raise SourceUnreadable(f"no file matches {self.path!r}", hint="correct `path` in GeoJson(…)")
        return found


@dataclass(frozen=True)
class File:
    file: str
    size: int
    path: str


class Collection(msgspec.Struct, tag_field="type", tag="FeatureCollection"):
    features: list[msgspec.Raw]


def _line(feature: msgspec.Raw) -> bytes:
    """Its values in one JSON object on one line, or as it is when it is no feature."""
    try:
        values = msgspec.json.decode(feature, type=dict[str, msgspec.Raw])
        properties = msgspec.json.decode(values["properties"], type=dict[str, msgspec.Raw] | None) or {}
    except (msgspec.ValidationError, KeyError):
        return msgspec.json.encode(f"no feature: {bytes(feature)[:200].decode(errors='replace')}")
    own = {name: values[name] for name in ("id", "geometry") if name in values}
    # In JSON, the end of a line is never within a value.
    return msgspec.json.encode(properties | own).translate(bytes.maketrans(b"\r\n", b"  "))
