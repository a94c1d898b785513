"""Where an ingest reads: sources, and how to tell cheaply that one has changed."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Literal

from pydantic import Field

from manta.definitions.base import Frozen
from manta.errors import SourceUnreadable


class Files(Frozen):
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
        """A token that changes when the files do: a hash of their names, sizes and modification times."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.resolve(root)]
        return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _package_folder(package: str) -> Path:
    # The package itself is not imported: it may be data only, and some fail to import.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SourceUnreadable(
            f"the Python package {package!r} is not installed",
            hint="the reference project's data: pip install 'manta-ml[examples]'",
        )
    return Path(next(iter(spec.submodule_search_locations)))


Source = Files
