"""The controller against real processes: no run is lost, doubled or stuck, whatever dies."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from manta.app import Platform
from manta.control import controller, verdicts
from manta.control.controller import log_file, package_file
from manta.control.engine import JobState
from manta.control.inline import InlineEngine
from manta.control.leader import LEASE, Leader
from manta.errors import Unavailable
from manta.ledger import retries, tables
from manta.ledger.actor import OWNER
from manta.ledger.database import now
from manta.ledger.runs import EndReason, Run, State
from manta.project import pack
from manta.settings import WORKER_VARIABLE, Settings

# Does what a worker does with the ledger, and then what the run's parameters say.
WORKER = """
import fcntl, os, sys, time
from pathlib import Path
from manta.ledger.runs import EndReason, State
from manta.ledger.store import Ledger
from manta.settings import Settings

ledger = Ledger(Settings.load(".").ledger_url)
run = ledger.run(int(sys.argv[1]))
if run.state is not State.STARTING or run.submission != os.environ["MANTA_SUBMISSION"]:
    sys.exit(3)
run = ledger.move(run, State.RUNNING)
lock = open(run.params["trace"] + f".{run.id}", "w")
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("overlap", flush=True)
print("attempt", run.attempt, "of", run.job, flush=True)
do = run.params.get("do", "succeed")
with open(run.params["trace"], "a") as trace:
    trace.write(f"{run.id}\\n")
if do == "die" or (do == "die once" and run.attempt == 1):
    os._exit(9)
if do == "wait once" and run.attempt == 1:
    while True:
        time.sleep(0.02)
while do == "wait" and not Path(run.params["trace"] + ".go").exists():
    time.sleep(0.02)
if do == "fail":
    ledger.move(run, State.FAILED, end_reason=EndReason.USER_ERROR, message="as told")
    sys.exit(1)
print("last words of", run.job, flush=True)
ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE)
"""


class Bench:
    """A platform whose engine runs WORKER, and whose controller is turned by hand."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.trace = settings.root / "trace"
        self.trace.touch()
        script = settings.root / "worker.py"
        script.write_text(WORKER)
        self.command = [sys.executable, str(script)]
        self.platform = self.restarted()
        self.platform.ledger.create()
        self.package, content = pack(settings.root)
        self.platform.put_package(self.package, content)

    def restarted(self) -> Platform:
        """A platform that knows nothing but the ledger and what the engine remembers."""
        if hasattr(self, "platform"):
            # The one before is dead, and its lease has run out.
            self.platform.controller.leader.resign()
        self.engine = InlineEngine(self.settings, self.settings.home / "inline", self.command)
        self.platform = Platform(self.settings, self.engine)
        return self.platform

    def submit(
        self, job: str, do: str = "succeed", needs: tuple[int, ...] = (), deadline: float = 0, **policy: Any
    ) -> int:
        run = self.platform.ledger.submit(
            key=f"{job}-{time.monotonic_ns()}",
            project="test",
            job=job,
            kind="test",
            definition={"retry": {"backoff": 0.01}, **policy},
            fingerprint="f",
            package=self.package,
            deadline_at=now() + timedelta(seconds=deadline) if deadline else None,
            params={"do": do, "trace": str(self.trace)},
            needs=needs,
            by=OWNER,
        )
        return run.id

    def run(self, run_id: int) -> Run:
        return self.platform.ledger.run(run_id)

    def turn_until(self, done: Callable[[], Any], seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, [r.model_dump() for r in self.platform.ledger.runs()]
            self.turn()
            time.sleep(0.02)

    def turn(self) -> None:
        self.platform.controller.tick()
        self.platform.controller.logs.turn()

    def log(self, run_id: int, attempt: int | None = None) -> str:
        return self.platform.logs(run_id, attempt)[0].decode()

    def executed(self) -> list[int]:
        return [int(line) for line in self.trace.read_text().split()]


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    bench = Bench(settings)
    yield bench
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: not bench.platform.ledger.active())
    bench.platform.ledger.close()


def test_a_run_goes_through_and_its_log_is_kept(bench: Bench) -> None:
    run_id = bench.submit("one")
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert bench.run(run_id).state is State.SUCCEEDED
    assert bench.executed() == [run_id]
    assert "attempt 1 of one" in bench.log(run_id)


def test_needs_are_waited_for_and_a_failed_one_fails_what_follows(bench: Bench) -> None:
    first = bench.submit("first", "fail")
    second = bench.submit("second", needs=(first,))
    third = bench.submit("third", needs=(second,))
    alone = bench.submit("alone")
    bench.turn_until(lambda: all(bench.run(each).state.ended for each in (first, second, third, alone)))
    assert bench.run(first).message == "as told"
    assert [bench.run(each).end_reason for each in (second, third)] == [EndReason.NEED_FAILED] * 2
    assert bench.run(alone).state is State.SUCCEEDED
    assert sorted(bench.executed()) == [first, alone]


def test_a_worker_that_dies_is_tried_again_and_not_for_ever(bench: Bench) -> None:
    once, always = bench.submit("once", "die once"), bench.submit("always", "die")
    bench.turn_until(lambda: bench.run(once).state.ended and bench.run(always).state.ended)
    assert (bench.run(once).state, bench.run(once).attempt) == (State.SUCCEEDED, 2)
    assert (bench.run(always).state, bench.run(always).end_reason) == (State.FAILED, EndReason.LOST)
    assert bench.executed().count(always) == bench.run(always).attempt == 3
    assert log_file(bench.settings, bench.run(always)).exists()


def test_a_controller_that_died_between_ledger_and_engine_is_taken_up(bench: Bench) -> None:
    run_id = bench.submit("one")
    ledger = bench.platform.ledger
    # The row is written, and the controller dies before the engine hears of it.
    ledger.start(ledger.run(run_id), f"manta-{ledger.identity()}-{run_id}-1")
    bench.restarted()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert bench.run(run_id).state is State.SUCCEEDED
    assert bench.executed() == [run_id]


def test_a_controller_that_died_after_submitting_does_not_submit_twice(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    bench.restarted()
    for _ in range(5):
        bench.turn()
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert bench.executed() == [run_id]
    assert bench.run(run_id).attempt == 1


@pytest.fixture
def nothing_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has forgotten its jobs has killed them, so that nobody need wait for their end."""
    monkeypatch.setattr(retries, "ALIVE_SECONDS", 0.5)


@pytest.mark.usefixtures("nothing_lives_on")
def test_a_cluster_that_forgot_its_jobs_gets_them_again(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    bench.engine.forget()
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert (bench.run(run_id).state, bench.run(run_id).attempt) == (State.SUCCEEDED, 2)


def test_what_waits_and_what_runs_can_be_stopped(bench: Bench) -> None:
    runs, waits = bench.submit("one", "wait"), bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    for run_id in (runs, waits):
        bench.platform.stop(run_id, by=OWNER)
    bench.turn_until(lambda: bench.run(runs).state.ended and bench.run(waits).state.ended)
    assert [bench.run(each).state for each in (runs, waits)] == [State.STOPPED] * 2
    assert bench.executed() == [runs]


def test_a_run_whose_package_is_gone_fails_with_the_next_step(bench: Bench) -> None:
    run_id = bench.submit("one")
    package_file(bench.settings, bench.package).unlink()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert "submit it again" in bench.run(run_id).message


def test_no_more_run_at_once_than_the_settings_say(bench: Bench, tmp_path: Path) -> None:
    ids = [bench.submit(f"job{number}", "wait") for number in range(5)]
    bench.turn_until(lambda: len(bench.executed()) == bench.settings.concurrent_runs)
    for _ in range(5):
        bench.turn()
    states = [bench.run(each).state for each in ids]
    assert states.count(State.QUEUED) == len(ids) - bench.settings.concurrent_runs
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: all(bench.run(each).state is State.SUCCEEDED for each in ids))


def test_the_last_words_of_a_run_outlive_the_engine(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    bench.turn_until(lambda: not list(bench.settings.home.glob("logs/runs/*.open")))
    for log in (bench.settings.home / "inline").glob("*.log"):
        log.unlink()
    assert bench.log(run_id).splitlines()[-1] == "last words of one"


@pytest.mark.usefixtures("nothing_lives_on")
def test_one_that_was_accepted_and_forgotten_is_a_lost_attempt_not_submitted_again(bench: Bench) -> None:
    run_id = bench.submit("one")
    ledger = bench.platform.ledger
    # The engine had it, the ledger knows that, and the engine's head died before the worker came to itself.
    ledger.accepted(ledger.start(ledger.run(run_id), f"manta-{ledger.identity()}-{run_id}-1"))
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    first, second = ledger.attempts(run_id)
    assert (first.end_reason, second.end_reason) == (EndReason.LOST, EndReason.DONE)
    assert bench.executed() == [run_id]


def test_of_two_controllers_one_acts_and_the_other_takes_over_when_it_is_gone(bench: Bench) -> None:
    first = bench.platform
    second = Platform(bench.settings, InlineEngine(bench.settings, bench.settings.home / "inline"))
    run_id = bench.submit("one", "wait")
    assert first.controller.tick()
    assert (first.controller.leading, second.controller.leading) == (True, False)
    assert not second.controller.tick()
    bench.trace.with_name("trace.go").touch()
    first.controller.leader.resign()
    bench.platform = second
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert (first.controller.leading, second.controller.leading) == (False, True)
    assert not first.controller.tick()
    assert bench.executed() == [run_id]
    first.ledger.close()


def test_a_lease_that_is_not_renewed_runs_out(bench: Bench) -> None:
    ledger = bench.platform.ledger
    holds, other = Leader(ledger, seconds=600), Leader(ledger, seconds=600)
    assert holds.take()
    assert not other.take()
    holds.resign()
    brief = Leader(ledger, seconds=0.2)
    assert brief.take()
    until = time.monotonic() + 60
    while not other.take():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert not brief.leading
    assert not brief.take()


def test_the_lease_of_a_process_that_is_no_more_is_not_waited_for(bench: Bench) -> None:
    code = (
        "import sys; from manta.control.leader import Leader; from manta.ledger.store import Ledger; "
        "print(Leader(Ledger(sys.argv[1]), 600).take())"
    )
    command = [sys.executable, "-c", code, bench.settings.ledger_url]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "True"
    assert Leader(bench.platform.ledger).take()


def test_a_run_past_its_deadline_fails_whatever_it_does(bench: Bench) -> None:
    runs = bench.submit("one", "wait", deadline=3600)
    waits = bench.submit("one", "wait", deadline=0.001)
    bench.turn_until(lambda: bench.executed())
    assert (bench.run(waits).state, bench.run(waits).end_reason) == (State.FAILED, EndReason.TIMED_OUT)
    move = update(tables.runs).where(tables.runs.c.id == runs).values(deadline_at=now())
    with bench.platform.ledger._db.write() as db:
        db.execute(move)
    bench.turn_until(lambda: bench.run(runs).state.ended)
    assert (bench.run(runs).state, bench.run(runs).end_reason) == (State.FAILED, EndReason.TIMED_OUT)
    assert len(bench.engine.jobs()) == 1
    bench.turn_until(lambda: all(job.state is JobState.STOPPED for job in bench.engine.jobs().values()))


def test_an_attempt_that_takes_too_long_is_tried_again_once_its_process_has_ended(bench: Bench) -> None:
    retry = {"backoff": 0.01, "timed_out": 1}
    run_id = bench.submit("one", "wait once", timeout=600, retry=retry)
    bench.turn_until(lambda: bench.executed())
    long_ago = update(tables.runs).values(started_at=now() - timedelta(seconds=601))
    with bench.platform.ledger._db.write() as db:
        db.execute(long_ago)
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert bench.run(run_id).state is State.SUCCEEDED
    ends = [attempt.end_reason for attempt in bench.platform.ledger.attempts(run_id)]
    assert ends == [EndReason.TIMED_OUT, EndReason.DONE]
    assert "overlap" not in bench.log(run_id)
    assert "attempt 1" in bench.log(run_id, 1)


def test_a_process_whose_attempt_is_over_is_stopped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller, "LINGER_SECONDS", 0.0)
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    # The controller died between the ledger and the engine.
    run = bench.run(run_id)
    bench.platform.ledger.move(run, State.FAILED, end_reason=EndReason.TIMED_OUT)
    bench.restarted()
    bench.turn_until(lambda: bench.engine.jobs()[run.submission].state is JobState.STOPPED)


def test_a_worker_without_a_sign_of_life_is_given_up(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = bench.submit("one", "wait once", stop_grace=1)
    bench.turn_until(lambda: bench.executed())
    bench.turn()
    monkeypatch.setattr(verdicts, "SILENT_SECONDS", 0.0)
    bench.turn_until(lambda: bench.run(run_id).attempt == 2 or bench.run(run_id).state is State.QUEUED)
    monkeypatch.undo()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert bench.run(run_id).state is State.SUCCEEDED
    first, _ = bench.platform.ledger.attempts(run_id)
    assert first.end_reason is EndReason.LOST
    assert "no sign of life" in first.message


def test_a_log_is_read_from_where_one_has_come_to(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    first, offset = bench.platform.logs(run_id)
    assert offset == len(first)
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    rest, end = bench.platform.logs(run_id, offset=offset)
    assert (first + rest).decode().splitlines() == ["attempt 1 of one", "last words of one"]
    assert bench.platform.logs(run_id, offset=end) == (b"", end)


def test_a_log_that_was_not_complete_when_the_controller_died_is_completed(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    bench.platform.controller.tick()
    bench.trace.with_name("trace.go").touch()
    until = time.monotonic() + 30
    while not bench.run(run_id).state.ended:  # nobody turns the controller
        assert time.monotonic() < until
        time.sleep(0.02)
    bench.restarted()
    bench.turn_until(lambda: not list(bench.settings.home.glob("logs/runs/*.open")))
    kept = log_file(bench.settings, bench.run(run_id)).read_text()
    assert kept.splitlines()[-1] == "last words of one"


# A controller that kills itself where it is told to, once it has come there.
MORTAL = """
import os, signal, sys
from pathlib import Path
from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.settings import Settings

point, script = sys.argv[1:]


def here(name):
    if name == point:
        os.kill(os.getpid(), signal.SIGKILL)


class Mortal(InlineEngine):
    def submit(self, *args, **kwargs):
        here("before submit")
        super().submit(*args, **kwargs)
        here("after submit")

    def stop(self, submission):
        here("before stop")
        super().stop(submission)
        here("after stop")


settings = Settings.load(".")
platform = Platform(settings, Mortal(settings, settings.home / "inline", [sys.executable, script]))
platform.controller.run_forever()
"""


@pytest.mark.parametrize("point", ["before submit", "after submit", "before stop", "after stop"])
def test_a_controller_killed_anywhere_leaves_nothing_lost_doubled_or_stuck(bench: Bench, point: str) -> None:
    ids = [bench.submit(f"job{number}", "wait") for number in range(2)]
    if point.endswith("stop"):
        bench.turn_until(lambda: len(bench.executed()) == 2)
        bench.platform.stop(ids[0], by=OWNER)
    bench.platform.controller.leader.resign()
    env = os.environ | {WORKER_VARIABLE: bench.settings.for_worker()}
    script = bench.settings.root / "worker.py"
    dead = subprocess.run([sys.executable, "-c", MORTAL, point, str(script)], env=env, timeout=120)
    assert dead.returncode == -signal.SIGKILL
    bench.restarted()
    if point.endswith("submit"):
        bench.turn_until(lambda: len(bench.executed()) == 2)
    else:
        bench.turn_until(lambda: bench.run(ids[0]).state.ended)
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: not bench.platform.ledger.active())
    assert sorted(bench.executed()) == ids
    assert [bench.run(each).attempt for each in ids] == [1, 1]
    stops = point.endswith("stop")
    assert bench.run(ids[0]).state is (State.STOPPED if stops else State.SUCCEEDED)
    assert bench.run(ids[1]).state is State.SUCCEEDED
    assert "last words" in bench.log(ids[1])


class Picky(InlineEngine):
    """Refuses to start the run with this number."""

    refused = 0

    def submit(self, submission: str, run_id: int, *args: Any, **named: Any) -> None:
        if run_id == self.refused:
            raise Unavailable("refused")
        super().submit(submission, run_id, *args, **named)


def test_one_that_the_engine_refuses_does_not_hold_up_the_others_and_is_given_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Picky(bench.settings, bench.settings.home / "inline", bench.command)
    bench.platform.controller.leader.resign()
    bench.platform = Platform(bench.settings, engine)
    engine.refused = bench.submit("one", retry={"lost": 0, "backoff": 0})
    other = bench.submit("other")

    def patiently(done: Callable[[], Any]) -> None:
        def ticked() -> bool:
            with contextlib.suppress(Unavailable):
                bench.turn()
            return bool(done())

        until = time.monotonic() + 60
        while not ticked():
            assert time.monotonic() < until
            time.sleep(0.02)

    patiently(lambda: bench.run(other).state.ended)
    assert bench.run(other).state is State.SUCCEEDED
    assert bench.run(engine.refused).state is State.STARTING
    monkeypatch.setattr(controller, "REFUSED_SECONDS", 0.0)
    patiently(lambda: bench.run(engine.refused).state.ended)
    assert (bench.run(engine.refused).end_reason, bench.run(engine.refused).message) == ("LOST", "refused")
    assert bench.executed() == [other]


def test_two_controllers_that_keep_taking_over_from_each_other_double_nothing(bench: Bench) -> None:
    bench.platform.controller.leader.resign()
    folder = bench.settings.home / "inline"
    both = [Platform(bench.settings, InlineEngine(bench.settings, folder, bench.command)) for _ in range(2)]
    for platform in both:
        platform.start()
    led: set[int] = set()
    try:
        ids = [bench.submit(f"job{number % 4}") for number in range(6)]
        until = time.monotonic() + 120
        while bench.platform.ledger.active() or len(led) < 2:
            assert time.monotonic() < until, [run.model_dump() for run in bench.platform.ledger.active()]
            for number, platform in enumerate(both):
                platform.controller.wake()
                if platform.controller.leading:
                    led.add(number)
                    platform.controller.leader.resign()
            time.sleep(0.3)
    finally:
        for platform in both:
            platform.close()
    assert led == {0, 1}
    assert sorted(bench.executed()) == ids
    assert [bench.run(each).attempt for each in ids] == [1] * 6
    assert all("last words" in bench.log(each) for each in ids)


def test_a_run_submitted_by_another_process_is_begun_without_waiting_for_the_next_look(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller, "IDLE_SECONDS", 10_000.0)
    monkeypatch.setattr(controller, "BUSY_SECONDS", 10_000.0)
    thread = threading.Thread(target=bench.platform.controller.run_forever, daemon=True)
    thread.start()
    other = Platform(bench.settings, InlineEngine(bench.settings, bench.settings.home / "inline"))
    try:
        until = time.monotonic() + 60
        while other.ledger.leases.holder(LEASE) is None:
            assert time.monotonic() < until
            time.sleep(0.02)
        run_id = bench.submit("one")
        while not bench.executed():
            assert time.monotonic() < until
            other.controller.wake()
            time.sleep(0.2)
    finally:
        bench.platform.controller.stop()
        thread.join(timeout=30)
        other.ledger.close()
    assert bench.executed() == [run_id]
