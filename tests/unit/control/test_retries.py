"""Whether a run is tried again: what the policy says of each end reason, and what overrules it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.definitions import Retry
from manta.ledger.retries import ALIVE_SECONDS, Again, End, decide, most
from manta.ledger.runs import Attempt, EndReason, Run, State

AT = datetime(2026, 1, 1, tzinfo=UTC)
RETRIED = [
    EndReason.LOST,
    EndReason.OUT_OF_MEMORY,
    EndReason.PREEMPTED,
    EndReason.TIMED_OUT,
    EndReason.USER_ERROR,
]


def run(number: int, retry: dict[str, Any] | None = None, **more: Any) -> Run:
    return Run(
        id=1,
        project="p",
        job="j",
        kind="job",
        definition={"kind": "job", "name": "j", "retry": retry or {}},
        fingerprint="",
        package="",
        state=State.RUNNING,
        attempt=number,
        created_at=AT,
        **more,
    )


def ended(*reasons: EndReason) -> list[Attempt]:
    """The attempts before, and the present one, which has not been written as ended."""
    ends = [*reasons, None]
    return [
        Attempt(run_id=1, number=number, submission=f"s-{number}", started_at=AT, end_reason=end)
        for number, end in enumerate(ends, start=1)
    ]


@given(st.lists(st.sampled_from(RETRIED), max_size=8), st.sampled_from(RETRIED), st.integers(0, 4))
def test_each_reason_has_a_count_of_its_own(before: list[EndReason], reason: EndReason, limit: int) -> None:
    policy = dict.fromkeys(("lost", "out_of_memory", "preempted", "timed_out", "user_error"), limit)
    decision = decide(run(len(before) + 1, policy), ended(*before), reason, AT)
    assert isinstance(decision, Again) == (before.count(reason) < limit)
    if isinstance(decision, End):
        assert decision.tries == before.count(reason) + 1


def test_by_default_the_lost_are_tried_again_and_the_wrong_are_not() -> None:
    assert isinstance(decide(run(1), ended(), EndReason.LOST, AT), Again)
    assert isinstance(decide(run(3), ended(*[EndReason.LOST] * 2), EndReason.LOST, AT), End)
    assert isinstance(decide(run(1), ended(), EndReason.OUT_OF_MEMORY, AT), Again)
    for never in (EndReason.USER_ERROR, EndReason.TIMED_OUT, EndReason.GATE_FAILED):
        assert isinstance(decide(run(1), ended(), never, AT), End)


@pytest.mark.parametrize("reason", [EndReason.GATE_FAILED, EndReason.NEED_FAILED, EndReason.STOP_REQUESTED])
def test_no_policy_retries_what_was_decided(reason: EndReason) -> None:
    policy = Retry(lost=9, out_of_memory=9, preempted=9, timed_out=9, user_error=9)
    assert most(policy, reason) == 0


def test_the_pause_doubles_up_to_its_bound_and_a_preempted_run_does_not_wait() -> None:
    policy = {"backoff": 2, "backoff_most": 30, "lost": 99}
    waits = []
    for number in range(1, 7):
        decision = decide(run(number, policy), ended(*[EndReason.LOST] * (number - 1)), EndReason.LOST, AT)
        assert isinstance(decision, Again)
        waits.append((decision.at - AT).total_seconds())
    assert waits == [2, 4, 8, 16, 30, 30]
    assert decide(run(1), ended(), EndReason.PREEMPTED, AT) == Again(AT)
    # Having been preempted does not make later pauses longer.
    after = decide(run(3, policy), ended(*[EndReason.PREEMPTED] * 2), EndReason.LOST, AT)
    assert after == Again(AT + timedelta(seconds=2))
    far = decide(run(2000, policy | {"lost": 9999}), ended(*[EndReason.LOST] * 1999), EndReason.LOST, AT)
    assert far == Again(AT + timedelta(seconds=30))


def test_what_overrules_the_policy() -> None:
    assert isinstance(decide(run(1, stop_requested=True), ended(), EndReason.LOST, AT), End)
    assert isinstance(decide(run(1, origin="ray"), ended(), EndReason.LOST, AT), End)
    soon = run(1, {"backoff": 5}, deadline_at=AT + timedelta(seconds=5))
    later = run(1, {"backoff": 5}, deadline_at=AT + timedelta(seconds=6))
    assert isinstance(decide(soon, ended(), EndReason.LOST, AT), End)
    assert isinstance(decide(later, ended(), EndReason.LOST, AT), Again)


def test_one_that_nobody_can_see_is_given_time_to_end_by_its_last_sign_of_life() -> None:
    def at(beat: float) -> float:
        seen = run(1, {"backoff": 1}, heartbeat_at=AT + timedelta(seconds=beat))
        decision = decide(seen, ended(), EndReason.LOST, AT, out_of_sight=True)
        assert isinstance(decision, Again)
        return (decision.at - AT).total_seconds()

    assert at(0) == ALIVE_SECONDS
    assert at(-60) == 1
