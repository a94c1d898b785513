"""The controller against real processes: no run is lost, doubled or stuck, whatever dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manta.app import Platform
from manta.control.controller import log_file, package_file
from manta.control.inline import InlineEngine
from manta.ledger.actor import OWNER
from manta.ledger.runs import EndReason, Run, State
from manta.project import pack
from manta.settings import Settings

# Does what a worker does with the ledger, and then what the run's parameters say.
WORKER = """
import os, sys, time
from pathlib import Path
from manta.ledger.runs import EndReason, State
from manta.ledger.store import Ledger
from manta.settings import Settings

ledger = Ledger(Settings.load(".").ledger_url)
run = ledger.run(int(sys.argv[1]))
if run.state is not State.STARTING or run.submission != os.environ["MANTA_SUBMISSION"]:
    sys.exit(3)
run = ledger.move(run, State.RUNNING)
print("attempt", run.attempt, "of", run.job, flush=True)
do = run.params.get("do", "succeed")
with open(run.params["trace"], "a") as trace:
    trace.write(f"{run.id}\\n")
if do == "die" or (do == "die once" and run.attempt == 1):
    os._exit(9)
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
        engine = InlineEngine(self.settings, self.settings.home / "inline", self.command)
        if hasattr(self, "platform"):
            engine = self.platform.engine  # type: ignore[assignment]
        self.platform = Platform(self.settings, engine)
        return self.platform

    def submit(self, job: str, do: str = "succeed", needs: tuple[int, ...] = ()) -> int:
        run = self.platform.ledger.submit(
            key=f"{job}-{time.monotonic_ns()}",
            project="test",
            job=job,
            kind="test",
            definition={},
            fingerprint="f",
            package=self.package,
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
            self.platform.controller.tick()
            time.sleep(0.02)

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
    assert "attempt 1 of one" in bench.platform.logs(run_id)


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
        bench.platform.controller.tick()
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    assert bench.executed() == [run_id]
    assert bench.run(run_id).attempt == 1


def test_a_cluster_that_forgot_its_jobs_gets_them_again(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    engine = bench.platform.engine
    assert isinstance(engine, InlineEngine)
    for process in engine._started.values():
        process.kill()
        process.wait()
    engine._started.clear()
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
        bench.platform.controller.tick()
    states = [bench.run(each).state for each in ids]
    assert states.count(State.QUEUED) == len(ids) - bench.settings.concurrent_runs
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: all(bench.run(each).state is State.SUCCEEDED for each in ids))


def test_the_last_words_of_a_run_outlive_the_engine(bench: Bench) -> None:
    run_id = bench.submit("one", "wait")
    bench.turn_until(lambda: bench.executed())
    bench.trace.with_name("trace.go").touch()
    bench.turn_until(lambda: bench.run(run_id).state.ended)
    engine = bench.platform.engine
    assert isinstance(engine, InlineEngine)
    for process in engine._started.values():
        process.wait()
    bench.platform.controller.tick()
    for log in engine._folder.glob("*.log"):
        log.unlink()
    assert bench.platform.logs(run_id).splitlines()[-1] == "last words of one"
