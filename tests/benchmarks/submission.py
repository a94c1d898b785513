"""From submitting a function to its first line: manta beside plain `ray job submit`, on the same Ray head.

Four ways, taken in turn: `client.submit` and Ray's `JobSubmissionClient` from a process that is up already;
`manta run` and `ray job submit` as commands. A line counts from the moment at which the function writes it.

What bounds it: Ray starts an actor for each job (its supervisor), and that a process, for both sides the
same second or two. On top of it manta packs the project and compares its digest (about 10 ms; what the
project defines is kept by that digest), writes the run and wakes the controller (10–20 ms), asks Ray to start
it (the same call that Ray's own client makes), and its worker imports what Ray's script does not (0.36 s on a
quiet machine: a third of it SQLAlchemy, a tenth pydantic), opens the ledger and writes RUNNING before the
function is called. Of these the worker's imports are the most: they bound the library's ratio as long as each
run is a process of its own. As commands, both pay for their own imports: `ray`'s are the heavier.
"""

from __future__ import annotations

import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from manta.control.local import Local
from manta.control.parts import ray, server
from manta.ledger.store import Ledger
from manta.settings import Settings
from tests.conftest import free_ports

ROUNDS = 10
BIN = Path(sys.executable).parent

# What both sides execute: `mark` of this module.
HELLO = """
import os, sys, time

def mark(path):
    print("hello", flush=True)
    with open(path + ".partial", "w") as file:
        file.write(repr(time.time()))
    os.replace(path + ".partial", path)

if __name__ == "__main__":
    mark(sys.argv[1])
"""

JOBS = """
from manta import Job, RunContext
from hello import mark

def greet(context: RunContext) -> None:
    mark(context.params["path"])

hello = Job(name="hello", fn=greet, params={"path": ""})
"""


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="bench", dir="/tmp"))
    root = folder / "project"
    (root / "jobs").mkdir(parents=True)
    (root / "hello.py").write_text(HELLO)
    (root / "jobs/jobs.py").write_text(JOBS)
    (root / ".gitignore").write_text(".manta/\n")
    ports = free_ports()
    os.environ |= {f"MANTA_PORTS__{name.upper()}": str(port) for name, port in ports.model_dump().items()}
    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    settings = Settings.load(root)
    local = Local(settings, [ray(settings), server(settings)])
    local.up(lambda *told: None)
    try:
        _measure(settings, folder)
    finally:
        local.down(lambda *told: None)
        shutil.rmtree(folder, ignore_errors=True)


def _measure(settings: Settings, folder: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    import manta

    logging.getLogger("ray").setLevel(logging.WARNING)
    client = manta.connect(root=settings.root)
    jobs = JobSubmissionClient(settings.ray_url)
    script = f"{sys.executable} hello.py"

    def by_client(path: str) -> None:
        client.submit("hello", {"path": path})

    def by_sdk(path: str) -> None:
        jobs.submit_job(entrypoint=f"{script} {path}", runtime_env={"working_dir": str(settings.root)})

    def by_manta(path: str) -> None:
        _command(settings, "manta", "run", "hello", "--param", f"path={path}")

    def by_ray(path: str) -> None:
        words = ("--address", settings.ray_url, "--no-wait", "--working-dir", ".")
        _command(settings, "ray", "job", "submit", *words, "--", *script.split(), path)

    def settled() -> None:
        until = time.monotonic() + 60
        while client.runs(active=True) or any(not job.status.is_terminal() for job in jobs.list_jobs()):
            assert time.monotonic() < until
            time.sleep(0.1)

    sides = (("library", by_client, by_sdk), ("command", by_manta, by_ray))
    for named, ours, theirs in sides:
        pairs = []
        for number in range(ROUNDS + 1):
            both = []
            for side in (ours, theirs):
                both.append(_seconds(side, folder / f"{named}-{number}-{side.__name__}"))
                settled()
            pairs.append(both)
        warm = pairs[1:]
        mine, other = (statistics.median(side) for side in zip(*warm, strict=True))
        ratio = statistics.median(a / b for a, b in warm)
        print(f"{named}: {mine:.2f} s to the first line beside Ray's {other:.2f} s: {ratio:.2f} x")
    _tell_phases(settings)


def _tell_phases(settings: Settings) -> None:
    """Where manta's time goes, by the clocks of its own ledger."""
    ledger, phases = Ledger(settings.ledger_url), []
    for run in ledger.runs(job="hello", limit=2 * ROUNDS):
        [attempt] = ledger.attempts(run.id)
        assert attempt.running_at
        written = datetime.fromtimestamp(float(Path(run.params["path"]).read_text()), UTC)
        times = [run.created_at, attempt.started_at, attempt.running_at, written]
        phases.append([(after - before).total_seconds() for before, after in pairwise(times)])
    waited, started, called = (statistics.median(phase) for phase in zip(*phases, strict=True))
    print(f"manta: {waited:.2f} s in the queue, {started:.2f} s to start, {called:.2f} s to the function")


def _seconds(submit: Callable[[str], None], path: Path) -> float:
    began = time.time()
    submit(str(path))
    while not path.exists():
        assert time.time() < began + 120, f"{path} was not written"
        time.sleep(0.005)
    return float(path.read_text()) - began


def _command(settings: Settings, program: str, *words: str) -> None:
    done = subprocess.run([BIN / program, *words], cwd=settings.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


if __name__ == "__main__":
    main()
