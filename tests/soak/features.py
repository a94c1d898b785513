"""Materialization under kills: `python -m tests.soak.features --seed 1 --kills 100`.

On each kind of online store a dataset grows, round by round: some keys get a newer value, some come late,
behind the watermark. In turn manta's materialization and Feast's own `materialize_incremental` (on
ArrowComputeEngine) put it online, in a process that is killed (SIGKILL) at random moments; or Redis or
PostgreSQL is killed meanwhile. A reader asks for all keys all the time. Then the run is made again.

Checked: after the rerun every key has its newest value; after each kill nothing that Feast's watermark covers
is missing; the reader never sees an error while the store is up, nor a value older than one it has seen.

The lane `stream` (tests/soak/stream.py) does the same to a stream.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import itertools
import json
import multiprocessing
import os
import random
import sys
import threading
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl

from manta.data.lake import Lake
from manta.errors import FeaturesUnavailable
from manta.features.compiled import service_of
from manta.features.materialize import materialize
from manta.features.online import OnlineReader
from manta.features.repo import open_store
from manta.settings import Settings
from tests.benchmarks._features import AT, STORES, Repository, repository

FEATURES = 3
ENGINE = "manta.features.engine.ArrowComputeEngine"
RUN_SECONDS = 300.0
LANES = {"materialization": "tests.soak.features:Lane", "stream": "tests.soak.stream:Stream"}
SERVER_SHARE = 0.3  # of the kills, where there is a server
spawned = multiprocessing.get_context("forkserver")
spawned.set_forkserver_preload(
    [
        "manta.features.engine",
        "manta.features.stream",
        "manta.testing.connectors",
        "tests.benchmarks._features",
    ]
)


def run(root: str, settings: dict[str, Any], manifest: dict[str, Any], version: int, until: int) -> None:
    """One materialization, in a process of its own: Feast's verb in odd rounds, manta's in even ones."""
    os.chdir(root)
    sys.path.insert(0, root)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        known, end = Settings(**settings), AT + timedelta(hours=until)
        if until == 0:  # later intervals follow this one
            open_store(Path(root), known).materialize(AT - timedelta(days=1), end, ["stats"])
        elif until % 2:
            open_store(Path(root), known).materialize_incremental(end, ["stats"])
        else:
            materialize(service_of(manifest, "wide"), known.datasets, {"stats": version}, end)


class Lane:
    """One kind of online store. ``newest``: user → the round of the newest row."""

    def __init__(self, kind: str, seed: int, keys: int) -> None:
        self.kind = kind
        self.met: Counter[str] = Counter()
        self.reads = 0
        self.findings: list[str] = []
        self._chance = random.Random(f"{seed}-{kind}")
        self._keys = keys
        self._rows: list[tuple[int, int]] = []  # (user, round)
        self._newest: dict[int, int] = {}
        self._down = threading.Event()
        self._over = threading.Event()
        self._seconds = 1.0  # how long a run takes

    def soak(self, kills: int, until: float) -> None:
        self._grow(0, range(self._keys))
        with repository(self.kind, self._frame(), FEATURES, engine=ENGINE, append="yes") as repo:
            self._rounds(repo, kills, until)

    def _first(self, repo: Repository) -> None:
        self._again(repo, repo.version, 0)

    def _rounds(self, repo: Repository, kills: int, until: float) -> None:
        """After a first run, rounds while a reader looks; an error is a finding, and ends them."""
        reader = threading.Thread(target=self._read, args=(repo,), daemon=True)
        number = 0
        try:
            self._first(repo)
            self._check(repo, "the first run")
            reader.start()
            while self.met.total() < kills and time.monotonic() < until:
                number += 1
                self._round(repo, number)
        except Exception as error:
            self.findings.append(f"round {number}: {type(error).__name__}: {error}")
        finally:
            self._over.set()
            if reader.is_alive():
                reader.join()

    def _round(self, repo: Repository, number: int) -> None:
        some = self._chance.sample(range(self._keys), self._keys // 2)
        self._grow(number, some)
        if number > 2:
            late = range(self._keys * number, self._keys * number + 5)
            self._grow(number - 2, late)
        version = Lake(repo.settings.datasets).replace("stats", self._frame(), run_key=f"round-{number}")
        process = self._start(repo, version, number)
        time.sleep(self._chance.uniform(0, 1.2) * self._seconds)
        if repo.server is not None and self._chance.random() < SERVER_SHARE:
            self._down.set()
            repo.server.kill()
            process.join(RUN_SECONDS)
            self.met["store, after the run" if process.exitcode == 0 else "store"] += 1
            repo.server.start()
            self._down.clear()
        else:
            lived = process.is_alive()
            process.kill()
            process.join(RUN_SECONDS)
            self.met["run" if lived else "run, after its end"] += 1
        self._check_watermark(repo, number)
        self._again(repo, version, number)
        self._check(repo, f"round {number}")

    def _start(self, repo: Repository, version: int, number: int) -> Any:
        settings = repo.settings.model_dump(mode="json")
        given = (str(repo.root), settings, repo.manifest, version, number)
        process = spawned.Process(target=run, args=given, daemon=True)
        process.start()
        return process

    def _again(self, repo: Repository, version: int, number: int) -> None:
        began = time.monotonic()
        process = self._start(repo, version, number)
        process.join(RUN_SECONDS)
        if process.exitcode != 0:
            raise RuntimeError(f"the rerun ended with {process.exitcode}")
        self._seconds = time.monotonic() - began

    # --- the data -------------------------------------------------------------------------------------

    def _grow(self, number: int, users: Any) -> None:
        for user in users:
            self._rows.append((user, number))
            self._newest[user] = max(number, self._newest.get(user, -1))

    def _frame(self) -> pl.DataFrame:
        users, rounds = zip(*self._rows, strict=True)
        hours = pl.Series(rounds) * timedelta(hours=1)
        values = {f"f{n}": [float(each) for each in rounds] for n in range(FEATURES)}
        return pl.DataFrame({"user": users, **values}).with_columns(at=pl.lit(AT) + hours)

    # --- what is checked ------------------------------------------------------------------------------

    def _online(self, reader: OnlineReader, users: list[int]) -> list[tuple[float | None, ...]]:
        looked = reader.read({"user": users}, [AT] * len(users))
        return list(zip(*(looked.values[f"f{n}"] for n in range(FEATURES)), strict=True))

    def _check(self, repo: Repository, when: str) -> None:
        users = list(self._newest)
        found = self._online(OnlineReader(repo.manifest, "wide"), users)
        wrong = [
            user for user, row in zip(users, found, strict=True) if {*row} != {float(self._newest[user])}
        ]
        if wrong:
            self.findings.append(f"{when}: {len(wrong)} skewed keys, {wrong[:5]}")

    def _check_watermark(self, repo: Repository, number: int) -> None:
        intervals = repo.store.registry.get_feature_view("stats", "bench").materialization_intervals
        if not intervals:
            return
        mark = max(end for _, end in intervals)
        covered = (mark - AT) // timedelta(hours=1)
        if covered < number:
            return  # rows that have come since then lie before it, and the next run is there for them
        users = list(self._newest)
        found = self._online(OnlineReader(repo.manifest, "wide"), users)
        behind = [u for u, row in zip(users, found, strict=True) if None in row or min(row) < self._newest[u]]
        if behind:
            self.findings.append(f"round {number}: the watermark is {mark}, ahead of {len(behind)} keys")

    def _read(self, repo: Repository) -> None:
        users = list(range(self._keys))
        reader = OnlineReader(repo.manifest, "wide")
        seen = [0.0] * len(users)
        while not self._over.is_set():
            down = self._down.is_set()
            try:
                found = self._online(reader, users)
            except FeaturesUnavailable as error:
                if not (down or self._down.is_set()):
                    self.findings.append(f"reader: {error}")
                time.sleep(0.01)
                continue
            self.reads += 1
            time.sleep(0.005)  # the rounds are made in this process too
            for user, row in enumerate(found):
                value = row[0]
                if value is None or len({*row}) != 1 or value < seen[user]:
                    self.findings.append(f"reader: user {user} has {row} after {seen[user]}")
                    return
                seen[user] = value


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak.features", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kills", type=int, default=100, help="for each store")
    parser.add_argument("--keys", type=int, default=5000)
    parser.add_argument("--minutes", type=float, default=600, help="begin no further round after that")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=list(LANES))
    parser.add_argument("--json", type=Path, help="also write the result there")
    arguments = parser.parse_args()
    began = time.monotonic()
    results = []
    for name, kind in itertools.product(arguments.lanes, arguments.stores):
        module, _, cls = LANES[name].partition(":")
        lane = getattr(importlib.import_module(module), cls)(kind, arguments.seed, arguments.keys)
        lane.soak(arguments.kills, began + 60 * arguments.minutes)
        told = {"kills": dict(lane.met), "reads": lane.reads, "findings": lane.findings}
        results.append({"lane": name, "store": kind} | told)
        print(results[-1], flush=True)
    summary = json.dumps(
        {"seed": arguments.seed, "seconds": round(time.monotonic() - began), "results": results}
    )
    print(summary)
    if arguments.json:
        arguments.json.write_text(summary)
    return 1 if any(result["findings"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
