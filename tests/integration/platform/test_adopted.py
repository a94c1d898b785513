"""Jobs submitted straight to Ray, by its own CLI and SDK, become runs of the ledger."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from ray.job_submission import JobSubmissionClient

from tests.integration.platform.conftest import BIN, Commands

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]

# Another project than the one that the platform was started for: it is found in the working directory.
JOBS = """
import sys, time
from pathlib import Path
from manta import Job, Retry, RunContext

def greet(context: RunContext) -> None:
    print("hello", context.params["name"], flush=True)
    context.measured(length=len(context.params["name"]))

def fail(context: RunContext) -> None:
    raise ValueError("as told")

def wait(context: RunContext) -> None:
    print("waiting", flush=True)
    time.sleep(600)

greeting = Job(name="greet", fn=greet, params={"name": "you"})
failing = Job(name="fail", fn=fail)
waiting = Job(name="wait", fn=wait, retry=Retry(lost=5))
"""


class Probe:
    """A project of its own on the flights' platform, and Ray's own clients."""

    def __init__(self, root: Path, flights: Commands) -> None:
        self.root = root
        self.name = "probe"
        (root / "jobs").mkdir(parents=True)
        (root / "cluster").mkdir()
        (root / "jobs/probe.py").write_text(JOBS)
        (root / "cluster/local.yaml").write_text("project: probe\n")
        ports = flights.env
        self.ray_url = f"http://127.0.0.1:{ports['MANTA_PORTS__DASHBOARD']}"
        self.server_url = f"http://127.0.0.1:{ports['MANTA_PORTS__SERVER']}"
        self.env = flights.env | {"RAY_ADDRESS": self.ray_url, "RAY_AUTH_MODE": "disabled"}
        self.ray = JobSubmissionClient(self.ray_url)
        key = flights.root / ".manta/owner.key"
        headers = {"Authorization": f"Bearer {key.read_text().strip()}"} if key.exists() else {}
        self.http = httpx.Client(base_url=self.server_url, headers=headers, timeout=60)

    def submit(self, entrypoint: str, **env: str) -> str:
        """Through Ray's SDK."""
        environment: dict[str, Any] = {"working_dir": str(self.root), "env_vars": env}
        return self.ray.submit_job(entrypoint=entrypoint, runtime_env=environment)

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Ray's own command line."""
        return subprocess.run(
            [str(BIN / "ray"), "job", *words],
            cwd=self.root,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=280,
        )

    def runs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.http.get("/v1/projects/probe/runs").json()["items"]
        return found

    def run_of(self, submission: str) -> dict[str, Any]:
        [run] = [run for run in self.runs() if run["submission"] == submission]
        return run

    def ended(self, submission: str) -> dict[str, Any]:
        until(lambda: self.ray.get_job_status(submission).is_terminal())
        until(lambda: self.run_of(submission)["ended_at"])
        return self.run_of(submission)

    def waits(self, submission: str) -> dict[str, Any]:
        until(lambda: "waiting" in self.ray.get_job_logs(submission))
        return self.run_of(submission)

    def logs(self, run: dict[str, Any]) -> str:
        return self.http.get(f"/v1/runs/{run['id']}/logs").text


def until(done: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory, flights: Commands) -> Iterator[Probe]:
    probe = Probe(tmp_path_factory.mktemp("adopted") / "probe", flights)
    yield probe
    probe.http.close()


def test_the_ray_cli_submits_a_run(probe: Probe) -> None:
    worker = ("python", "-m", "manta.worker", "greet", "--param", "name=Ada")
    done = probe.cli("submit", "--submission-id", "from-the-cli", "--working-dir", ".", "--", *worker)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "hello Ada" in done.stdout
    run = probe.ended("from-the-cli")
    assert (run["state"], run["end_reason"], run["origin"]) == ("SUCCEEDED", "DONE", "ray")
    assert (run["attempt"], run["params"], run["metrics"]) == (1, {"name": "Ada"}, {"length": 3})
    assert run["submitted_by"]
    assert "hello Ada" in probe.logs(run)


def test_the_sdk_sees_a_failure_as_the_ledger_does(probe: Probe) -> None:
    submission = probe.submit("python -m manta.worker fail")
    run = probe.ended(submission)
    assert (run["state"], run["end_reason"]) == ("FAILED", "USER_ERROR")
    assert "as told" in run["message"]
    assert str(probe.ray.get_job_status(submission)) == "FAILED"
    assert "as told" in probe.logs(run)


def test_a_job_stopped_in_ray_is_a_stopped_run(probe: Probe) -> None:
    submission = probe.submit("python -m manta.worker wait")
    probe.waits(submission)
    assert probe.cli("stop", submission).returncode == 0
    run = probe.ended(submission)
    assert (run["state"], run["end_reason"], run["attempt"]) == ("STOPPED", "STOP_REQUESTED", 1)


def test_stopping_the_run_stops_the_ray_job(probe: Probe) -> None:
    submission = probe.submit("python -m manta.worker wait")
    run = probe.waits(submission)
    assert probe.http.post(f"/v1/runs/{run['id']}/stop").status_code in (200, 202)
    run = probe.ended(submission)
    assert (run["state"], run["end_reason"]) == ("STOPPED", "STOP_REQUESTED")
    assert str(probe.ray.get_job_status(submission)) == "STOPPED"


def test_a_killed_job_is_lost_and_not_ours_to_try_again(probe: Probe) -> None:
    submission = probe.submit("python -m manta.worker wait")
    probe.waits(submission)
    [worker] = [process for process in psutil.process_iter() if executes(process, submission)]
    os.kill(worker.pid, signal.SIGKILL)
    run = probe.ended(submission)
    assert (run["state"], run["end_reason"], run["attempt"]) == ("FAILED", "LOST", 1)


def executes(process: psutil.Process, submission: str) -> bool:
    try:
        config = process.environ().get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
        words = process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return False
    mine = json.loads(config).get("metadata", {}).get("job_submission_id") == submission
    return mine and words[1:3] == ["-m", "manta.worker"]


def test_a_ray_job_is_one_run_however_often_it_asks(probe: Probe) -> None:
    again = "python -m manta.worker greet"
    submission = probe.submit(f"{again} && {again} && ! python -m manta.worker fail")
    run = probe.ended(submission)
    until(lambda: probe.ray.get_job_status(submission).is_terminal())
    assert str(probe.ray.get_job_status(submission)) == "SUCCEEDED"
    said = probe.ray.get_job_logs(submission)
    assert said.count("hello you") == 1
    assert f"run {run['id']} has ended: SUCCEEDED" in said
    assert "as told" not in said


def test_nothing_runs_unrecorded_when_the_server_is_down(probe: Probe) -> None:
    before = len(probe.runs())
    submission = probe.submit("python -m manta.worker greet", MANTA_SERVER_URL="http://127.0.0.1:9")
    until(lambda: probe.ray.get_job_status(submission).is_terminal())
    assert str(probe.ray.get_job_status(submission)) == "FAILED"
    said = probe.ray.get_job_logs(submission)
    assert "nothing was run" in said
    assert "MANTA_SERVER_URL" in said
    assert "hello" not in said
    assert len(probe.runs()) == before


def test_nothing_runs_under_a_key_that_opens_nothing(probe: Probe) -> None:
    before = len(probe.runs())
    submission = probe.submit("python -m manta.worker greet", MANTA_API_KEY="manta_nobody_secret")
    until(lambda: probe.ray.get_job_status(submission).is_terminal())
    assert str(probe.ray.get_job_status(submission)) == "FAILED"
    assert "hello" not in probe.ray.get_job_logs(submission)
    assert len(probe.runs()) == before


@pytest.mark.parametrize(
    ("words", "named"),
    [("nope", "it has: fail, greet, wait"), ("greet --param nam=1", "name"), ("greet --param x", "k=v")],
)
def test_what_cannot_be_run_says_why(probe: Probe, words: str, named: str) -> None:
    submission = probe.submit(f"python -m manta.worker {words}")
    until(lambda: probe.ray.get_job_status(submission).is_terminal())
    assert str(probe.ray.get_job_status(submission)) == "FAILED"
    assert named in probe.ray.get_job_logs(submission)


def test_a_job_of_the_projects_own_folder_is_adopted_too(flights: Commands, probe: Probe) -> None:
    """The whole reference project: datasets are read and produced as in any run."""
    probe_root, probe.root = probe.root, flights.root
    try:
        done = probe.cli("submit", "--working-dir", ".", "--", "python", "-m", "manta.worker", "airlines")
    finally:
        probe.root = probe_root
    assert done.returncode == 0, done.stdout + done.stderr
    run_id = re.search(r"is run (\d+) of", done.stdout)
    assert run_id
    run = probe.http.get(f"/v1/runs/{run_id[1]}").json()
    assert (run["project"], run["state"], run["origin"]) == (flights.root.name, "SUCCEEDED", "ray")
    assert [version["name"] for version in run["outputs"]] == ["airlines"]
    assert "Nothing to do" in flights("plan")


def test_outside_of_ray_it_says_how_to_submit(probe: Probe) -> None:
    words = [str(BIN / "python"), "-m", "manta.worker", "greet"]
    env = {name: value for name, value in probe.env.items() if name != "RAY_JOB_CONFIG_JSON_ENV_VAR"}
    done = subprocess.run(words, cwd=probe.root, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "manta run NAME" in done.stderr
