"""`python -m tests.soak.data`: kill what works on ingests, and compare the datasets with what was put in.

Three lanes at once, each a source that grows (a folder of files, a PostgreSQL, a Kafka broker) and an ingest
that reads on: real server, real Ray head, one ledger. While a run works, one of these is killed by SIGKILL,
up to five times in each run:

    task       the processes of Ray that read and stage for it
    driver     the run's own process: at a random moment, or when it has staged files and not committed, or
               when it has committed and not said so
    server     manta's server, which is started again

By chance two runs of an ingest are submitted at once. A reader loops over each dataset meanwhile: whatever
version it sees must be all of the source as it was after some round, no row twice. In the end every dataset
must hold exactly what was put in. Exit status 1 otherwise. The seed fixes what is put in and which kills are
made; the machine's speed decides what they meet.

The Kafka broker is the one of tests/brokers.py: what it cannot show is said there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from manta.control import processes
from manta.data.lake import Lake
from manta.errors import MantaError
from manta.project import Project
from manta.settings import Settings
from tests.conftest import free_ports
from tests.soak.lanes import Folder, Lane, Table, Topic, digest, expected
from tests.soak.load import Http, prepare
from tests.soak.parts import Postgres, RayHead, Server

PROJECT = Path(__file__).parent / "ingests"
LANES = ["files", "sql", "kafka"]
VICTIMS = {"task": 3, "driver": 2, "staged": 2, "committed": 2, "server": 1}
TWO_AT_ONCE = 0.2
KILLS_A_RUN = 5  # at most
TASK_SECONDS = 0.3  # of small work, once the process has made its imports
RUN_SECONDS = 300.0
FINDINGS = 20  # shown, of each source


class Runner(threading.Thread):
    """Grows one source, submits its ingest and kills what works on it, ``kills`` times."""

    def __init__(self, stage: Stage, lane: Lane, kills: int, until: float) -> None:
        super().__init__(name=lane.name, daemon=True)
        self.lane = lane
        self.met: Counter[str] = Counter()
        self.runs = 0
        self.attempts = 0
        self.findings: list[str] = []
        self._stage = stage
        self._kills = kills
        self._until = until
        self._chance = random.Random(f"{stage.seed}-{lane.name}")
        self._allowed: set[str] = set()
        self._http = Http(stage.settings)
        self._lake = Lake(stage.settings.datasets)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._seconds = 5.0  # how long a run's own process lives
        self.over = threading.Event()
        self.read = 0

    def run(self) -> None:
        try:
            self._round(0, kill=False)
            self._reader.start()
            number = 1
            while self.met.total() < self._kills and time.monotonic() < self._until:
                self._round(number, kill=True)
                number += 1
                if self.met.total() % 10 == 0:
                    print(f"{self.name}: {self.met.total()}/{self._kills}", file=sys.stderr, flush=True)
            self._round(number, kill=False)
            found = digest(self._lake.read(self.name))
            if found != expected(self.lane):
                self.findings.append(f"the dataset holds {found}, the source {expected(self.lane)}")
        except Exception as error:
            self.findings.append(f"{type(error).__name__}: {error}")
        finally:
            self.over.set()

    def _round(self, number: int, kill: bool) -> None:
        self.lane.grow(number)
        # Before anything can read it; the runs of earlier rounds have ended.
        self._allowed.add(expected(self.lane))
        version = self._lake.version(self.name) or 0
        both = kill and self._chance.random() < TWO_AT_ONCE
        ids = [self._submit(f"{number}-{each}") for each in range(1 + both)]
        if kill:
            self._kill_again_and_again(ids[0], version)
        else:
            self._measure(ids[0])
        for run in ids:
            self._ended(run)

    def _measure(self, run: int) -> None:
        """How long a run's own process lives."""
        driver = self._driver(run)
        began = time.monotonic()
        if driver is not None:
            driver.wait(RUN_SECONDS)
            self._seconds = time.monotonic() - began

    def _kill_again_and_again(self, run: int, version: int) -> None:
        for _ in range(self._chance.randint(1, KILLS_A_RUN)):
            victim = self._chance.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            driver = self._driver(run)
            if driver is None:
                return
            if self._kill(victim, run, driver, version):
                self.met[victim] += 1

    def _submit(self, key: str) -> int:
        body = {
            "project": self._stage.project.model_dump(mode="json"),
            "job": self.name,
            "key": f"{self.name}-{key}",
        }
        answer = self._http.ask("POST", f"/v1/projects/{self._stage.project.name}/runs", json=body)
        self.runs += 1
        return int(answer.json()["id"])

    def _ended(self, run: int) -> None:
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            told = self._http.ask("GET", f"/v1/runs/{run}").json()
            if told["state"] in ("SUCCEEDED", "FAILED", "STOPPED"):
                self.attempts += told["attempt"]
                if told["state"] != "SUCCEEDED":
                    self.findings.append(f"run {run} is {told['state']}: {_short(told['message'])}")
                return
            time.sleep(0.2)
        raise RuntimeError(f"run {run} has not ended after {RUN_SECONDS:.0f} s")

    # --- killing --------------------------------------------------------------------------------------

    def _kill(self, victim: str, run: int, driver: psutil.Process, version: int) -> bool:
        """Whether there was something left to kill when the moment came."""
        dataset = Path(self._lake.path(self.name))
        if victim == "committed":
            log = dataset / f"_delta_log/{version + 1:020d}.json"
            return _until(driver, log.exists) and _kill(driver)
        if victim == "staged":
            before = _staged(dataset, run)
            return _until(driver, lambda: bool(_staged(dataset, run) - before)) and _kill(driver)
        if victim == "task":
            found: list[psutil.Process] = []
            _until(driver, lambda: bool(found.extend(self._tasks()) or found), pause=0.02)
            time.sleep(self._chance.uniform(0, TASK_SECONDS))
            killed = [_kill(task) for task in found]
            return any(killed)
        time.sleep(self._chance.uniform(0, self._seconds))
        if victim == "server":
            self._stage.restart_server()
            return True
        return _kill(driver)

    def _driver(self, run: int) -> psutil.Process | None:
        """The run's own process, once it is there; None when the run has ended before."""
        deadline = time.monotonic() + RUN_SECONDS
        while time.monotonic() < deadline:
            found = _processes(lambda line: line[1:3] == ["-m", "manta.worker"] and line[3] == str(run))
            if found:
                return found[0]
            if self._http.ask("GET", f"/v1/runs/{run}").json()["ended_at"]:
                return None
            time.sleep(0.05)
        raise RuntimeError(f"run {run} has not begun after {RUN_SECONDS:.0f} s")

    def _tasks(self) -> list[psutil.Process]:
        """The processes of this Ray that read and stage for this lane now."""
        mark = f"{self._stage.settings.home}:ray"
        title = f"ray::land {self.name}"
        working = _processes(lambda line: line[0].startswith(title))
        return [process for process in working if processes.mark_of(process) == mark]

    # --- reading --------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Whatever version is the newest, it is one that may be."""
        seen = ""
        while not self.over.is_set():
            newest = _newest(Path(self._lake.path(self.name)))
            if newest == seen:
                time.sleep(0.02)
                continue
            try:
                version = self._lake.version(self.name)
                found, seen = digest(self._lake.read(self.name, version)), newest
            except MantaError as error:
                self.findings.append(f"reader: {type(error).__name__}: {error}")
                continue
            self.read += 1
            if found not in self._allowed:
                self.findings.append(f"reader: version {version} holds {found}, which the source never was")


def _until(driver: psutil.Process, happened: Callable[[], bool], pause: float = 0.002) -> bool:
    """Waits for that; False when the driver has ended before."""
    while not happened():
        if not _lives(driver):
            return False
        time.sleep(pause)
    return True


def _staged(dataset: Path, run: int) -> set[Path]:
    return set(dataset.glob(f"parts/*-{run}/*/*.parquet"))


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _newest(dataset: Path) -> str:
    """The newest entry of the dataset's log, by its name: to open the table takes a hundred times as long."""
    return max((name for name in os.listdir(dataset / "_delta_log") if name.endswith(".json")), default="")


def _processes(wanted: Callable[[list[str]], bool]) -> list[psutil.Process]:
    """Those whose command line is wanted; psutil would take twenty times as long to find them."""
    found = []
    for number in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError, IndexError, psutil.Error):
            line = Path("/proc", number, "cmdline").read_bytes().decode(errors="replace").split("\0")
            if wanted(line) and _lives(process := psutil.Process(int(number))):
                found.append(process)
    return found


def _kill(process: psutil.Process) -> bool:
    if not _lives(process):
        return False
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return False
    return True


class Stage:
    """The platform and the sources: up when entered, gone when left."""

    def __init__(self, seed: int, lanes: list[str]) -> None:
        self.seed = seed
        self.folder = Path(tempfile.mkdtemp(prefix="soak-data-", dir="/tmp"))
        self._names = lanes
        self._server_lock = threading.Lock()

    @contextlib.contextmanager
    def up(self) -> Iterator[list[Lane]]:
        root = self.folder / "project"
        shutil.copytree(PROJECT, root, ignore=shutil.ignore_patterns("__pycache__"))
        self.settings = Settings(
            project="soak", root=root, home=root / ".manta", ports=free_ports(), cpus=6
        )._resolved()
        with contextlib.ExitStack() as stack:
            lanes = [self._lane(name, stack) for name in self._names]
            ray, self.server = RayHead(self.settings), Server(self.settings)
            ray.start()
            stack.callback(ray.stop)
            self.server.start()
            stack.callback(self.server.stop)
            self.project: Project = prepare(self.settings)
            yield lanes

    def _lane(self, name: str, stack: contextlib.ExitStack) -> Lane:
        chance = random.Random(f"{self.seed}-{name}-rows")
        if name == "files":
            return Folder(chance, self.settings.root / "incoming")
        if name == "sql":
            postgres = Postgres(self.folder / "pg")
            stack.callback(postgres.stop)
            os.environ["SOAK_SQL"] = postgres.url
            table = Table(chance, postgres.url)
            stack.callback(table.close)
            return table
        from tests.brokers import broker

        os.environ["SOAK_KAFKA"] = servers = stack.enter_context(broker())
        return Topic(chance, servers)

    def restart_server(self) -> None:
        with self._server_lock:
            self.server.kill()
            self.server.start()


def _short(message: str) -> str:
    """Its beginning and its end, where a traceback has its reason."""
    return message if len(message) < 500 else f"{message[:150]} … {message[-350:]}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak.data", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--kills", type=int, default=100, help="for each source")
    parser.add_argument("--minutes", type=float, default=600, help="begin no further round after that")
    parser.add_argument("--lanes", nargs="+", choices=LANES, default=LANES)
    parser.add_argument("--json", type=Path, help="also write the result there")
    parser.add_argument("--keep", action="store_true", help="keep the folders, also when all is well")
    arguments = parser.parse_args()
    began = time.monotonic()
    stage = Stage(arguments.seed, arguments.lanes)
    with stage.up() as lanes:
        runners = [Runner(stage, lane, arguments.kills, began + 60 * arguments.minutes) for lane in lanes]
        for runner in runners:
            runner.start()
        for runner in runners:
            runner.over.wait()
    results = [
        {
            "source": runner.name,
            "kills": dict(runner.met),
            "runs": runner.runs,
            "attempts": runner.attempts,
            "rows": len(runner.lane.rows),
            "versions_read": runner.read,
            "findings": runner.findings[:FINDINGS],
        }
        for runner in runners
    ]
    for result in results:
        print(result)
    summary = json.dumps(
        {"seed": arguments.seed, "seconds": round(time.monotonic() - began), "results": results}
    )
    print(summary)
    if arguments.json:
        arguments.json.write_text(summary)
    bad = any(runner.findings for runner in runners)
    if bad or arguments.keep:
        print(f"all is left in {stage.folder}", file=sys.stderr)
    else:
        shutil.rmtree(stage.folder, ignore_errors=True)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
