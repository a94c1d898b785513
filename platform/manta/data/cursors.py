"""Where a dataset keeps the cursors of its ingests: in its newest commit, a long one in a file beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manta.data.lake import Lake

# Delta reads the metadata of every commit to tell the history: what is longer is written beside the rows.
LONGEST = 4096  # characters of JSON
ELSEWHERE = "manta:file"


def kept(metadata: Mapping[str, Any], ingest: str) -> Any:
    """The cursor as the commit has it: equal to another only if nobody has read on in between."""
    return metadata.get("cursors", {}).get(ingest)


def read(lake: Lake, dataset: str, metadata: Mapping[str, Any], ingest: str) -> Any:
    """The cursor itself; None before the ingest's first commit."""
    cursor = kept(metadata, ingest)
    if isinstance(cursor, dict) and set(cursor) == {ELSEWHERE}:
        return json.loads(Path(lake.path(dataset), cursor[ELSEWHERE]).read_text())
    return cursor


def keep(lake: Lake, dataset: str, cursor: Any, folder: str) -> Any:
    """The form of a cursor that goes into the commit; a long one is written into the staged ``folder``."""
    text = json.dumps(cursor)
    if len(text) <= LONGEST:
        return cursor
    path = Path(folder) / "cursor.json"
    path.write_text(text)
    return {ELSEWHERE: lake.inside(dataset, str(path))}
