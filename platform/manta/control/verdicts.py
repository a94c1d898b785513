"""What is to be done about one run, given what is seen of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from manta.control.engine import EngineJob, JobState
from manta.definitions import Policy
from manta.ledger.runs import EndReason, Run, State

# A machine under load is slow, not dead: a worker beats every few seconds, and is given minutes.
SILENT_SECONDS = 300.0
# What a stop may take beyond the run's own grace: Ray's part of it.
STOP_SECONDS = 20.0
# An adopted run may be told of before Ray lists its job.
ADOPTED_SECONDS = 60.0


@dataclass(frozen=True)
class Sight:
    """A run as the ledger has it, and as the engine, asked after the ledger, knows it.

    Attributes:
        job: the engine's view of its present attempt; None when it does not know it, or does not answer.
        answers: whether the engine answers.
        accepted: the engine is known to have had the attempt at some time.
        silent: seconds for which its sign of life has not changed while the ledger could be read.
        asked: seconds since it was first asked to stop; 0 when it was not.
    """

    run: Run
    at: datetime
    job: EngineJob | None = None
    answers: bool = True
    accepted: bool = True
    silent: float = 0.0
    asked: float = 0.0


@dataclass(frozen=True)
class Wait:
    """Nothing is to be done now."""


@dataclass(frozen=True)
class Submit:
    """The ledger says that it starts, and the engine never had it."""


@dataclass(frozen=True)
class AskToStop:
    """Its process is to end by itself, within its grace."""


@dataclass(frozen=True)
class AttemptOver:
    """Its present attempt is over; whether there is another is for :mod:`manta.ledger.retries`."""

    reason: EndReason
    message: str


@dataclass(frozen=True)
class Finish:
    """The run is over."""

    state: State
    reason: EndReason
    message: str = ""


Verdict = Wait | Submit | AskToStop | AttemptOver | Finish
STOPPED = Finish(State.STOPPED, EndReason.STOP_REQUESTED)


def judge(sight: Sight) -> Verdict:
    run, job = sight.run, sight.job
    if job is not None and job.state.ended:
        return _ended_without_a_word(run, job)
    if run.deadline_at is not None and sight.at >= run.deadline_at:
        message = f"its deadline has passed while it was {run.state}"
        return Finish(State.FAILED, EndReason.TIMED_OUT, message)
    if run.stop_requested:
        return _stop(sight)
    if run.state is State.QUEUED:
        return Wait()
    if job is None and sight.answers:
        return _unknown(sight)
    timeout = Policy.of(run.definition).timeout
    if timeout is not None and run.started_at is not None:
        taken = (sight.at - run.started_at).total_seconds()
        if taken > timeout:
            return AttemptOver(EndReason.TIMED_OUT, f"took longer than its timeout of {timeout:g} s")
    if job is None:
        return Wait()
    if job.state is JobState.RUNNING and sight.silent > SILENT_SECONDS:
        return AttemptOver(EndReason.LOST, f"no sign of life for {sight.silent:.0f} s")
    if run.state is State.PREEMPTING:
        if sight.asked > patience(run):
            return AttemptOver(EndReason.PREEMPTED, "")
        return AskToStop()
    return Wait()


def patience(run: Run) -> float:
    """Seconds after which a run that was asked to stop is taken for stopped."""
    return Policy.of(run.definition).stop_grace + STOP_SECONDS


def _ended_without_a_word(run: Run, job: EngineJob) -> Verdict:
    # A worker writes its end to the ledger before its process ends: this one did not get to it.
    if run.stop_requested:
        return STOPPED
    if run.state is State.PREEMPTING:
        return AttemptOver(EndReason.PREEMPTED, "")
    if job.state is JobState.STOPPED:
        return Finish(State.STOPPED, EndReason.STOP_REQUESTED, "stopped in Ray")
    reason = EndReason.OUT_OF_MEMORY if job.out_of_memory else EndReason.LOST
    return AttemptOver(reason, job.message or "its process ended without a word")


def _stop(sight: Sight) -> Verdict:
    run, job = sight.run, sight.job
    if run.state is State.QUEUED or (job is None and sight.answers):
        return STOPPED
    # Ray says it has stopped a PENDING job and lets it start: the worker then finds that the run has ended
    # and leaves.
    if (job is not None and job.state is JobState.PENDING) or sight.asked > patience(run):
        return STOPPED
    return AskToStop()


def _unknown(sight: Sight) -> Verdict:
    run = sight.run
    if run.origin == "ray":
        young = (sight.at - run.created_at).total_seconds() < ADOPTED_SECONDS
        return Wait() if young else AttemptOver(EndReason.LOST, "the cluster no longer knows it")
    if run.state is State.STARTING and not sight.accepted:
        # Also when the engine had it and forgot it before anybody could write that down: a worker begins
        # by moving the run from STARTING, so that of two under one name one executes it and one leaves.
        return Submit()
    if run.state is State.PREEMPTING:
        return AttemptOver(EndReason.PREEMPTED, "")
    return AttemptOver(EndReason.LOST, "the cluster no longer knows it")
