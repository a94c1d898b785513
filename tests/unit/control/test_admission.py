"""Admission is a pure function: its decisions are checked against what it promises, on random snapshots."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from manta.control.admission import Refuse, Snapshot, Start, decide
from manta.ledger.runs import ENDED, Run, State

WORKING = [State.STARTING, State.RUNNING, State.PREEMPTING]


AT = datetime(2026, 1, 1, tzinfo=UTC)


def run(
    run_id: int,
    state: State,
    job: str = "a",
    needs: tuple[int, ...] = (),
    stop: bool = False,
    priority: int = 0,
    wait: float | None = None,
) -> Run:
    return Run(
        id=run_id,
        project="p",
        job=job,
        kind="ingest",
        definition={},
        fingerprint="",
        package="",
        needs=needs,
        state=state,
        stop_requested=stop,
        priority=priority,
        not_before=None if wait is None else AT + timedelta(seconds=wait),
        created_at=AT,
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    size = draw(st.integers(0, 12))
    states = {
        number: draw(st.sampled_from([State.QUEUED] * 3 + WORKING + list(ENDED)))
        for number in range(1, size + 1)
    }
    active = [
        run(
            number,
            state,
            job=draw(st.sampled_from("abcd")),
            needs=tuple(draw(st.sets(st.integers(1, max(number - 1, 1)), max_size=2)) if number > 1 else ()),
            stop=draw(st.booleans()) and draw(st.booleans()),
            priority=draw(st.integers(-1, 1)),
            wait=draw(st.sampled_from([None, None, -1.0, 0.0, 0.1])),
        )
        for number, state in states.items()
        if not state.ended
    ]
    shuffled = draw(st.permutations(active))
    ended = [run(number, state, job="abcd"[number % 4]) for number, state in states.items() if state.ended]
    lingering = tuple(draw(st.lists(st.sampled_from(ended), max_size=2))) if ended else ()
    return Snapshot(tuple(shuffled), states, draw(st.integers(1, 4)), AT, lingering)


@given(snapshots())
def test_what_is_decided_is_allowed_and_nothing_allowed_is_left_waiting(snapshot: Snapshot) -> None:
    decisions = decide(snapshot)
    starts = [d.run for d in decisions if isinstance(d, Start)]
    refused = {d.run.id for d in decisions if isinstance(d, Refuse)}
    working = [r for r in snapshot.active if r.state in WORKING]
    jobs = [(r.project, r.job) for r in [*working, *starts]]
    lingering = {(r.project, r.job) for r in snapshot.lingering}

    assert len(starts) <= max(snapshot.limit - len(working), 0)
    for started in starts:
        assert started.state is State.QUEUED
        assert not started.stop_requested
        assert all(snapshot.states[need] is State.SUCCEEDED for need in started.needs)
        assert jobs.count((started.project, started.job)) == 1
        assert (started.project, started.job) not in lingering
        assert started.not_before is None or started.not_before <= snapshot.at

    for waiting in snapshot.active:
        if waiting.state is not State.QUEUED or waiting.stop_requested or waiting in starts:
            continue
        needs = [snapshot.states[need] for need in waiting.needs]
        hopeless = any(state in (State.FAILED, State.STOPPED) for state in needs)
        assert (waiting.id in refused) == hopeless
        due = waiting.not_before is None or waiting.not_before <= snapshot.at
        if not hopeless and due and all(state is State.SUCCEEDED for state in needs):
            full = len(working) + len(starts) >= snapshot.limit
            assert full or (waiting.project, waiting.job) in {*jobs, *lingering}
            # Of its own job, none that is less urgent went before it.
            ahead = [r for r in starts if r.job == waiting.job]
            assert all((-r.priority, r.id) < (-waiting.priority, waiting.id) for r in ahead)


@given(snapshots(), st.randoms())
def test_the_order_of_the_snapshot_does_not_matter(snapshot: Snapshot, random: object) -> None:
    shuffled = list(snapshot.active)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(replace(snapshot, active=tuple(shuffled))) == decide(snapshot)


def test_the_more_urgent_goes_first_and_of_those_the_oldest() -> None:
    queued = (
        run(4, State.QUEUED, "d", priority=1),
        run(3, State.QUEUED, "c"),
        run(2, State.QUEUED, "b"),
        run(1, State.QUEUED, "a", priority=-1),
    )
    assert [d.run.id for d in decide(Snapshot(queued, {}, 3, AT))] == [4, 2, 3]


def test_one_that_backs_off_lets_a_later_run_of_its_job_pass() -> None:
    queued = (run(1, State.QUEUED, wait=5), run(2, State.QUEUED))
    assert [d.run.id for d in decide(Snapshot(queued, {}, 3, AT))] == [2]
    later = Snapshot(queued, {}, 3, AT + timedelta(seconds=5))
    assert [d.run.id for d in decide(later)] == [1]
