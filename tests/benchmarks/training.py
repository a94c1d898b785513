"""A torch loop under manta beside the same loop run bare; and how long until its first step.

Rows per second in the steady state (the first epoch apart), one worker, one thread: under manta with the
worker's share held in memory, as the reference project does it, and with batches streamed from Ray's object
store; by manta's own loop, which also clips gradients, in memory and streamed; bare, torch alone with all
rows in memory. In turn, each in a process of its own, on the same rows.

To the first step: `manta run` of a training in a project of its own, with everything that it does before
(the run's process, the examples, their features as of their time), beside a script that connects to the same
cluster and starts Ray Train's `TorchTrainer` with the same workers on rows that it has in memory.

What bounds it: in memory nothing of manta or Ray runs while the loop does; streamed, a thread of the worker
cuts batches out of Arrow blocks and turns them into tensors, beside the loop on another core. To the first
step: starting processes (the run's, Ray Train's controller, its workers: two seconds of imports each).

MANTA_BENCH_ROWS is how many rows (400000), MANTA_BENCH_ROUNDS how often (3).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from manta.control import parts
from manta.settings import Settings
from manta.training.trainers import Job, torch
from tests.integration.platform.conftest import BIN, environment
from tests.soak.parts import REPOSITORY

ROWS = int(os.environ.get("MANTA_BENCH_ROWS", "400000"))
ROUNDS = int(os.environ.get("MANTA_BENCH_ROUNDS", "3"))
SHAPE: dict[str, Any] = {"categories": [16, 120, 400, 12], "numbers": 40}
EPOCHS, BATCH = 4, 1024
WANTED = 0.95
KINDS = ("memory", "streamed", "own", "own-streamed")
LATER = 5.0  # seconds

PROJECT = {
    "features/feature_store.yaml": """
project: ${MANTA_PROJECT}
provider: local
registry: {registry_type: sql, path: "sqlite:///${MANTA_HOME}/feast/registry.db",
  serve_features_while_materializing: true}
materialization: {pull_latest_features: true}
offline_store: {type: manta.features.offline.AsofOfflineStore, lake: "${MANTA_LAKE}"}
online_store: {type: sqlite, path: "${MANTA_HOME}/online.db"}
batch_engine: local
entity_key_serialization_version: 3
""",
    "features/views.py": """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float64, Int64
from manta.features import DatasetSource

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[user], ttl=timedelta(days=400),
    schema=[Field(name="user", dtype=Int64)] + [Field(name=f"f{n}", dtype=Float64) for n in range(20)],
    source=DatasetSource(name="stats", dataset="stats", timestamp_field="at"),
)
wide = FeatureService(name="wide", features=[stats])
""",
    "jobs/first.py": """
from datetime import datetime
from manta import Column, Contract, Examples, Files, Ingest, TimeSplit, Torch, Training
from tests.benchmarks._training_loop import Net, marked

user, at = Column(type="int64"), Column(type="timestamp")
stats = Ingest(dataset="stats", source=Files(path="data/stats.parquet", format="parquet"), contract=Contract(
    columns={"user": user, "at": at, **{f"f{n}": Column(type="float64") for n in range(20)}}))
asked = Ingest(dataset="asked", source=Files(path="data/asked.parquet", format="parquet"), contract=Contract(
    columns={"user": user, "at": at, "label": Column(type="bool")}))
first = Training(
    model="first", fn=marked, module=Net, trainer=Torch(workers=2), features="wide",
    examples=Examples(dataset="asked", label="label", time="at"),
    split=TimeSplit(test_from=datetime(2026, 3, 1)), params={"mark": "/dev/null"},
)
""",
}

BARE = """
import sys, numpy as np, pyarrow as pa, ray, ray.data
from ray.data.extensions import ArrowTensorArray
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from tests.benchmarks._training_loop import marked

ray.init(log_to_driver=False)
chance = np.random.default_rng(1)
table = pa.table({
    "categories": ArrowTensorArray.from_numpy(np.zeros((20_000, 0), np.int64)),
    "numbers": ArrowTensorArray.from_numpy(chance.normal(size=(20_000, 40)).astype(np.float32)),
    "label": pa.array(chance.random(20_000).astype(np.float32)),
})
config = {"shape": {"categories": [], "numbers": 40}, "params": {"mark": sys.argv[1]}}
TorchTrainer(
    marked, train_loop_config=config, datasets={"train": ray.data.from_arrow(table)},
    scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(name="bare", storage_path=sys.argv[2]),
).fit()
"""


def main() -> None:
    throughput()
    first_step()


def throughput() -> None:
    told: dict[str, list[float]] = {kind: [] for kind in (*KINDS, "bare")}
    for number in range(ROUNDS):
        order = list(told) if number % 2 else list(told)[::-1]
        for kind in order:
            told[kind].append(_alone(kind))
    for kind in KINDS:
        ratio = median(mine / other for mine, other in zip(told[kind], told["bare"], strict=True))
        print(
            f"{kind:12} {max(told[kind]):10,.0f} rows/s beside bare torch's {max(told['bare']):10,.0f}: "
            f"{ratio:.2f} x; {WANTED} x is wanted",
            flush=True,
        )


def _alone(kind: str) -> float:
    asked = [sys.executable, "-m", "tests.benchmarks.training", "--alone", kind]
    done = subprocess.run(asked, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return float(done.stdout.splitlines()[-1])


def alone(kind: str) -> float:
    """Rows per second of one side."""
    from tests.benchmarks import _training_loop

    chance = np.random.default_rng(1)
    sizes = SHAPE["categories"]
    categories = np.stack([chance.integers(0, size, ROWS) for size in sizes], axis=1)
    numbers = chance.normal(size=(ROWS, SHAPE["numbers"])).astype(np.float32)
    labels = (numbers[:, 0] > 0).astype(np.float32)
    params = {"shape": SHAPE, "batch": BATCH, "epochs": EPOCHS, "feed": kind}
    if kind == "bare":
        return _training_loop.bare(categories, numbers, labels, params)
    return _under_manta(categories, numbers, labels, params)


def _under_manta(
    categories: np.ndarray, numbers: np.ndarray, labels: np.ndarray, params: dict[str, Any]
) -> float:
    import ray

    from manta.definitions import Torch
    from manta.training.encoder import Arrays
    from manta.training.trainers import Part, trainer
    from tests.benchmarks._training_job import job_of

    part = Part(Arrays(categories, numbers), labels)
    folder = Path(tempfile.mkdtemp(prefix="bt"))
    own = params["feed"].startswith("own")
    path = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), *sys.path]))}}
    ray.init(address="local", num_cpus=2, log_to_driver=False, include_dashboard=False, runtime_env=path)
    try:
        job = job_of(
            Torch(workers=1, use_gpu=False),
            "bench",
            folder,
            part,
            Part(part.arrays.take(np.arange(100)), labels[:100]),
            {"epochs": EPOCHS, "batch": BATCH} if own else params,
            fn=None if own else "tests.benchmarks._training_loop:train",
            module=f"tests.benchmarks._training_loop:{'Timed' if own else 'Net'}",
            sizes=SHAPE["categories"],
        )
        if own:
            if params["feed"] == "own-streamed":
                torch.IN_MEMORY_BYTES = 0
            return _by_own_loop(job, folder / "times")
        return float(trainer("torch").fit(job).reports[-1]["rows_per_second"])
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _by_own_loop(job: Job, times: Path) -> float:
    """Rows per second, of all epochs but the first, from an epoch's first step to its last."""
    steps = -(-ROWS // BATCH)
    torch.fit(replace(job, shape=job.shape | {"times": str(times), "steps": steps}))
    spans = [[float(at) for at in line.split()] for line in times.read_text().splitlines()][1:]
    return ROWS / steps * (steps - 1) * len(spans) / sum(last - first for first, last in spans)


def first_step() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bf", dir="/tmp"))
    env = environment() | {"PYTHONPATH": str(REPOSITORY), "MANTA_PROJECT": "bench"}
    _project(folder)

    def manta(*words: str) -> None:
        asked = [str(BIN / "manta"), *words]
        done = subprocess.run(asked, cwd=folder, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stdout[-2000:]}{done.stderr[-2000:]}")

    def since(mark: Path, began: float) -> float:
        return float(mark.read_text()) - began

    script = [sys.executable, "-c", BARE]
    head = parts.ray(Settings(project="bench", root=folder)._resolved()).env
    bare_env = {**env, **head, "RAY_ADDRESS": f"127.0.0.1:{env['MANTA_PORTS__RAY']}"}
    try:
        manta("up")
        manta("apply")
        ours, bare = [], []
        for number in range(ROUNDS + 1):  # the first of each fills caches
            mark, began = folder / f"mark-{number}", time.time()
            manta("run", "first", "--wait", "--param", f"mark={mark}")
            ours.append(since(mark, began))
            mark, began = folder / f"bare-{number}", time.time()
            asked = [*script, str(mark), str(folder / "bare" / str(number))]
            subprocess.run(asked, cwd=folder, env=bare_env, check=True, capture_output=True)
            bare.append(since(mark, began))
    finally:
        subprocess.run([str(BIN / "manta"), "down"], cwd=folder, env=env, check=False, capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)
    later = median(mine - other for mine, other in zip(ours[1:], bare[1:], strict=True))
    print(
        f"to the first step: {median(ours[1:]):.1f} s after `manta run`, {median(bare[1:]):.1f} s with "
        f"bare Ray Train: {later:+.1f} s; at most {LATER:+.0f} is wanted",
        flush=True,
    )


def _project(folder: Path) -> None:
    for name, text in PROJECT.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    chance, users = np.random.default_rng(1), np.arange(20_000)
    at = np.datetime64("2026-01-01", "us") + chance.integers(0, 80 * 86_400 * 10**6, 20_000)
    stats = pl.DataFrame({"user": users, **{f"f{n}": chance.normal(size=20_000) for n in range(20)}})
    asked = pl.DataFrame({"user": users, "at": at, "label": chance.random(20_000) > 0.5})
    utc = pl.col("at").dt.replace_time_zone("UTC")
    (folder / "data").mkdir()
    asked.with_columns(utc).write_parquet(folder / "data" / "asked.parquet")
    stats = stats.with_columns(at=pl.lit(np.datetime64("2025-12-31", "us")))
    stats.with_columns(utc).write_parquet(folder / "data" / "stats.parquet")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--alone"]:
        print(alone(sys.argv[2]))
    else:
        main()
