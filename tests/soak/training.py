"""Trainings under kills: `python -m tests.soak.training --seed 1 --kills 50`; `--drain` for a node that is
taken back (tests/soak/drained.py).

A training of two Ray Train workers reports a checkpoint after each epoch. In turn one of its workers, Ray
Train's controller, the run's own process (then the next attempt begins, as the platform's controller would
have it) or the whole Ray head is killed by SIGKILL, at random moments, up to four times in a training.

Checked: each disturbed training ends with the very loss of the undisturbed one of its seed (so the final
losses lie within the spread of the undisturbed seeds); between two attempts no more steps are lost than one
checkpoint's interval; no checkpoint that a training goes on from is torn. The seed fixes which kills are
made; the machine's speed decides what they meet. Exit status 1 when something was found.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from manta.control import parts
from manta.errors import PortInUse
from manta.settings import Settings
from tests.conftest import free_ports
from tests.soak import drained
from tests.soak.parts import REPOSITORY, RayHead

SEEDS = range(5)  # undisturbed
EPOCHS, ROWS, BATCH, PAUSE = 8, 16_000, 400, 0.02
VICTIMS = {"worker": 5, "controller": 2, "driver": 3, "head": 1}
TITLES = {"worker": "RayTrainWorker", "controller": "TrainController"}
KILLS_A_TRAINING = 4
AMONG_STEPS = 0.75  # of the kills: the rest meet processes that start or end
ATTEMPT_SECONDS = 300.0


class Soak:
    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.met: Counter[str] = Counter()
        self.findings: list[str] = []
        self.lost: list[int] = []
        self.attempts = 0
        self._chance = random.Random(seed)
        settings = Settings(project="soak", root=folder, home=folder / ".manta", ports=free_ports())
        self._settings = settings._resolved()
        self._head = RayHead(self._settings)
        self._seconds = self._working = 0.0  # an undisturbed training takes, and its steps

    def run(self, kills: int) -> dict[int, float]:
        """Gives the undisturbed losses."""
        self._head.start()
        try:
            losses = {seed: self._undisturbed(seed) for seed in SEEDS}
            number = 0
            while self.met.total() < kills:
                number += 1
                self._disturbed(number, losses)
                print(f"{self.met.total()}/{kills} {dict(self.met)}", file=sys.stderr, flush=True)
            return losses
        finally:
            self._head.stop()

    def _undisturbed(self, seed: int) -> float:
        began = time.monotonic()
        process = self._begin(f"calm-{seed}", seed)
        process.wait(ATTEMPT_SECONDS)
        self._seconds = time.monotonic() - began
        times = [float(line.split()[2]) for line in self._steps(f"calm-{seed}").read_text().splitlines()]
        self._working = times[-1] - times[0]
        return self._loss(f"calm-{seed}")

    def _disturbed(self, number: int, losses: dict[int, float]) -> None:
        key, seed = f"soak-{number}", self._chance.choice(list(SEEDS))
        process = self._begin(key, seed)
        for _ in range(self._chance.randint(1, KILLS_A_TRAINING)):
            victim = self._chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            if self._ended(process, key):
                break
            if not self._kill(victim, process):
                continue
            self.met[victim] += 1
            if victim in ("driver", "head"):
                process.wait()
                process = self._begin(key, seed)
        try:
            process.wait(ATTEMPT_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            self.findings.append(f"{key}: no end after {ATTEMPT_SECONDS:.0f} s")
            return
        if process.returncode:
            said = (self.folder / f"{key}.log").read_text()[-1500:]
            self.findings.append(f"{key}: ended with {process.returncode}: {said}")
            return
        found = self._loss(key)
        if found != losses[seed]:
            self.findings.append(f"{key}: the loss is {found}, undisturbed {losses[seed]} (seed {seed})")
        self._count_steps(key)

    def _ended(self, process: subprocess.Popen[bytes], key: str) -> bool:
        """Returns at a random moment: mostly while steps are made, else from now on; or when it has ended."""
        pause, steps = self._chance.uniform(0, self._seconds), self._steps(key)
        if self._chance.random() < AMONG_STEPS:
            pause, before = self._chance.uniform(0, self._working), _size(steps)
            until = time.monotonic() + ATTEMPT_SECONDS
            while _size(steps) == before and process.poll() is None and time.monotonic() < until:
                time.sleep(0.05)
        try:
            process.wait(pause)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill(self, victim: str, driver: subprocess.Popen[bytes]) -> bool:
        """Whether there was one."""
        if victim == "driver":
            driver.kill()
            return True
        if victim == "head":
            self._head.kill(self._chance)
            driver.kill()
            driver.wait()
            self._start_again()
            return True
        try:
            found = [each for each in self._head.processes() if TITLES[victim] in " ".join(each.cmdline())]
            if found:
                self._chance.choice(found).kill()
        except psutil.NoSuchProcess:
            return False
        return bool(found)

    def _start_again(self) -> None:
        """What was killed may hold a port for a moment."""
        until = time.monotonic() + ATTEMPT_SECONDS
        while True:
            try:
                return self._head.start()
            except PortInUse:
                if time.monotonic() > until:
                    raise
                time.sleep(0.5)

    # --- the training -----------------------------------------------------------------------------------

    def _begin(self, key: str, seed: int) -> subprocess.Popen[bytes]:
        self.attempts += 1
        told = {"home": str(self._settings.home), "key": key, "seed": seed, "steps": str(self._steps(key))}
        asked = [sys.executable, "-m", "tests.soak.training", "--drive", json.dumps(told)]
        env = os.environ | parts.ray(self._settings).env
        env |= {"RAY_ADDRESS": f"127.0.0.1:{self._settings.ports.ray}"}
        with (self.folder / f"{key}.log").open("ab") as log:
            return subprocess.Popen(asked, cwd=REPOSITORY, stdout=log, stderr=log, env=env)

    def _steps(self, key: str) -> Path:
        return self.folder / f"{key}.steps"

    def _loss(self, key: str) -> float:
        told = json.loads((self.folder / f"{key}.json").read_text())
        epochs = [each["epoch"] for each in told["reports"]]
        if epochs[-1] != EPOCHS or set(epochs) != set(range(1, EPOCHS + 1)):
            self.findings.append(f"{key}: the epochs reported are {epochs}")
        return float(told["reports"][-1]["validation_loss"])

    def _count_steps(self, key: str) -> None:
        """What each worker of rank 0 did again of what the one before it had done."""
        each = -(-(ROWS // 2) // BATCH)
        lines = (line.split() for line in self._steps(key).read_text().splitlines())
        spans = [
            [int(step) for _, step, _ in of] for _, of in groupby(lines, key=lambda line: line[0])
        ]  # of one process after the other
        for before, after in pairwise(spans):
            lost = before[-1] - after[0] + 1
            self.lost.append(lost)
            if lost > each:
                self.findings.append(
                    f"{key}: {lost} steps were done again, {each} is a checkpoint's interval"
                )
            if lost < 0:
                self.findings.append(f"{key}: {-lost} steps were left out")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def drive(told: dict[str, Any]) -> None:
    """One attempt, in a process of its own."""
    import ray

    from manta.definitions import Torch
    from manta.training.trainers import Part, trainer
    from tests.benchmarks._training_job import job_of, numbers_only

    ray.init(log_to_driver=False)
    chance = np.random.default_rng(5)
    numbers = chance.normal(size=(ROWS, 20)).astype(np.float32)
    truth = numbers @ chance.normal(size=20) + np.sin(3 * numbers[:, 0]) + chance.normal(size=ROWS)
    part = numbers_only(numbers, (truth > 0).astype(np.float32))
    params = {"epochs": EPOCHS, "seed": told["seed"], "batch": BATCH, "pause": PAUSE, "steps": told["steps"]}
    job = job_of(
        Torch(workers=2, use_gpu=False),
        told["key"],
        Path(told["home"]) / "training",
        part,
        Part(part.arrays.take(np.arange(2000)), part.labels[:2000]),
        params,
        fn="tests.soak.training_loop:train",
        module="tests.soak.training_loop:Net",
        seed=told["seed"],
    )
    model = trainer("torch").fit(job)
    result = Path(told["steps"]).with_suffix(".json")
    result.write_text(json.dumps({"reports": model.reports}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(10_000))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--drain", action="store_true", help="take a node back, once, instead of the kills")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.drive:
        drive(json.loads(asked.drive))
        return 0
    if asked.drain:
        findings = drained.run()
        print(json.dumps({"drained": 1, "findings": findings}))
        return 1 if findings else 0
    folder = Path(tempfile.mkdtemp(prefix="st", dir=os.environ.get("MANTA_SOAK_FOLDER", "/tmp")))
    began, soak = time.monotonic(), Soak(folder, asked.seed)
    losses = soak.run(asked.kills)
    told = {
        "seed": asked.seed,
        "seconds": round(time.monotonic() - began),
        "kills": dict(soak.met),
        "attempts": soak.attempts,
        "undisturbed": {seed: round(loss, 6) for seed, loss in losses.items()},
        "steps lost": {"most": max(soak.lost, default=0), "times": len(soak.lost)},
        "findings": soak.findings,
    }
    print(json.dumps(told))
    if not soak.findings:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"what is left is in {folder}", file=sys.stderr)
    return 1 if soak.findings else 0


if __name__ == "__main__":
    sys.exit(main())
