"""Historical features: manta's offline store beside Feast's duckdb store, its default store and bare Polars.

The same Parquet files, the same entity rows, the same call, Feast's `get_historical_features(…).to_arrow()`,
each in a process of its own that has imported what it needs and asked once for a few rows; in turn, so that
a machine whose speed drifts drifts for all. Counts and sums of what they answer are compared. Bare Polars is
what one would write by hand: read, sort, `join_asof` with a tolerance, and the rows back in their order.

What bounds it, in seconds of CPU for 1,000,000 rows × 2 views of 1,000,000, 0.7 in all: sorting 0.2 (the
entity rows once, each view once), reading Parquet 0.15, searching and the TTL 0.1, taking the features of the
rows found 0.1, Feast and pandas 0.1. There is no join by key in it (`asof_search.py` says how): so it takes
less than bare `join_asof(by=…)`, about half of its CPU at 10 rows of a key and some 0.8 of it at 100, where
that is faster. The views are worked on side by side, a core each.
From disk (`in_process_rows` passed), splitting and spilling come on top.

Feast's duckdb store joins every row of a key with every other before it ranks them, so its time grows with
the rows of a key (MANTA_BENCH_PER_KEY, "10,100"); ours does not.

MANTA_BENCH_ROWS are the entity rows and the rows of each view (1000000), MANTA_BENCH_ROUNDS how often (3),
MANTA_BENCH_PEERS which others there are ("polars,duckdb,dask"); Feast's duckdb store needs ibis, for which a
virtual environment is made in a temporary folder. MANTA_BENCH_LARGE are the entity rows and the rows of each
of three views of the run in bounded memory (20000000; 0 for none), MANTA_BENCH_FOLDER where files are made.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

ROWS = int(os.environ.get("MANTA_BENCH_ROWS", "1000000"))
ROUNDS = int(os.environ.get("MANTA_BENCH_ROUNDS", "3"))
LARGE = int(os.environ.get("MANTA_BENCH_LARGE", "20000000"))
PER_KEY = [int(each) for each in os.environ.get("MANTA_BENCH_PER_KEY", "10,100").split(",")]
PEERS = os.environ.get("MANTA_BENCH_PEERS", "polars,duckdb,dask").split(",")
WANTED = {"polars": 1 / 1.5, "duckdb": 8.0, "dask": 25.0}
FEATURES = 3

# What each process runs; it answers a line for each line that it is sent.
PEER = """
import json, resource, sys, time
from datetime import timedelta
from pathlib import Path
import polars as pl

kind, folder, views, features = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
names = [f"v{view}_{n}" for view in range(views) for n in range(features)]

def with_feast():
    import pandas as pd
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, Int64

    kinds = {"manta": "manta.features.offline.AsofOfflineStore"}
    offline = {"type": kinds.get(kind, kind)}
    if kind == "manta":
        offline |= json.loads(sys.argv[5])
    home = folder / f"repo-{kind}"
    home.mkdir(exist_ok=True)
    store = FeatureStore(config=RepoConfig(
        project="bench", provider="local", registry=str(home / "registry.db"), offline_store=offline,
        online_store={"type": "sqlite", "path": str(home / "online.db")}, entity_key_serialization_version=3,
    ))
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    store.apply([user] + [
        FeatureView(
            name=f"v{view}", entities=[user], ttl=timedelta(days=7),
            schema=[Field(name="user", dtype=Int64)]
            + [Field(name=f"v{view}_{n}", dtype=Float64) for n in range(features)],
            source=FileSource(name=f"v{view}", path=str(folder / f"v{view}.parquet"), timestamp_field="ts"),
        )
        for view in range(views)
    ])
    entity = pd.read_parquet(folder / "entity.parquet")
    asked = [f"v{view}:v{view}_{n}" for view in range(views) for n in range(features)]
    return lambda rows: store.get_historical_features(entity.head(rows) if rows else entity, asked).to_arrow()

def by_hand():
    entity = pl.read_parquet(folder / "entity.parquet")
    def run(rows):
        found = (entity.head(rows) if rows else entity).with_row_index("row").sort("event_timestamp")
        for view in range(views):
            frame = pl.read_parquet(folder / f"v{view}.parquet").sort("ts")
            found = found.join_asof(
                frame, left_on="event_timestamp", right_on="ts", by="user", tolerance="7d",
                check_sortedness=False,
            ).drop("ts")
        return found.sort("row").drop("row").to_arrow()
    return run

run = by_hand() if kind == "polars" else with_feast()
run(100)
idle = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print("ready", flush=True)
for line in sys.stdin:
    began, cpu = time.perf_counter(), time.process_time()
    table = run(0)
    took = time.perf_counter() - began, time.process_time() - cpu
    told = pl.DataFrame(table.select(names))
    print(json.dumps({
        "seconds": took[0], "cpu": took[1], "rows": table.num_rows,
        "found": [told[n].count() for n in names], "sums": [told[n].sum() for n in names],
        "in_order": table["row_id"].to_pylist()[:3] == [0, 1, 2] if "row_id" in table.column_names else None,
        "idle": idle, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }), flush=True)
    del table, told
"""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench", dir=os.environ.get("MANTA_BENCH_FOLDER", "/tmp")))
    try:
        for per_key in PER_KEY:
            compare(folder, per_key)
        if LARGE:
            large(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def compare(folder: Path, per_key: int) -> None:
    write(folder, ROWS, 2, per_key)
    peers = {"manta": Peer("manta", folder, 2, {"in_process_rows": 2**40})}
    for kind in PEERS:
        python = duckdb_python(folder) if kind == "duckdb" else sys.executable
        if python:
            peers[kind] = Peer(kind, folder, 2, {}, python)
    told: dict[str, list[dict[str, Any]]] = {kind: [] for kind in peers}
    for _ in range(ROUNDS):
        for kind, peer in peers.items():
            told[kind].append(peer.ask())
    for peer in peers.values():
        peer.close()
    ours = told.pop("manta")
    rows = f"{ROWS:,} entity rows × 2 views of {ROWS:,}, {per_key} rows a key"
    print(f"{rows}: manta {shown(ours)}", flush=True)
    for kind, theirs in told.items():
        pairs = list(zip(ours, theirs, strict=True))
        ratio = median(other["seconds"] / mine["seconds"] for mine, other in pairs)
        cpu = median(other["cpu"] / mine["cpu"] for mine, other in pairs)
        same = "the same answer" if agree(ours[0], theirs[0]) else differ(ours[0], theirs[0])
        print(
            f"  {kind:8} {shown(theirs)}: {ratio:5.2f} × the time, {cpu:5.2f} × the CPU of manta "
            f"(wanted ≥ {WANTED[kind]:.2f}); {same}"
        )


def large(folder: Path) -> None:
    """Three views in bounded memory, one process; its peak beyond what it holds when idle."""
    write(folder, LARGE, 3, PER_KEY[0])
    peer = Peer("manta", folder, 3, {"spill": str(folder / "spill")})
    told = peer.ask()
    peer.close()
    answer = told["rows"] * (3 * FEATURES + 3) * 8
    print(
        f"{told['rows']:,} entity rows × 3 views of {LARGE:,}: {told['seconds']:.1f} s, {told['cpu']:.1f} s "
        f"of CPU; peak {told['peak'] / 2**20:.2f} GiB, of which the entity rows and Feast took "
        f"{told['idle'] / 2**20:.2f} before, and the answer itself is {answer / 2**30:.2f}"
    )


class Peer:
    """One side, in a process of its own."""

    def __init__(
        self, kind: str, folder: Path, views: int, options: dict[str, Any], python: str = sys.executable
    ) -> None:
        command = [python, "-c", textwrap.dedent(PEER), kind, str(folder), str(views), str(FEATURES)]
        self._log = (folder / f"{kind}.log").open("w")
        self._process = subprocess.Popen(
            [*command, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "FEAST_USAGE": "False"},
        )
        self._kind, self._folder = kind, folder
        while self._line() != "ready":
            pass

    def ask(self) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        while not (line := self._line()).startswith("{"):
            pass
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        self._log.close()

    def _line(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self._kind} ended: {(self._folder / f'{self._kind}.log').read_text()[-2000:]}"
            )
        return line.strip()


def write(folder: Path, rows: int, views: int, per_key: int) -> None:
    random = np.random.default_rng(1)
    users = max(1, rows // per_key)

    def times() -> Any:
        return np.datetime64("2024-01-01", "us") + random.integers(0, 30 * 86_400 * 10**6, rows)

    for view in range(views):
        values = {f"v{view}_{n}": random.random(rows) for n in range(FEATURES)}
        frame = pl.DataFrame({"user": random.integers(0, users, rows), "ts": times(), **values})
        frame.with_columns(pl.col("ts").dt.replace_time_zone("UTC")).write_parquet(
            folder / f"v{view}.parquet"
        )
    entity = {"row_id": np.arange(rows), "user": random.integers(0, users, rows), "event_timestamp": times()}
    frame = pl.DataFrame(entity).with_columns(pl.col("event_timestamp").dt.replace_time_zone("UTC"))
    frame.write_parquet(folder / "entity.parquet")


def duckdb_python(folder: Path) -> str | None:
    """A Python whose Feast has its duckdb store, in a virtual environment that goes with the folder."""
    try:
        import ibis  # noqa: F401
    except ImportError:
        python = folder / "venv/bin/python"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        asked = ["feast[duckdb]==0.67.0", "polars"]
        done = subprocess.run([python, "-m", "pip", "install", "-q", *asked], capture_output=True, text=True)
        if done.returncode:
            print(f"  duckdb: its packages cannot be installed: {done.stderr.strip()[-300:]}")
            return None
        return str(python)
    return sys.executable


def agree(mine: dict[str, Any], other: dict[str, Any]) -> bool:
    return (
        mine["rows"] == other["rows"]
        and mine["found"] == other["found"]
        and bool(np.allclose(mine["sums"], other["sums"]))
    )


def differ(mine: dict[str, Any], other: dict[str, Any]) -> str:
    return (
        f"ANOTHER ANSWER: {other['rows']:,} rows for {mine['rows']:,}, "
        f"{sum(other['found']):,} values for {sum(mine['found']):,}"
    )


def shown(told: list[dict[str, Any]]) -> str:
    return f"{min(t['seconds'] for t in told):7.2f} s {min(t['cpu'] for t in told):7.2f} s of CPU"
