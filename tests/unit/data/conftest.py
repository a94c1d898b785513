"""Datasets in a lake of their own, with versions committed by hand, as ingests do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manta.data.lake import Change, write_part
from manta.data.reading import Datasets


@pytest.fixture
def datasets(tmp_path: Path) -> Datasets:
    return Datasets(tmp_path / "lake")


@pytest.fixture
def put(datasets: Datasets) -> Callable[..., int]:
    """Commit frames, each as a file, with what an ingest would keep; gives the version."""
    numbers: dict[str, int] = {}

    def commit(name: str, *frames: pl.DataFrame, mode: str = "replace", **metadata: Any) -> int:
        lake = datasets.lake
        number = numbers[name] = numbers.get(name, 0) + 1
        key = f"test-{name}-{number}"
        folder = lake.stage(name, key)
        paths = [f"{folder}/{i:06d}.parquet" for i in range(len(frames))]
        for frame, path in zip(frames, paths, strict=True):
            write_part(frame, path)
        told = {"ingest": name, "mode": mode, "rows": sum(frame.height for frame in frames), **metadata}
        change = Change(paths, None if mode == "replace" else (), told)
        return lake.change(name, lambda _: change, run_key=key, schema=frames[0].to_arrow().schema)

    return commit


@pytest.fixture
def committed_at(datasets: Datasets) -> Callable[[str, int, int], None]:
    """Make a version as old as that: milliseconds since 1970."""

    def rewrite(name: str, version: int, millis: int) -> None:
        log = Path(datasets.lake.path(name), "_delta_log", f"{version:020d}.json")
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for line in lines:
            if "commitInfo" in line:
                line["commitInfo"]["timestamp"] = millis
        log.write_text("\n".join(map(json.dumps, lines)))

    return rewrite
