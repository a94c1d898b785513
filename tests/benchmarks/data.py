"""From a source to a dataset: manta's ingest beside Polars and pandas, on the same rows, on two CPUs.

A worker that is warm, a Ray of two CPUs in this process; the others each in a process of their own that has
imported what it needs. Beside the seconds stand those of CPU, of all processes together (Ray's too): on a
machine with other work they are what can be compared. Then the line: what a megabyte costs as the input
grows, without a key and with one, and the memory of all processes beyond an idle Ray's.

What bounds it, of csv, in milliseconds of CPU a megabyte: parsing to types 3.0 (Arrow; 0.4 of it fresh
memory), writing Parquet with lz4 1.9 (zstd 2.5), the profile's sketch 1.05, the contract and moments 0.7;
looking for quotes before a file is cut 0.1. Polars parses a quarter faster, but takes a row that is too short
for one with nulls, so it cannot say what is broken. A run itself takes 0.05 to 0.1 s: the ledger, the commit,
a task. A process that has not worked for the run before spends some 2 s on imports.

MANTA_BENCH_MB is the size for the comparison (default 1000), MANTA_BENCH_ROUNDS how often (3),
MANTA_BENCH_LINE has the sizes of the line ("10,100,1000"), MANTA_BENCH_FOLDER is where the files are made
(/tmp).

MANTA_BENCH_ROWS is the size of the table in PostgreSQL (5,000,000); see _data_rivals.py.

Another source beside its rivals is another function like `compare_files`, called in `with_ray`: it makes its
rows, and gives `Manta.execute` an Ingest of its own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import psutil

from manta.connectors.files import Files
from manta.data import ingest
from manta.data.lake import Lake
from manta.definitions import Column, Contract, Ingest
from manta.settings import Settings
from manta.testing.connectors import run_of
from tests.benchmarks._data_rivals import compare_dlt, compare_table
from tests.conftest import free_ports

CPUS = 2
ROUNDS = int(os.environ.get("MANTA_BENCH_ROUNDS", "3"))
ROWS = 200_000
COLUMNS = {
    "id": Column(type="int64", min=0),
    "shop": Column(type="int64"),
    "amount": Column(type="float64", nullable=True),
    "ratio": Column(type="float64"),
    "city": Column(type="string"),
    "customer": Column(type="string", nullable=True),
    "at": Column(type="timestamp"),
}

POLARS = """
import polars as pl
pl.scan_csv({path!r}{more}).sink_parquet({out!r})
"""
PANDAS = """
import pandas as pd
pd.read_csv({path!r}).to_parquet({out!r})
"""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench", dir=os.environ.get("MANTA_BENCH_FOLDER", "/tmp")))
    try:
        with_ray(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def with_ray(folder: Path) -> None:
    import ray

    megabytes = float(os.environ.get("MANTA_BENCH_MB", "1000"))
    line = os.environ.get("MANTA_BENCH_LINE", f"10,100,{megabytes:g}")
    manta = Manta(folder)
    ray_folder = tempfile.mkdtemp(prefix="rb", dir="/tmp")  # its sockets need a short path
    # Ray lowers its workers' priority, which only matters beside other work: there it would be no comparison.
    os.environ |= {"RAY_worker_niceness": "0", "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ray.init(
        address="local",
        num_cpus=CPUS,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=ray_folder,
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}},
    )
    try:
        small = folder / "small.csv"
        write_csv(small, rows=1_000)
        latency(manta, small)
        compare_files(manta, folder, megabytes)
        compare_table(manta, folder, child, ROUNDS)
        grow(manta, folder, [float(size) for size in line.split(",") if size])
    finally:
        ray.shutdown()
        shutil.rmtree(ray_folder, ignore_errors=True)


# --- what is measured -----------------------------------------------------------------------------------


def latency(manta: Manta, small: Path) -> None:
    """1,000 rows, by a worker that has imported what it needs."""
    seconds = [manta.ingest(small) for _ in range(6)]
    print(
        f"1,000 rows to a version: first {seconds[0]:.2f} s, then {min(seconds[1:]):.2f} s at best, "
        f"{max(seconds[1:]):.2f} s at worst"
    )


def compare_files(manta: Manta, folder: Path, megabytes: float) -> None:
    """csv, all sides in turn; the ratio is of the pair of one round."""
    path, out = folder / "big.csv", folder / "out.parquet"
    write_csv(path, megabytes=megabytes)
    asked = {"path": str(path), "out": str(out)}
    others: dict[str, Callable[[], Cost]] = {
        "Polars scan_csv().sink_parquet()": lambda: child(POLARS.format(more="", **asked)),
        "the same, try_parse_dates=True": lambda: child(
            POLARS.format(more=", try_parse_dates=True", **asked)
        ),
        "pandas read_csv, to_parquet": lambda: child(PANDAS.format(**asked)),
    }
    ours: list[Cost] = []
    theirs: dict[str, list[Cost]] = {name: [] for name in others}
    manta.ingest(path)  # so that there is a warm worker for each CPU
    for _ in range(ROUNDS):
        with_ray = cpu_seconds()
        seconds = manta.ingest(path)
        ours.append(Cost(seconds, cpu_seconds() - with_ray))
        for name, run in others.items():
            theirs[name].append(run())
    print(f"{megabytes:g} MB of csv to a dataset, best of {ROUNDS}; ratios are medians, above 1 for manta:")
    print(f"  {'manta':36} {min(ours).seconds:7.2f} s {min(cost.cpu for cost in ours):7.2f} s of CPU")
    for name, costs in theirs.items():
        pairs = list(zip(ours, costs, strict=True))
        time_ratio = median(other.seconds / mine.seconds for mine, other in pairs)
        cpu_ratio = median(other.cpu / mine.cpu for mine, other in pairs)
        print(
            f"  {name:36} {min(costs).seconds:7.2f} s {min(cost.cpu for cost in costs):7.2f} s of CPU   "
            f"{time_ratio:.2f} × the time, {cpu_ratio:.2f} × the CPU of manta"
        )
    compare_dlt(manta, folder, path, child)
    path.unlink()
    out.unlink()


def grow(manta: Manta, folder: Path, sizes: list[float]) -> None:
    """What a megabyte costs as the input grows, and the memory of all processes beyond an idle Ray's."""
    for megabytes in sizes:
        path = folder / "line.csv"
        write_csv(path, megabytes=megabytes)
        for key in ((), ("id",)):
            with Memory() as memory:
                began = cpu_seconds()
                seconds = manta.ingest(path, key=key)
                cpu = cpu_seconds() - began
            print(
                f"{megabytes:6g} MB {'with a key' if key else '':11}{seconds:7.2f} s "
                f"{1000 * seconds / megabytes:6.2f} ms/MB, {1000 * cpu / megabytes:6.2f} ms of CPU/MB, "
                f"{memory.peak / 2**20:6.0f} MiB beyond Ray's"
            )
        path.unlink()


# --- with what ------------------------------------------------------------------------------------------


class Manta:
    """Executes ingests in this process, as the worker does."""

    def __init__(self, folder: Path) -> None:
        self.settings = Settings(
            project="bench", root=folder, home=folder / ".manta", ports=free_ports()
        )._resolved()

    def ingest(self, path: Path, key: tuple[str, ...] = (), form: str = "csv") -> float:
        """Seconds from the run's beginning to its version; the version is then removed."""
        contract = Contract(columns=COLUMNS, key=key)
        return self.execute(
            Ingest(dataset="bench", source=Files(path=str(path), format=form), contract=contract)
        )

    def execute(self, definition: Ingest) -> float:
        context = run_of(self.settings, definition)
        began = time.perf_counter()
        ingest.execute(context)
        seconds = time.perf_counter() - began
        shutil.rmtree(Lake(self.settings.datasets).path(definition.dataset))
        return seconds


class Cost(NamedTuple):
    seconds: float
    cpu: float  # seconds of all processes


class Memory:
    """The peak of the memory of this process and its children (Ray's among them), beyond what it was."""

    def __enter__(self) -> Memory:
        self.before, self.peak, self.ended = used(), 0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.ended.wait(0.25):
            self.peak = max(self.peak, used() - self.before)

    def __exit__(self, *raised: object) -> None:
        self.ended.set()
        self.thread.join()


def used() -> int:
    """Bytes of memory of this process and all it has started; what they share counts once."""
    total = 0
    for process in family():
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total


def cpu_seconds() -> float:
    total = 0.0
    for process in family():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def family() -> list[psutil.Process]:
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def child(code: str) -> Cost:
    """What the code costs in a process of its own, which has imported what it needs."""
    imports, *work = code.strip().split("\n")
    whole = [
        imports,
        "import time, pyarrow.parquet",
        "began, cpu = time.perf_counter(), time.process_time()",
        *work,
        "print(time.perf_counter() - began, time.process_time() - cpu)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(whole)], check=True, capture_output=True, text=True
    )
    return Cost(*map(float, done.stdout.split()))


def write_csv(path: Path, *, megabytes: float = 0, rows: int = 0) -> None:
    """Integers, floats, texts, moments; one in twenty amounts and customers is missing."""
    random = np.random.default_rng(1)
    with path.open("wb") as stream:
        at = 0
        while at < rows or stream.tell() < megabytes * 1e6:
            frame = _rows(random, at, rows or ROWS)
            frame.write_csv(stream, include_header=at == 0, datetime_format="%Y-%m-%dT%H:%M:%SZ")
            at += frame.height


def _rows(random: Any, first: int, rows: int) -> pl.DataFrame:
    moments = np.datetime64("2024-01-01", "us") + random.integers(0, 3 * 10**7, rows) * 1_000_000
    return pl.DataFrame(
        {
            "id": np.arange(first, first + rows),
            "shop": random.integers(0, 1000, rows),
            "amount": random.normal(100, 30, rows).round(2),
            "ratio": random.random(rows),
            "city": random.choice(["London", "Paris", "New York", "Rio de Janeiro", "Zürich"], rows),
            "customer": pl.Series(random.integers(0, 10**6, rows)).cast(pl.String).str.zfill(8),
            "at": moments,
        }
    ).with_columns(
        pl.when(pl.Series(random.random(rows) >= 0.05)).then(pl.col(name)).alias(name)
        for name in ("amount", "customer")
    )
