"""The lake: one run makes one version, whoever races or dies, and no reader sees anything in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from manta.data.lake import Lake, write_part
from manta.errors import NotFound


def frame(value: int, rows: int = 100) -> pl.DataFrame:
    return pl.DataFrame({"value": [value] * rows, "row": range(rows)})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path / "lake")


def files_of(lake: Lake, dataset: str) -> set[Path]:
    return set(Path(lake.path(dataset)).rglob("*.parquet"))


def test_what_is_not_there(lake: Lake) -> None:
    assert lake.version("flights") is None
    assert lake.committed("flights", "run-1") is None
    with pytest.raises(NotFound, match="no dataset 'flights'"):
        lake.read("flights")
    lake.replace("flights", frame(1), run_key="run-1")
    with pytest.raises(NotFound, match="no version 7; its newest is 0"):
        lake.scan("flights", 7)


def test_each_run_makes_one_version_and_old_versions_stay(lake: Lake) -> None:
    for n in range(3):
        assert lake.replace("d", frame(n, rows=n), run_key=f"run-{n}", metadata={"n": str(n)}) == n
    assert lake.version("d") == 2
    for n in range(3):
        assert lake.read("d", n).equals(frame(n, rows=n))
        assert lake.read("d", str(n), columns=["row"]).columns == ["row"]
        assert lake.metadata("d", n)["n"] == str(n)
        assert lake.committed("d", f"run-{n}") == n


def test_several_files_keep_their_order(lake: Lake) -> None:
    folder = lake.stage("d", "run-1")
    parts = [frame(n, rows=7) for n in range(12)]
    paths = [f"{folder}/{n:05d}.parquet" for n in range(12)]
    for part, path in zip(parts, paths, strict=True):
        write_part(part, path)
    lake.commit("d", paths[::-1], run_key="run-1", schema=parts[0].to_arrow().schema)
    assert lake.read("d").equals(pl.concat(parts))


def test_no_files_is_an_empty_version(lake: Lake) -> None:
    schema = frame(0).to_arrow().schema
    lake.commit("d", [], run_key="run-1", schema=schema)
    assert lake.read("d").equals(frame(0, rows=0))


def test_a_version_may_have_another_schema(lake: Lake) -> None:
    lake.replace("d", frame(1), run_key="run-1")
    other = pl.DataFrame({"name": ["x", None], "at": [None, None]}, schema={"name": pl.String, "at": pl.Date})
    lake.replace("d", other, run_key="run-2")
    assert lake.read("d").equals(other)
    assert lake.read("d", 0).equals(frame(1))


def test_the_same_run_commits_once(lake: Lake) -> None:
    first = lake.replace("d", frame(1), run_key="run-1")
    lake.replace("d", frame(2), run_key="run-2")
    assert lake.replace("d", frame(3), run_key="run-1") == first
    assert lake.version("d") == 1
    assert lake.read("d").equals(frame(2))
    # The second attempt's files are gone, the first's are not.
    assert lake.read("d", first).equals(frame(1))
    assert len(files_of(lake, "d")) == 2


def test_concurrent_runs_each_make_a_version(lake: Lake) -> None:
    # Every run commits twice, as two attempts that do not know of each other.
    with ThreadPoolExecutor(8) as pool:
        made = list(
            pool.map(lambda n: (n // 2, lake.replace("d", frame(n // 2), run_key=f"r{n // 2}")), range(32))
        )
    assert {version for _, version in made} == set(range(16))
    assert lake.version("d") == 15
    for run, version in made:
        assert lake.read("d", version).equals(frame(run))
    assert len(files_of(lake, "d")) == 16


COMMITS_FOREVER = """
import sys, polars as pl
from manta.data.lake import Lake
lake, n = Lake(sys.argv[1]), 0
while True:
    print(n, flush=True)
    lake.replace("d", pl.DataFrame({"value": [n] * 50_000, "row": range(50_000)}), run_key=f"loop-{n}")
    n += 1
"""


def test_killed_writers_leave_whole_versions(lake: Lake) -> None:
    """SIGKILL at many moments of stage and commit: each version that exists is whole."""
    lake.replace("d", frame(-1, rows=50_000), run_key="base")
    for delay in (0.0, 0.003, 0.006, 0.01, 0.02, 0.05):
        writer = subprocess.Popen(
            [sys.executable, "-c", COMMITS_FOREVER, str(lake.folder)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        newest = lake.version("d")
        assert newest is not None
        rows = lake.read("d")
        assert rows.height == 50_000
        assert rows["value"].n_unique() == 1
    # What they left does not stop the same runs from being tried again.
    left = lake.committed("d", "loop-0")
    made = lake.replace("d", frame(0, rows=50_000), run_key="loop-0")
    assert made == (left if left is not None else lake.version("d"))


def test_staged_files_are_seen_by_nobody(lake: Lake) -> None:
    lake.replace("d", frame(1), run_key="run-1")
    folder = lake.stage("d", "run-2")
    write_part(frame(2), f"{folder}/00000.parquet")
    assert lake.version("d") == 0
    assert lake.read("d").equals(frame(1))
    lake.discard(folder)
    assert len(files_of(lake, "d")) == 1


def test_a_reader_never_sees_half_a_version(lake: Lake) -> None:
    lake.replace("d", frame(0, rows=1_000), run_key="run-0")
    over = threading.Event()
    seen: list[int] = []

    def write() -> None:
        for n in range(1, 500):
            if n > 24 and len(set(seen)) > 3:
                break  # the reader has looked often enough
            folder = lake.stage("d", f"run-{n}")
            paths = [f"{folder}/{part:05d}.parquet" for part in range(4)]
            for path in paths:
                write_part(frame(n, rows=250), path)
            lake.commit("d", paths, run_key=f"run-{n}", schema=frame(n).to_arrow().schema)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        rows = lake.read("d")
        assert rows.height == 1_000
        assert rows["value"].n_unique() == 1
        seen.append(rows["value"][0])
    writer.join()
    assert seen == sorted(seen)
    assert len(set(seen)) > 3
