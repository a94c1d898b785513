"""What every door to a platform must do alike: one suite for Platform, the clients and the command line, and
for whoever builds another.

    class TestMyDoor(Conformance):
        not_supported = {"test_lineage": "has no lineage yet"}     # each a strict xfail

        @pytest.fixture(scope="class")
        def door(self, tmp_path_factory):
            root = write_project(tmp_path_factory.mktemp("project"))
            ...
            yield MyDoor(root)

A door speaks for the project that :func:`write_project` has written. Runs are real ones.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from manta.answers import Applied, EndpointInfo, ModelVersion
from manta.errors import Conflict, InvalidInput, MantaError, NotFound
from manta.ledger.records import Entry, Lineage
from manta.ledger.runs import Attempt, EndReason, Run, State
from manta.plan import Action, Plan

PROJECT = "conformance"
END_SECONDS = 120.0  # generous: a worker takes a second or two to start

SETTINGS = """
project: conformance
engine: inline
"""

JOBS = """
import time

from manta import Job, Retry


def greet(context):
    print("hello", context.params["name"], "–", "schön", flush=True)
    context.progress(1, 2, "words")
    context.measured(letters=len(context.params["name"]))
    context.produced("dataset", "greetings", context.run.id)


def echo(context):
    print("again:", context.read("dataset", "greetings").version)
    context.produced("dataset", "echoes", context.run.id)


def fail(context):
    print("about to fail")
    raise ValueError("on purpose")


def count(context):
    context.measured(total=sum(range(context.params["to"])))


def wait(context):
    print("waiting", flush=True)
    time.sleep(600)


greeting = Job(name="greet", fn=greet, params={"name": "you"})
echoing = Job(name="echo", fn=echo, needs=("greet",))
counting = Job(name="count", fn=count, params={"to": 10})
failing = Job(name="fail", fn=fail, retry=Retry(lost=0))
waiting = Job(name="wait", fn=wait, stop_grace=5.0)
"""


def write_project(root: Path, settings: str = "") -> Path:
    """Write the project that the suite speaks of into ``root``; ``settings`` are more lines of its
    `cluster/local.yaml`."""
    files = {"jobs/words.py": JOBS, "cluster/local.yaml": f"{SETTINGS.strip()}\n{textwrap.dedent(settings)}"}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


class Door(Protocol):
    """The verbs. Each raises the error of `manta.errors` that the platform raised."""

    def plan(self) -> Plan: ...

    def apply(self) -> Applied:
        """Returns at once."""
        ...

    def submit(self, job: str, params: Mapping[str, Any], key: str | None = None) -> Run: ...

    def run(self, run_id: int) -> Run: ...

    def runs(self, *, job: str | None = None, active: bool = False, limit: int = 50) -> Sequence[Run]: ...

    def attempts(self, run_id: int) -> Sequence[Attempt]: ...

    def events(self, run_id: int) -> Sequence[str]:
        """What happened, in words of the ledger."""
        ...

    def logs(self, run_id: int, attempt: int | None = None) -> str: ...

    def stop(self, run_id: int) -> Run:
        """Returns at once."""
        ...

    def models(self) -> Sequence[ModelVersion]: ...

    def endpoints(self) -> Sequence[EndpointInfo]: ...

    def lineage(self, of: str) -> Lineage: ...

    def audit(self, limit: int) -> Sequence[Entry]: ...

    def replay(self, run_id: int) -> Run:
        """Returns at once, or when it has ended."""
        ...


def until_ended(door: Door, run_id: int) -> Run:
    """Raises:
    AssertionError: it does not end.
    """
    until = time.monotonic() + END_SECONDS
    while not (run := door.run(run_id)).state.ended:
        assert time.monotonic() < until, run
        time.sleep(0.2)
    return run


class Conformance:
    """Subclass it and give it a fixture ``door``, of class scope, over a platform without runs."""

    not_supported: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(autouse=True)
    def _declared_gaps(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if name in self.not_supported:
            request.applymarker(pytest.mark.xfail(strict=True, reason=self.not_supported[name]))

    @pytest.fixture(scope="class")
    def greeted(self, door: Door) -> Run:
        """A run of `greet` that has ended."""
        return until_ended(door, door.submit("greet", {"name": "Ada"}, key="greeted").id)

    def test_a_plan_says_what_would_run_and_changes_nothing(self, door: Door) -> None:
        made = door.plan()
        assert made.project == PROJECT
        assert {step.name for step in made.steps} >= {"greet", "echo", "fail", "wait"}
        assert {step.action for step in made.steps if step.name == "echo"} == {Action.RUN}
        assert list(door.runs(job="echo")) == []

    def test_a_submitted_run_ends_with_what_it_reported(self, greeted: Run) -> None:
        assert greeted.state is State.SUCCEEDED, greeted.message
        assert greeted.end_reason is EndReason.DONE
        assert greeted.project == PROJECT
        assert greeted.params == {"name": "Ada"}
        assert greeted.metrics["letters"] == 3
        assert [str(version) for version in greeted.outputs] == [f"dataset:greetings@{greeted.id}"]
        assert greeted.seconds is not None
        assert greeted.seconds >= 0

    def test_its_log_is_kept_whole(self, door: Door, greeted: Run) -> None:
        log = door.logs(greeted.id)
        assert "hello Ada – schön\n" in log
        assert door.logs(greeted.id, attempt=1) == log

    def test_one_key_is_one_run(self, door: Door, greeted: Run) -> None:
        assert door.submit("greet", {"name": "Ada"}, key="greeted").id == greeted.id

    def test_a_key_stands_for_one_submission(self, door: Door, greeted: Run) -> None:
        with pytest.raises((Conflict, InvalidInput)) as error:
            door.submit("greet", {"name": "Bob"}, key="greeted")
        assert error.value.hint

    def test_its_attempts_and_events_are_told_in_order(self, door: Door, greeted: Run) -> None:
        attempts = door.attempts(greeted.id)
        assert [(each.number, each.end_reason) for each in attempts] == [(1, EndReason.DONE)]
        events = door.events(greeted.id)
        told = [event for event in events if event in ("submitted", "starting", "running", "succeeded")]
        assert told == ["submitted", "starting", "running", "succeeded"]

    def test_runs_are_listed_newest_first(self, door: Door, greeted: Run) -> None:
        found = [run.id for run in door.runs()]
        assert found == sorted(found, reverse=True)
        assert greeted.id in found
        assert [run.id for run in door.runs(job="greet", limit=1)] == [
            max(run.id for run in door.runs(job="greet"))
        ]
        assert {run.job for run in door.runs(job="greet")} == {"greet"}

    def test_a_run_that_fails_says_why(self, door: Door) -> None:
        failed = until_ended(door, door.submit("fail", {}).id)
        assert (failed.state, failed.end_reason) == (State.FAILED, EndReason.USER_ERROR)
        assert "on purpose" in failed.message
        assert "about to fail" in door.logs(failed.id)

    def test_a_run_can_be_stopped(self, door: Door) -> None:
        run = door.submit("wait", {})
        until = time.monotonic() + END_SECONDS
        while "waiting" not in door.logs(run.id):
            assert time.monotonic() < until
            time.sleep(0.2)
        assert run.id in [each.id for each in door.runs(active=True)]
        assert door.stop(run.id).stop_requested
        stopped = until_ended(door, run.id)
        assert (stopped.state, stopped.end_reason) == (State.STOPPED, EndReason.STOP_REQUESTED)
        assert door.stop(run.id).state is State.STOPPED
        assert run.id not in [each.id for each in door.runs(active=True)]

    def test_unknown_names_are_not_found(self, door: Door) -> None:
        for ask in (
            lambda: door.run(9_999),
            lambda: door.logs(9_999),
            lambda: door.stop(9_999),
            lambda: door.attempts(9_999),
        ):
            with pytest.raises(NotFound, match="9999"):
                ask()
        with pytest.raises(NotFound, match="grete") as error:
            door.submit("grete", {})
        assert "greet" in error.value.hint

    def test_a_parameter_that_a_job_does_not_take_is_refused(self, door: Door) -> None:
        with pytest.raises(InvalidInput, match="nmae") as error:
            door.submit("greet", {"nmae": "Ada"})
        assert "name" in error.value.hint

    def test_models_and_endpoints_are_listed(self, door: Door) -> None:
        assert (list(door.models()), list(door.endpoints())) == ([], [])

    def test_lineage(self, door: Door, greeted: Run) -> None:
        found = door.lineage(f"run:{greeted.id}")
        assert f"dataset:greetings@{greeted.id}" in {node.id for node in found.nodes}

    def test_the_audit_names_who_submitted(self, door: Door, greeted: Run) -> None:
        (entry,) = [each for each in door.audit(1000) if each.target == f"run:{greeted.id}"]
        assert (entry.actor, entry.action, entry.project) == (greeted.submitted_by, "submit", PROJECT)

    def test_a_replay_repeats_a_run(self, door: Door) -> None:
        first = until_ended(door, door.submit("count", {"to": 5}).id)
        again = until_ended(door, door.replay(first.id).id)
        assert (again.state, again.replay_of, again.params) == (State.SUCCEEDED, first.id, first.params)
        assert again.metrics["total"] == first.metrics["total"] == 10

    def test_apply_runs_each_job_once_and_in_order(self, door: Door) -> None:
        applied = door.apply()
        echo = applied.runs["echo"]
        assert door.apply().runs["echo"] == echo
        assert until_ended(door, echo).state is State.SUCCEEDED
        assert door.run(echo).needs in ((), (applied.runs["greet"],))
        assert until_ended(door, applied.runs["fail"]).state is State.FAILED
        door.stop(applied.runs["wait"])
        until_ended(door, applied.runs["wait"])


__all__ = ["Conformance", "Door", "MantaError", "until_ended", "write_project"]
