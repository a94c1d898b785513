"""XGBoost on two workers of manta beside native XGBoost with two threads: the same rows and the same cores.

`python -m tests.benchmarks training_trees`; MANTA_BENCH_ROWS, MANTA_BENCH_ROUNDS for less. Ours is all that
`fit` does (the rows into the object store, the task, the trees, reports of every round, a checkpoint every
25, the model in the run's folder); theirs is a process that holds the same matrix, makes a DMatrix of it
and calls `xgboost.train` with the same evaluation. Processes are warm on both sides. In one run, in turn.

Two workers on one machine are one process with two threads; *apart* they are kept in a process each, as on
two machines.

What bounds it: the start of a task, and the rows that are copied once into the object store. Apart, XGBoost
itself: two processes of a thread each, without Ray, take 1.25 to 1.35 times as long as one of two threads,
for both look for the splits of every node, and at each level of each tree both wait for the sums of
histograms (of 30 columns × 256 bins × 2 doubles, 120 KB a node, some 30 MB a tree of depth 8).
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from manta.training.trainers import _group

TOGETHER = _group.together
ROWS = int(os.environ.get("MANTA_BENCH_ROWS", "1000000"))
ROUNDS = int(os.environ.get("MANTA_BENCH_ROUNDS", "100"))
COLUMNS, HELD, PAIRS, THREADS = 30, 50_000, 3, 2
WANTED = 0.9
PARAMS: dict[str, Any] = {"max_depth": 8, "learning_rate": 0.1}


def made(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of normal numbers, and labels that eight of them tell, not all of the time."""
    random = np.random.default_rng(seed)
    rows = random.standard_normal((count, COLUMNS), dtype=np.float32)
    told = (
        rows[:, 0] * rows[:, 1] + np.sin(2 * rows[:, 2]) + (rows[:, 3] > rows[:, 4]) + rows[:, 5:8].sum(1) / 2
    )
    return rows, (told + random.standard_normal(count) > 0.5).astype(np.float32)


def native(asked: Any) -> None:
    """In a process of its own: trains each time it is told to, and answers seconds and the last loss."""
    import xgboost

    rows, held = made(ROWS, 1), made(HELD, 2)
    params = PARAMS | {"objective": "binary:logistic", "tree_method": "hist", "nthread": THREADS}
    while asked.recv():
        began = time.perf_counter()
        parts = [xgboost.DMatrix(each[0], each[1], nthread=THREADS) for each in (rows, held)]
        log: dict[str, Any] = {}
        xgboost.train(
            params,
            parts[0],
            ROUNDS,
            evals=[(parts[0], "train"), (parts[1], "validation")],
            evals_result=log,
            verbose_eval=False,
        )
        asked.send((time.perf_counter() - began, log["validation"]["logloss"][-1]))


def ours(folder: Path) -> Callable[..., tuple[float, float]]:
    from manta.definitions import XGBoost
    from manta.training.trainers import trainer
    from tests.benchmarks._training_job import job_of, numbers_only

    train, validation = numbers_only(*made(ROWS, 1)), numbers_only(*made(HELD, 2))
    numbers = iter(range(1_000))

    def fit(*, apart: bool) -> tuple[float, float]:
        _group.together = (lambda machines: [[each] for each in range(len(machines))]) if apart else TOGETHER
        key, params = f"bench-{next(numbers)}", PARAMS | {"rounds": ROUNDS}
        job = job_of(XGBoost(workers=THREADS), key, folder, train, validation, params)
        began = time.perf_counter()
        model = trainer("xgboost").fit(job)
        return time.perf_counter() - began, float(model.reports[-1]["validation_logloss"])

    return fit


def main() -> None:
    import ray

    folder = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))
    # Ray starts its workers with nice 15; both sides are to be as polite, on a machine that others use too.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
    ray.init(
        address="local", num_cpus=THREADS, include_dashboard=False, log_to_driver=False, _temp_dir=str(folder)
    )
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=native, args=(there,), daemon=True)
    process.start()

    def theirs() -> tuple[float, float]:
        here.send(True)
        seconds, loss = here.recv()
        return seconds, loss

    try:
        fit = ours(folder / "training")
        sides = {
            "together": lambda: fit(apart=False),
            "apart": lambda: fit(apart=True),
            "native": theirs,
        }
        for side in sides.values():
            side()
        print(f"{ROWS:,} rows × {COLUMNS} columns, {ROUNDS} rounds of depth {PARAMS['max_depth']}")
        took: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(PAIRS):
            losses = {}
            for name in list(sides) if number % 2 else list(sides)[::-1]:
                seconds, losses[name] = sides[name]()
                took[name].append(seconds)
            told = ", ".join(f"{name} {took[name][-1]:.1f} s (loss {losses[name]:.5f})" for name in sides)
            print(told, flush=True)
        for name in ("together", "apart"):
            ratio = median(other / mine for mine, other in zip(took[name], took["native"], strict=True))
            print(f"2 workers {name}: {ratio:.2f} × native with 2 threads; wanted ≥ {WANTED}", flush=True)
    finally:
        here.send(False)
        process.join(10)
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
