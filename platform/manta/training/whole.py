"""Files that are there whole or not at all, whenever their writer is killed."""

from __future__ import annotations

from pathlib import Path


def write(path: Path, content: bytes) -> None:
    """Write a file in one step, over one that is there. One writer at a time: what a killed one has left of
    its own is written over by the next."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)
