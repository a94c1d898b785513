"""Admission is a pure function: its decisions are checked against what it promises, on random snapshots."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from manta.control.admission import Refuse, Snapshot, Start, decide
from manta.ledger.runs import ENDED, Run, State

WORKING = [State.STARTING, State.RUNNING, State.PREEMPTING]


def run(run_id: int, state: State, job: str = "a", needs: tuple[int, ...] = (), stop: bool = False) -> Run:
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
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
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
        )
        for number, state in states.items()
        if not state.ended
    ]
    shuffled = draw(st.permutations(active))
    return Snapshot(tuple(shuffled), states, draw(st.integers(1, 4)))


@given(snapshots())
def test_what_is_decided_is_allowed_and_nothing_allowed_is_left_waiting(snapshot: Snapshot) -> None:
    decisions = decide(snapshot)
    starts = [d.run for d in decisions if isinstance(d, Start)]
    refused = {d.run.id for d in decisions if isinstance(d, Refuse)}
    working = [r for r in snapshot.active if r.state in WORKING]
    jobs = [(r.project, r.job) for r in [*working, *starts]]

    assert len(starts) <= max(snapshot.limit - len(working), 0)
    for started in starts:
        assert started.state is State.QUEUED
        assert not started.stop_requested
        assert all(snapshot.states[need] is State.SUCCEEDED for need in started.needs)
        assert jobs.count((started.project, started.job)) == 1

    for waiting in snapshot.active:
        if waiting.state is not State.QUEUED or waiting.stop_requested or waiting in starts:
            continue
        needs = [snapshot.states[need] for need in waiting.needs]
        hopeless = any(state in (State.FAILED, State.STOPPED) for state in needs)
        assert (waiting.id in refused) == hopeless
        if not hopeless and all(state is State.SUCCEEDED for state in needs):
            full = len(working) + len(starts) >= snapshot.limit
            assert full or (waiting.project, waiting.job) in jobs


@given(snapshots(), st.randoms())
def test_the_order_of_the_snapshot_does_not_matter(snapshot: Snapshot, random: object) -> None:
    shuffled = list(snapshot.active)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert decide(Snapshot(tuple(shuffled), snapshot.states, snapshot.limit)) == decide(snapshot)


def test_the_oldest_goes_first() -> None:
    queued = (run(3, State.QUEUED, "c"), run(2, State.QUEUED, "b"), run(1, State.QUEUED, "a"))
    assert [d.run.id for d in decide(Snapshot(queued, {}, 2))] == [1, 2]
