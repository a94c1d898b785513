"""The worker itself, without Ray: what it writes of its end, and when it leaves instead."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.data.lake import Lake
from manta.definitions import Job, digest
from manta.ledger.actor import OWNER
from manta.ledger.runs import EndReason, Run, State
from manta.project import Described, Project, pack
from manta.settings import Settings
from tests.soak.parts import Postgres

FUNCTIONS = """
    import os, sys, time
    from pathlib import Path


    def note(context, word):
        with open(context.params["trace"], "a") as trace:
            trace.write(f"{word}\\n")


    def works(context):
        note(context, context.run.job)


    def fails_once(context):
        note(context, "begin")
        if context.run.attempt == 1:
            raise ValueError("not yet")


    def eats(context):
        note(context, "begin")
        if context.run.attempt == 1:
            try:
                raise MemoryError
            except MemoryError as error:
                raise RuntimeError("while working") from error


    def leaves(context):
        sys.exit("enough")


    def loops(context):
        note(context, "begin")
        try:
            while True:
                time.sleep(0.02)
        finally:
            note(context, "cleaned up")


    def deaf(context):
        note(context, "begin")
        while True:
            try:
                time.sleep(0.02)
            except BaseException:
                pass


    def swallows(context):
        note(context, "begin")
        try:
            time.sleep(600)
        except BaseException:
            return


    def keeps(context):
        import polars
        from manta.data.lake import Lake
        Lake(context.settings.datasets).replace(
            "orders", polars.DataFrame({"of": [context.run.project]}), run_key=context.run_key
        )


    def waits(context):
        note(context, "begin")
        while not Path(context.params["trace"] + ".go").exists():
            context.progress(1, 2)
            time.sleep(0.02)
        context.measured(seen=1)
"""


class Bench:
    """A platform over a project of jobs, whose workers are processes."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        (settings.root / "jobs").mkdir()
        (settings.root / "jobs" / "work.py").write_text(textwrap.dedent(FUNCTIONS))
        self.trace = settings.root / "trace"
        self.trace.touch()
        self.engine = InlineEngine(settings, settings.home / "inline")
        self.platform = Platform(settings, self.engine)
        self.platform.ledger.create()
        self.package, content = pack(settings.root)
        self.platform.put_package(self.package, content)

    def project(self, *jobs: Job, name: str = "test") -> Project:
        described = tuple(
            Described(definition=job.to_json(), fingerprint=digest(job.fingerprinted()), where="jobs.work")
            for job in jobs
        )
        return Project(name=name, package=self.package, described=described)

    def job(self, fn: str, name: str = "", **policy: Any) -> Job:
        retry = {"backoff": 0} | policy.pop("retry", {})
        params = {"trace": str(self.trace)}
        name = name or fn.replace("_", "-")
        return Job(name=name, fn=f"jobs.work:{fn}", params=params, retry=retry, **policy)

    def submit(self, fn: str, **policy: Any) -> int:
        job = self.job(fn, **policy)
        return self.platform.run(self.project(job), job.name, {}, by=OWNER).id

    def run(self, run_id: int) -> Run:
        return self.platform.ledger.run(run_id)

    def ends(self, run_id: int) -> list[EndReason | None]:
        return [attempt.end_reason for attempt in self.platform.ledger.attempts(run_id)]

    def noted(self) -> list[str]:
        return self.trace.read_text().split("\n")[:-1]

    def go(self) -> None:
        Path(f"{self.trace}.go").touch()

    def turn_until(self, done: Callable[[], Any], seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < until, [run.model_dump() for run in self.platform.ledger.runs()]
            self.platform.controller.tick()
            self.platform.controller.logs.turn()
            time.sleep(0.05)

    def finish(self, run_id: int) -> Run:
        self.turn_until(lambda: self.run(run_id).state.ended)
        return self.run(run_id)


@pytest.fixture
def bench(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(settings)
    yield bench
    bench.go()
    bench.engine.forget()
    bench.platform.ledger.close()


def test_what_a_worker_raises_decides_whether_it_is_tried_again(bench: Bench) -> None:
    once = bench.submit("fails_once", retry={"user_error": 1})
    eats = bench.submit("eats")
    leaves = bench.submit("leaves")
    assert bench.finish(once).state is State.SUCCEEDED
    assert bench.ends(once) == [EndReason.USER_ERROR, EndReason.DONE]
    assert "ValueError: not yet" in bench.platform.logs(once, 1)[0].decode()
    assert bench.finish(eats).state is State.SUCCEEDED
    assert bench.ends(eats) == [EndReason.OUT_OF_MEMORY, EndReason.DONE]
    assert (bench.finish(leaves).state, bench.run(leaves).end_reason) == (State.FAILED, EndReason.USER_ERROR)
    assert "enough" in bench.run(leaves).message


def test_a_run_that_is_stopped_cleans_up_and_one_that_does_not_listen_is_killed(bench: Bench) -> None:
    loops, deaf = bench.submit("loops"), bench.submit("deaf", stop_grace=1)
    swallows = bench.submit("swallows")
    bench.turn_until(lambda: bench.noted().count("begin") == 3)
    for run_id in (loops, deaf, swallows):
        bench.platform.stop(run_id, by=OWNER)
    for run_id in (loops, deaf, swallows):
        assert bench.finish(run_id).state is State.STOPPED
        assert bench.ends(run_id) == [EndReason.STOP_REQUESTED]
    assert "cleaned up" in bench.noted()


def test_a_worker_whose_attempt_is_over_ends_by_itself_and_writes_nothing(bench: Bench) -> None:
    run_id = bench.submit("loops")
    bench.turn_until(lambda: "begin" in bench.noted())
    run = bench.run(run_id)
    bench.platform.ledger.move(run, State.FAILED, end_reason=EndReason.LOST, message="given up")
    until = time.monotonic() + 60
    while not bench.engine.jobs()[run.submission].state.ended:  # nobody turns the controller
        assert time.monotonic() < until
        time.sleep(0.05)
    assert "cleaned up" in bench.noted()
    assert (bench.run(run_id).state, bench.run(run_id).message) == (State.FAILED, "given up")


def test_needs_are_run_before_unless_fresh_and_followed_when_at_work(bench: Bench) -> None:
    base, middle = bench.job("waits", "base"), bench.job("works", "middle", needs=("base",))
    top, other = bench.job("works", "top", needs=("middle",)), bench.job("works", "other", needs=("base",))
    project = bench.project(top, other, middle, base)
    first = bench.platform.run(project, "top", {}, key="k", by=OWNER)
    again = bench.platform.run(project, "top", {}, key="k", by=OWNER)
    beside = bench.platform.run(project, "other", {}, by=OWNER)
    assert first.id == again.id
    assert sorted(run.job for run in bench.platform.ledger.runs()) == ["base", "middle", "other", "top"]
    bench.go()
    assert bench.finish(first.id).state is State.SUCCEEDED
    assert bench.finish(beside.id).state is State.SUCCEEDED
    assert [word for word in bench.noted() if word != "other"] == ["begin", "middle", "top"]
    second = bench.platform.run(project, "top", {}, by=OWNER)
    assert second.needs == ()
    assert bench.platform.run(project, "top", {}, key="k", by=OWNER).id == first.id
    assert len(bench.platform.ledger.runs()) == 5
    bench.finish(second.id)


def test_one_key_sent_at_once_is_one_set_of_runs(bench: Bench) -> None:
    base, top = bench.job("works", "base"), bench.job("works", "top", needs=("base",))
    project = bench.project(top, base)
    ids: list[int] = []
    senders = [
        threading.Thread(
            target=lambda: ids.append(bench.platform.run(project, "top", {}, key="k", by=OWNER).id)
        )
        for _ in range(20)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert len(set(ids)) == 1
    assert sorted(run.job for run in bench.platform.ledger.runs()) == ["base", "top"]
    assert bench.finish(ids[0]).state is State.SUCCEEDED


def test_a_run_outlives_the_absence_of_its_ledger(settings: Settings, tmp_path: Path) -> None:
    """PostgreSQL is killed while runs work, come to their ends and are submitted; and comes back."""
    postgres = Postgres(Path(f"/tmp/pgw{os.getpid()}"))
    bench = Bench(settings.model_copy(update={"ledger_url": postgres.url}))
    thread = threading.Thread(target=bench.platform.controller.run_forever, daemon=True)
    try:
        ids = [bench.submit("waits", name=f"waits-{number}") for number in range(2)]
        ids += [bench.submit("works", name=f"works-{number}") for number in range(4)]
        thread.start()
        wait(lambda: bench.noted().count("begin") == 2)
        postgres.kill()
        bench.go()  # they come to their end while nobody can be told
        time.sleep(2)
        postgres.start()
        wait(lambda: not bench.platform.ledger.active())
        assert [bench.run(each).state for each in ids] == [State.SUCCEEDED] * 6
        assert [bench.run(each).attempt for each in ids] == [1] * 6
        assert all(bench.run(each).metrics == {"seen": 1} for each in ids[:2])
        assert bench.noted().count("begin") == 2
    finally:
        bench.platform.controller.stop()
        thread.join(timeout=30)
        bench.engine.forget()
        bench.platform.ledger.close()
        postgres.stop()


def wait(done: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            if done():
                return
        except Exception as error:
            print(error)
        assert time.monotonic() < until
        time.sleep(0.1)


def test_two_projects_of_one_server_keep_their_data_apart(bench: Bench) -> None:
    """Also where their datasets have the same name, and the server's own settings name one of them."""
    for name in ("test", "other"):
        project = bench.project(bench.job("keeps"), name=name)
        run = bench.finish(bench.platform.run(project, "keeps", {}, by=OWNER).id)
        assert run.state is State.SUCCEEDED, run.message
    for name in ("test", "other"):
        lake = Lake(bench.settings.for_project(name).datasets)
        assert lake.read("orders", 0)["of"].to_list() == [name]
        assert lake.version("orders") == 0


@pytest.mark.parametrize(("takes", "status"), [(60.0, 75), (0.0, 0)])
def test_what_may_wait_for_ever_is_given_up(takes: float, status: int) -> None:
    imports = "import time; from manta.worker.__main__ import within"
    code = f"{imports}\nwith within(0.5, 'waiting'): time.sleep({takes})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.returncode == status
    assert ("waiting took more than" in done.stdout) is (status != 0)
