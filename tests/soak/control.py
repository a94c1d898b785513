"""`python -m tests.soak.control`: kill the platform's parts under four submitters, and compare the books.

Three parts, each with a real server process, a real Ray head and a ledger of its own:

    server    the server is killed by SIGKILL, at random moments and exactly between the ledger's and Ray's
              writes (tests/soak/server.py); the ledger is SQLite
    postgres  the ledger is PostgreSQL, whose postmaster is killed
    ray       all of the Ray head's processes are killed, with and without the runs on it; SQLite

Four submit (some of their runs need another, which is submitted with them), one applies one version of a
project after the other, and one has runs stopped. Every submission that was answered must have exactly one
run that ended as its job must, executed once for each attempt, with its log complete after Ray is gone. Exit
status 1 when anything is lost, doubled or stuck.
The seed fixes what is submitted and which kills are made; the machine's speed decides what they meet.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from manta.ledger.store import Ledger
from manta.settings import Settings
from tests.conftest import free_ports
from tests.soak.load import Applier, Http, Stopper, Submitter, prepare, traced
from tests.soak.parts import Postgres, RayHead, Server
from tests.soak.server import POINTS
from tests.soak.verdict import Verdict, judge

PROJECT = Path(__file__).parent / "project"
AIMED = 0.5  # the share of the server's kills that are aimed at a point
AIM_SECONDS = 5.0  # a point that is not come to in this time: killed where it is
RARE_SECONDS = 60.0  # of a point that is come to less often than that
RARE = ("needed", "applied", "stopping")
SETTLE_SECONDS = 300.0
LAST_LOGS_SECONDS = 10.0
COLUMNS = (
    *("part", "kills", "seconds", "submitted", "answered", "runs", "attempts", "executions"),
    *("lost", "doubled", "stuck"),
)


class Stage:
    """One part's platform in a folder of its own: up when entered, gone when left."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        self.name = name
        self.chance = random.Random(f"{arguments.seed}-{name}")
        self.folder = Path(tempfile.mkdtemp(prefix=f"soak-{name}-", dir="/tmp"))
        self.postgres: Postgres | None = None
        self.phases: dict[str, float] = {}
        self.points: list[str] = arguments.points
        self._arguments = arguments

    @contextlib.contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.phases[phase] = time.monotonic() - began

    def __enter__(self) -> Stage:
        root = self.folder / "project"
        shutil.copytree(PROJECT, root, ignore=shutil.ignore_patterns("__pycache__"))
        self.trace = self.folder / "trace"
        self.trace.mkdir()
        url = ""
        if self.name == "postgres":
            self.postgres = Postgres(self.folder / "pg")
            url = self.postgres.url
        self.settings = Settings(
            project="soak", root=root, home=root / ".manta", ports=free_ports(), ledger_url=url, cpus=4
        )._resolved()
        self.ray = RayHead(self.settings)
        self.server = Server(self.settings)
        self.ray.start()
        self.server.start()
        self.http = Http(self.settings)
        project = traced(prepare(self.settings), self.trace)
        of = (self._arguments.seed, self.settings, project, self.trace)
        several = self._arguments.submitters
        self.stopper, self.applier = Stopper(several, *of), Applier(several + 1, *of)
        self.submitters = [
            *(Submitter(number, *of) for number in range(several)),
            *(self.stopper, self.applier),
        ]
        for submitter in self.submitters:
            submitter.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        self.server.stop()
        self.ray.stop()
        if self.postgres:
            self.postgres.stop()
        if kind is None and not self._arguments.keep:
            shutil.rmtree(self.folder, ignore_errors=True)

    def judged(self, attempts_may_be_lost: bool) -> Verdict:
        """End the submitters, wait until every run has ended, take Ray away, and compare the books."""
        for submitter in self.submitters:
            submitter.end()
        for submitter in self.submitters:
            submitter.join(SETTLE_SECONDS)
        ledger = Ledger(self.settings.ledger_url)
        deadline = time.monotonic() + SETTLE_SECONDS
        while ledger.active() and time.monotonic() < deadline:
            time.sleep(0.5)
        time.sleep(LAST_LOGS_SECONDS)  # for the controller to keep the last logs; then they must be kept
        self.ray.stop()
        sent = [each for submitter in self.submitters for each in submitter.sent]
        verdict = judge(ledger, self.http, sent, self.applier.asked, self.trace, attempts_may_be_lost)
        for submitter in self.submitters:
            for trouble in submitter.trouble:
                verdict.find("submitter", trouble)
        ledger.close()
        return verdict


def kill_server(stage: Stage, kills: int) -> Counter[str]:
    met: Counter[str] = Counter()
    points = stage.points or list(POINTS)
    aimed = 1.0 if stage.points else AIMED
    stage.server.kill()
    for number in range(kills):
        if stage.chance.random() < aimed:
            point = stage.chance.choice(points)
            stage.server.start(f"{point}:{stage.chance.randint(1, POINTS[point])}")
            if point == "stopping":
                stage.stopper.stop_one()
            seconds = RARE_SECONDS if point in RARE else AIM_SECONDS
            met[point if stage.server.wait(seconds) else "anywhere"] += 1
        else:
            stage.server.start()
            stage.server.wait(stage.chance.uniform(0.0, 3.0))
            met["anywhere"] += 1
        stage.server.kill()
        _tell(stage, number + 1, kills)
    stage.server.start()
    return met


def kill_postgres(stage: Stage, kills: int) -> Counter[str]:
    assert stage.postgres is not None
    for number in range(kills):
        time.sleep(stage.chance.uniform(1.0, 6.0))
        stage.postgres.kill()
        time.sleep(stage.chance.uniform(0.0, 3.0))
        stage.postgres.start()
        _tell(stage, number + 1, kills)
    return Counter({"postmaster": kills})


def kill_ray(stage: Stage, kills: int) -> Counter[str]:
    for number in range(kills):
        time.sleep(stage.chance.uniform(4.0, 12.0))
        stage.ray.kill(stage.chance)
        time.sleep(stage.chance.uniform(0.0, 3.0))
        stage.ray.start()
        _tell(stage, number + 1, kills)
    return Counter({"head": kills})


PARTS: dict[str, tuple[Callable[[Stage, int], Counter[str]], bool]] = {
    "server": (kill_server, False),
    "postgres": (kill_postgres, True),
    "ray": (kill_ray, True),
}


def _tell(stage: Stage, done: int, kills: int) -> None:
    if sys.stderr.isatty() or done % 10 == 0 or done == kills:
        sent = sum(len(submitter.sent) for submitter in stage.submitters)
        print(f"{stage.name}: {done}/{kills} kills, {sent} submitted", file=sys.stderr, flush=True)


def soak(name: str, kills: int, arguments: argparse.Namespace) -> dict[str, Any]:
    act, attempts_may_be_lost = PARTS[name]
    began = time.monotonic()
    with Stage(name, arguments) as stage:
        with stage.timed("killing"):
            met = act(stage, kills)
        with stage.timed("settling"):
            verdict = stage.judged(attempts_may_be_lost)
        if not verdict.clean:
            arguments.keep = True
            print(f"{name}: all is left in {stage.folder}", file=sys.stderr)
    seconds = round(time.monotonic() - began)
    print(
        f"{name}: {' '.join(f'{phase} {took:.0f} s' for phase, took in stage.phases.items())}",
        file=sys.stderr,
    )
    return {"part": name, "kills": kills, "met": dict(met), "seconds": seconds, **asdict(verdict)}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.control", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--kills", type=int, default=200, help="of the server")
    parser.add_argument(
        "--points", nargs="+", choices=list(POINTS), default=[], help="aim each kill of the server at these"
    )
    parser.add_argument("--postgres-kills", type=int, default=20)
    parser.add_argument("--ray-kills", type=int, default=10)
    parser.add_argument("--submitters", type=int, default=4)
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument("--keep", action="store_true", help="keep the folders, also when all is well")
    arguments = parser.parse_args()
    kills = {"server": arguments.kills, "postgres": arguments.postgres_kills, "ray": arguments.ray_kills}
    results = [soak(name, kills[name], arguments) for name in arguments.parts]
    print("  ".join(f"{column:>10}" for column in COLUMNS))
    for result in results:
        print("  ".join(f"{result[column]:>10}" for column in COLUMNS))
    for result in results:
        for finding in result["findings"][:50]:
            print(f"{result['part']}: {finding}")
    summary = json.dumps({"seed": arguments.seed, "results": results})
    print(summary)
    if arguments.json:
        arguments.json.write_text(summary)
    return 1 if any(result["findings"] for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
