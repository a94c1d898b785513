"""The ledger: what is written once stays once, whoever writes and how often."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from manta.definitions import Ref
from manta.errors import Conflict, NotFound
from manta.ledger.actor import Actor
from manta.ledger.runs import LEGAL, EndReason, Progress, Run, State, Version
from manta.ledger.store import Ledger

ADA = Actor("user:ada", "http")


def submit(ledger: Ledger, key: str = "k", job: str = "flights", **more: Any) -> Run:
    fields: dict[str, Any] = {"project": "p", "kind": "ingest", "definition": {}, "fingerprint": "f"}
    return ledger.submit(key=key, job=job, package="z", by=ADA, **(fields | more))


def test_one_key_is_one_run_also_when_sent_at_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(16) as pool:
        runs = list(pool.map(lambda _: submit(ledger), range(50)))
    assert len({run.id for run in runs}) == 1
    assert len(ledger.runs(limit=1000)) == 1


def _submit_many(url: str, worker: int) -> None:
    ledger = Ledger(url)
    for number in range(40):
        submit(ledger, key=f"{worker}-{number}")


def test_processes_write_at_once_and_nothing_is_lost(ledger: Ledger) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=_submit_many, args=(ledger.url, number)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(ledger.runs(limit=1000)) == 160


def test_only_one_of_two_movers_wins(ledger: Ledger) -> None:
    seen = submit(ledger)
    ledger.start(seen, "s-1")
    with pytest.raises(Conflict):
        ledger.start(seen, "s-1-again")
    assert ledger.run(seen.id).submission == "s-1"


def test_a_worker_of_a_lost_attempt_cannot_end_the_next(ledger: Ledger) -> None:
    first = ledger.move(ledger.start(submit(ledger), "s-1"), State.RUNNING)
    again = ledger.start(ledger.move(first, State.QUEUED), "s-2")
    ledger.move(again, State.RUNNING)
    with pytest.raises(Conflict):
        ledger.move(first, State.SUCCEEDED)
    assert ledger.run(first.id).state is State.RUNNING


@pytest.mark.parametrize("ended", [State.SUCCEEDED, State.FAILED, State.STOPPED])
def test_nothing_leaves_an_ended_state(ended: State) -> None:
    assert LEGAL[ended] == frozenset()
    assert all(to in State for moves in LEGAL.values() for to in moves)


def test_outputs_are_seen_with_success_and_not_before(ledger: Ledger) -> None:
    ref = Ref("dataset", "flights")
    run = ledger.move(ledger.start(submit(ledger), "s-1"), State.RUNNING)
    assert ledger.versions.head("p", ref) is None
    ledger.move(run, State.FAILED, end_reason=EndReason.USER_ERROR, message="no")
    assert ledger.versions.head("p", ref) is None
    for number in ("1", "2"):
        run = ledger.move(ledger.start(submit(ledger, key=number), f"t-{number}"), State.RUNNING)
        made = Version(kind="dataset", name="flights", version=number, detail={"rows": 3})
        done = ledger.move(run, State.SUCCEEDED, outputs=[made], metrics={"rows": 3})
        assert done.outputs == (made,)
        assert done.metrics == {"rows": 3}
        assert done.ended_at is not None
        assert done.seconds is not None
    head = ledger.versions.head("p", ref)
    assert head is not None
    assert head.version == "2"
    assert ledger.versions.head("other-project", ref) is None
    assert ledger.versions.get("p", ref, "1").detail == {"rows": 3}
    with pytest.raises(NotFound):
        ledger.versions.get("p", ref, "3")


def test_progress_of_an_older_attempt_is_ignored(ledger: Ledger) -> None:
    run = ledger.move(ledger.start(submit(ledger), "s-1"), State.RUNNING)
    ledger.beat(run.id, run.attempt - 1, Progress(done=9, total=9))
    assert ledger.run(run.id).progress is None
    ledger.beat(run.id, run.attempt, Progress(done=1, total=9))
    progress = ledger.run(run.id).progress
    assert progress is not None
    assert progress.done == 1


def test_of_two_promoters_one_wins_and_the_other_is_told(ledger: Ledger) -> None:
    def promote(version: str) -> str:
        try:
            ledger.aliases.promote(
                "p", "delay", "champion", version, expect=None, run_id=None, gates=[], by=ADA
            )
        except Conflict as conflict:
            return conflict.message
        return version

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(promote, [str(number) for number in range(1, 9)]))
    won = [result for result in results if result.isdigit()]
    assert len(won) == 1
    assert ledger.aliases.get("p", "delay", "champion") == won[0]
    ledger.aliases.promote("p", "delay", "champion", "9", expect=won[0], run_id=None, gates=[], by=ADA)
    assert ledger.aliases.all("p") == {("delay", "champion"): "9"}


def test_a_stop_is_recorded_for_what_still_works_only(ledger: Ledger) -> None:
    run = submit(ledger)
    assert ledger.request_stop(run.id, by=ADA).stop_requested
    ended = ledger.move(ledger.run(run.id), State.STOPPED, end_reason=EndReason.STOP_REQUESTED)
    other = submit(ledger, key="other")
    ledger.move(other, State.FAILED)
    assert not ledger.request_stop(other.id, by=ADA).stop_requested
    assert ended.state is State.STOPPED


def test_every_ledger_has_an_identity_of_its_own(tmp_path: Path, ledger: Ledger) -> None:
    other = Ledger(f"sqlite:///{tmp_path}/other.db")
    other.create()
    other.create()
    assert other.identity() != ledger.identity()
    assert other.identity() == Ledger(other.url).identity()


def test_an_alias_never_points_at_what_the_ledger_does_not_know(ledger: Ledger) -> None:
    """Also when the run that made the version is stopped before it succeeds."""
    run = ledger.move(ledger.start(submit(ledger), "s-1"), State.RUNNING)
    detail = {"location": "here"}
    ledger.aliases.promote(
        "p", "m", "champion", "1", expect=None, run_id=run.id, gates=[], by=ADA, detail=detail
    )
    ledger.move(run, State.STOPPED)
    held = ledger.aliases.get("p", "m", "champion")
    assert held is not None
    assert ledger.versions.get("p", Ref("model", "m"), held).detail == detail
    assert ledger.versions.head("p", Ref("model", "m")) is None


def test_a_key_stands_for_one_submission_only(ledger: Ledger) -> None:
    submit(ledger, params={"rows": 3})
    assert submit(ledger, params={"rows": 3}).id == 1
    for other in ({"params": {"rows": 4}}, {"job": "weather"}, {"project": "q"}):
        with pytest.raises(Conflict, match="idempotency key"):
            submit(ledger, **other)


def test_every_attempt_is_kept_with_its_end(ledger: Ledger) -> None:
    run = ledger.move(ledger.start(submit(ledger), "s-1"), State.RUNNING)
    run = ledger.move(run, State.QUEUED, end_reason=EndReason.LOST, message="node gone")
    assert run.end_reason is None
    run = ledger.move(ledger.start(run, "s-2"), State.RUNNING)
    ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE)
    first, second = ledger.attempts(run.id)
    assert (first.number, first.end_reason, first.message) == (1, EndReason.LOST, "node gone")
    assert (second.number, second.submission, second.end_reason) == (2, "s-2", EndReason.DONE)
    assert all(each.running_at and each.ended_at for each in (first, second))
    assert [event.what for event in ledger.events(run.id)] == [
        *("submitted", "starting", "running", "queued", "starting", "running", "succeeded")
    ]


def test_an_adopted_run_is_in_its_first_attempt_from_the_start(ledger: Ledger) -> None:
    run = submit(ledger, adopted="raysubmit_1")
    assert (run.state, run.attempt, run.submission, run.origin) == (State.STARTING, 1, "raysubmit_1", "ray")
    assert [attempt.submission for attempt in ledger.attempts(run.id)] == ["raysubmit_1"]
    assert submit(ledger, adopted="raysubmit_1").id == run.id


def test_runs_come_by_page_newest_first(ledger: Ledger) -> None:
    for number in range(5):
        submit(ledger, key=str(number), project="p" if number % 2 else "q")
    first = ledger.runs(limit=2)
    rest = ledger.runs(before=first[-1].id, limit=9)
    assert [run.id for run in first + rest] == [5, 4, 3, 2, 1]
    assert [run.id for run in ledger.runs(project=["q", "r"])] == [5, 3, 1]
    assert ledger.runs(project=[]) == []
