"""The door of CI: `manta run --wait` against a server that is a process, runs that are processes, and the
ready workflow's own commands."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from xml.etree import ElementTree

import pytest
import yaml

import manta
from manta.client import Client
from manta.errors import RunFailed
from manta.ledger.runs import State
from manta.testing.doors import until_ended, write_project
from tests.conformance.doors import MANTA, ClientDoor, environment, server
from tests.conftest import free_ports

WORKFLOW = Path(__file__).parents[3] / "cluster/ci/github-actions.yaml"


@dataclass
class Ci:
    """The project's folder as CI has it: the address and the key in the environment."""

    root: Path
    env: dict[str, str]
    client: Client

    def __call__(self, *words: str, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [MANTA, *words], cwd=self.root, env=self.env | env, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == status, (words, done.returncode, done.stdout, done.stderr)
        return done

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [MANTA, *words],
            cwd=self.root,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ended(self, run_id: int) -> State:
        return until_ended(ClientDoor(self.client), run_id).state


@pytest.fixture(scope="module")
def ci(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ci]:
    ports = ", ".join(f"{name}: {port}" for name, port in free_ports().model_dump().items())
    root = write_project(tmp_path_factory.mktemp("ci"), f"ports: {{{ports}}}")
    with server(root) as url, manta.connect(url, root=root) as client:
        key = (root / ".manta/owner.key").read_text().strip()
        yield Ci(root, environment() | {"MANTA_URL": url, "MANTA_API_KEY": key}, client)


def read_until(stream: IO[str], words: str) -> str:
    """All lines up to the one that holds ``words``; the test's own timeout bounds it."""
    read = ""
    for line in stream:
        read += line
        if words in line:
            return read
    raise AssertionError(f"the end came before {words!r}:\n{read}")


def test_waiting_streams_the_log_and_an_interrupt_leaves_the_run_going(ci: Ci) -> None:
    process = ci.start("run", "wait", "--wait")
    assert process.stdout is not None
    read = read_until(process.stdout, "waiting")
    run_id = int(re.search(r"run (\d+) wait", read).group(1))  # type: ignore[union-attr]
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"manta stop {run_id}" in said
    assert f"manta logs -f {run_id}" in said
    assert not ci.client.run(run_id).data.stop_requested
    assert "STOPPED" in ci("stop", str(run_id)).stdout


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_the_run_where_that_is_asked_for(ci: Ci, sent: signal.Signals) -> None:
    process = ci.start("run", "wait", "--wait", "--stop-on-interrupt")
    assert process.stdout is not None
    read = read_until(process.stdout, "waiting")
    process.send_signal(sent)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, "is being stopped" in said) == (130, True)
    assert ci.ended(int(re.search(r"run (\d+) wait", read).group(1))) is State.STOPPED  # type: ignore[union-attr]


def test_a_run_that_succeeded_exits_with_0_and_writes_its_reports(ci: Ci, tmp_path: Path) -> None:
    junit, summary = tmp_path / "reports/greet.xml", tmp_path / "summary.md"
    done = ci(
        *("run", "greet", "--param", "name=Ada", "--wait"),
        *("--junit", str(junit), "--summary", str(summary)),
    )
    assert "hello Ada" in done.stdout
    assert re.search(r"run \d+ greet SUCCEEDED", done.stdout)
    (suite,) = ElementTree.parse(junit).getroot()
    assert (suite.attrib["tests"], suite.attrib["failures"], suite.attrib["errors"]) == ("1", "0", "0")
    assert "hello Ada" in (suite.findtext("testcase/system-out") or "")
    assert "greet: succeeded" in summary.read_text()


def test_a_run_that_failed_exits_with_1_and_says_why_everywhere(ci: Ci, tmp_path: Path) -> None:
    junit, summary = tmp_path / "fail.xml", tmp_path / "fail.md"
    done = ci("run", "fail", "--wait", "--junit", str(junit), "--summary", str(summary), status=1)
    assert "about to fail" in done.stdout
    assert "on purpose" in done.stderr
    assert re.search(r"next: +`manta logs \d+`", done.stderr)
    (suite,) = ElementTree.parse(junit).getroot()
    assert suite.attrib["errors"] == "1"
    assert "on purpose" in suite.find("testcase/error").attrib["message"]  # type: ignore[union-attr]
    assert "on purpose" in summary.read_text()


def test_a_run_stopped_by_somebody_else_exits_with_3(ci: Ci) -> None:
    process = ci.start("run", "wait", "--wait")
    assert process.stdout is not None
    read = read_until(process.stdout, "waiting")
    ci.client.stop(int(re.search(r"run (\d+) wait", read).group(1)))  # type: ignore[union-attr]
    process.communicate(timeout=120)
    assert process.returncode == 3


def test_logs_are_followed_to_their_end(ci: Ci) -> None:
    run = ci.client.submit("greet", {"name": "you"})
    assert "hello you" in ci("logs", "-f", str(run.id)).stdout
    assert ci.client.run(run.id).state is State.SUCCEEDED
    assert ci("logs", str(run.id)).stdout == ci("logs", "--follow", str(run.id)).stdout


def test_a_step_tried_again_is_the_same_run(ci: Ci) -> None:
    first = json.loads(ci("run", "count", "--key", "build-1", "--json").stdout)
    again = json.loads(ci("run", "count", "--key", "build-1", "--json").stdout)
    assert first["id"] == again["id"]


@pytest.mark.parametrize(
    ("words", "env", "status", "said"),
    [
        (("run", "grete"), {}, 4, "greet"),
        (("show", "9999"), {}, 4, "manta runs"),
        (("run", "greet", "--param", "x"), {}, 2, "k=v"),
        (("run", "greet", "--param", "nmae=1"), {}, 2, "name"),
        (("run", "greet", "--junit", "x.xml"), {}, 2, "--wait"),
        (("runs",), {"MANTA_API_KEY": "manta_000000000000_" + "0" * 43}, 6, "key"),
        (("runs",), {"MANTA_URL": "http://127.0.0.1:9"}, 7, "manta up"),
        (("runs",), {"MANTA_API_KEY_FILE": "/nowhere", "MANTA_API_KEY": ""}, 2, "MANTA_API_KEY_FILE"),
    ],
)
def test_an_error_is_one_message_with_a_hint_and_its_class_as_exit_status(
    ci: Ci, words: tuple[str, ...], env: dict[str, str], status: int, said: str
) -> None:
    done = ci(*words, status=status, **env)
    assert done.stderr.startswith("error ")
    assert "next:" in done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_listings_are_json_for_scripts(ci: Ci) -> None:
    ci.client.submit("count")
    for words in (("runs",), ("runs", "--active"), ("models",), ("endpoints",), ("audit", "list")):
        assert isinstance(json.loads(ci(*words, "--json").stdout), list), words
    assert json.loads(ci("plan", "--json").stdout)["project"] == "conformance"


def test_a_list_goes_on_where_the_last_page_ended(ci: Ci) -> None:
    for _ in range(3):
        ci.client.submit("count")
    everything = [run.id for run in ci.client.runs(limit=None)]
    first = ci("runs", "--limit", "2").stdout
    assert f"manta runs --before {everything[1]}" in first
    following = json.loads(ci("runs", "--limit", "2", "--before", str(everything[1]), "--json").stdout)
    assert [run["id"] for run in following] == everything[2:4]


def test_a_wait_in_python_raises_what_the_run_failed_for(ci: Ci) -> None:
    with pytest.raises(RunFailed, match="on purpose"):
        ci.client.submit("fail").wait()


def steps() -> list[dict[str, Any]]:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    return [
        step for job in workflow["jobs"].values() for step in job["steps"] if "manta" in step.get("run", "")
    ]


def test_the_workflow_is_one_that_github_would_take() -> None:
    workflow = yaml.safe_load(WORKFLOW.read_text())
    assert set(workflow) >= {"name", True, "jobs", "permissions"}  # YAML 1.1 reads the key `on` as true
    assert workflow["env"] == {
        "MANTA_URL": "${{ secrets.MANTA_URL }}",
        "MANTA_API_KEY": "${{ secrets.MANTA_API_KEY }}",
    }
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.parametrize("step", steps(), ids=lambda step: step["name"])
def test_the_workflows_own_commands_run(ci: Ci, tmp_path: Path, step: dict[str, Any]) -> None:
    summary = tmp_path / "summary.md"
    env = {"JOB": "greet", "KEY": f"{tmp_path.name}", "GITHUB_STEP_SUMMARY": str(summary)}
    assert set(step.get("env", ())) <= set(env)
    path = f"{Path(MANTA).parent}{os.pathsep}{ci.env['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", step["run"]],
        cwd=ci.root,
        env=ci.env | env | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "greet" in summary.read_text()
    if "--junit" in step["run"]:
        assert ElementTree.parse(ci.root / "reports/manta.xml").getroot().tag == "testsuites"
