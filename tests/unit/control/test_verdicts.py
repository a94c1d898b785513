"""What is done about a run is a pure function of what is seen of it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.control.engine import EngineJob, JobState
from manta.control.verdicts import (
    SILENT_SECONDS,
    STOPPED,
    AskToStop,
    AttemptOver,
    Finish,
    Sight,
    Submit,
    Wait,
    judge,
    patience,
)
from manta.ledger.runs import ACTIVE, LEGAL, EndReason, Run, State

AT = datetime(2026, 1, 1, tzinfo=UTC)
RUNNING, PENDING = EngineJob(JobState.RUNNING), EngineJob(JobState.PENDING)


def run(state: State = State.RUNNING, policy: dict[str, Any] | None = None, **more: Any) -> Run:
    attempt = 0 if state is State.QUEUED else 1
    fields: dict[str, Any] = {"created_at": AT, "started_at": AT, "attempt": attempt} | more
    return Run(
        id=1,
        project="p",
        job="j",
        kind="job",
        definition=policy or {},
        fingerprint="",
        package="",
        state=state,
        submission="s-1-1" if attempt else "",
        **fields,
    )


def after(seconds: float) -> datetime:
    return AT + timedelta(seconds=seconds)


@st.composite
def sights(draw: st.DrawFn) -> Sight:
    state = draw(st.sampled_from(sorted(ACTIVE)))
    seen = run(
        state,
        {"timeout": 10.0} if draw(st.booleans()) else {},
        stop_requested=draw(st.booleans()),
        origin=draw(st.sampled_from(["manta", "ray"])),
        deadline_at=draw(st.sampled_from([None, after(5), after(100)])),
    )
    jobs = [EngineJob(each) for each in JobState] + [None]
    answers = draw(st.booleans())
    return Sight(
        seen,
        after(draw(st.floats(0, 1000))),
        job=draw(st.sampled_from(jobs)) if answers and state is not State.QUEUED else None,
        answers=answers,
        accepted=draw(st.booleans()),
        silent=draw(st.floats(0, 1000)),
        asked=draw(st.floats(0, 100)),
    )


@given(sights())
def test_what_is_decided_can_be_done(sight: Sight) -> None:
    match judge(sight):
        case Finish(state, _, _):
            assert state in LEGAL[sight.run.state]
        case AttemptOver():
            assert sight.run.state is not State.QUEUED
            assert {State.QUEUED, State.FAILED} <= LEGAL[sight.run.state]
        case Submit():
            assert sight.run.state is State.STARTING
            assert sight.job is None
            assert not sight.accepted
            assert sight.run.origin == "manta"
            assert sight.answers
        case AskToStop():
            assert sight.run.stop_requested or sight.run.state is State.PREEMPTING


@given(sights())
def test_nothing_waits_for_what_cannot_come(sight: Sight) -> None:
    if judge(sight) == Wait():
        ended = sight.job is not None and sight.job.state.ended
        assert not ended
        assert sight.run.deadline_at is None or sight.run.deadline_at > sight.at
        assert not (sight.run.state is State.QUEUED and sight.run.stop_requested)


def test_an_end_without_a_word_is_lost_or_out_of_memory() -> None:
    died = EngineJob(JobState.FAILED, "exit code 9")
    assert judge(Sight(run(), AT, died)) == AttemptOver(EndReason.LOST, "exit code 9")
    killed = EngineJob(JobState.FAILED, "exit code 137", out_of_memory=True)
    assert judge(Sight(run(), AT, killed)) == AttemptOver(EndReason.OUT_OF_MEMORY, "exit code 137")
    assert judge(Sight(run(stop_requested=True), AT, died)) == STOPPED
    preempted = Sight(run(State.PREEMPTING), AT, EngineJob(JobState.STOPPED))
    assert judge(preempted) == AttemptOver(EndReason.PREEMPTED, "")
    by_hand = judge(Sight(run(), AT, EngineJob(JobState.STOPPED)))
    assert by_hand == Finish(State.STOPPED, EndReason.STOP_REQUESTED, "stopped in Ray")


def test_what_the_engine_never_had_is_submitted_and_what_it_had_and_forgot_is_lost() -> None:
    assert judge(Sight(run(State.STARTING), AT, accepted=False)) == Submit()
    for state in (State.STARTING, State.RUNNING):
        assert isinstance(judge(Sight(run(state), AT, accepted=True)), AttemptOver)
    assert judge(Sight(run(), AT, answers=False)) == Wait()


def test_an_adopted_run_is_never_submitted_and_may_be_told_of_early() -> None:
    adopted = run(State.STARTING, origin="ray")
    assert judge(Sight(adopted, AT, accepted=False)) == Wait()
    assert isinstance(judge(Sight(adopted, after(3600), accepted=False)), AttemptOver)


def test_a_deadline_counts_in_every_state_also_while_the_engine_is_away() -> None:
    for state in ACTIVE:
        late = Sight(run(state, deadline_at=AT), AT, answers=False)
        verdict = judge(late)
        assert isinstance(verdict, Finish)
        assert (verdict.state, verdict.reason) == (State.FAILED, EndReason.TIMED_OUT)


@pytest.mark.parametrize("seconds", [9.0, 11.0])
def test_a_timeout_counts_from_the_start_of_the_attempt(seconds: float) -> None:
    verdict = judge(Sight(run(policy={"timeout": 10.0}), after(seconds), RUNNING))
    assert isinstance(verdict, AttemptOver) == (seconds > 10)
    if isinstance(verdict, AttemptOver):
        assert verdict.reason is EndReason.TIMED_OUT


def test_silence_is_borne_for_minutes_and_counts_only_where_ray_says_that_it_runs() -> None:
    assert judge(Sight(run(), AT, RUNNING, silent=SILENT_SECONDS - 1)) == Wait()
    assert judge(Sight(run(), AT, PENDING, silent=SILENT_SECONDS + 1)) == Wait()
    assert judge(Sight(run(), AT, answers=False, silent=SILENT_SECONDS + 1)) == Wait()
    verdict = judge(Sight(run(), AT, RUNNING, silent=SILENT_SECONDS + 1))
    assert isinstance(verdict, AttemptOver)
    assert verdict.reason is EndReason.LOST


def test_a_stop_is_waited_for_as_long_as_the_job_was_given() -> None:
    stopping = run(policy={"stop_grace": 50.0}, stop_requested=True)
    assert judge(Sight(stopping, AT, RUNNING, asked=60)) == AskToStop()
    assert judge(Sight(stopping, AT, RUNNING, asked=patience(stopping) + 1)) == STOPPED
    assert judge(Sight(stopping, AT, PENDING)) == STOPPED
    assert judge(Sight(run(State.QUEUED, stop_requested=True), AT)) == STOPPED
