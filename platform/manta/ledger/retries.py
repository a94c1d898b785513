"""Whether a run is tried again after an attempt of it has ended. Pure; on the ground floor, for both the
controller and the worker ask."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from manta.definitions import Policy, Retry
from manta.ledger.runs import Attempt, EndReason, Run

# A worker gives a sign of life every few seconds, and ends itself within a few more when it learns that its
# attempt is over: without one for so long, nothing of it is left.
ALIVE_SECONDS = 10.0


@dataclass(frozen=True)
class Again:
    """It goes back to the queue, and starts at ``at`` at the earliest."""

    at: datetime


@dataclass(frozen=True)
class End:
    """It has failed; ``tries`` is how many of its attempts ended for that reason."""

    tries: int


def decide(
    run: Run, attempts: Iterable[Attempt], reason: EndReason, now: datetime, *, out_of_sight: bool = False
) -> Again | End:
    """After ``run``'s present attempt ended for ``reason``. ``attempts`` are all of the run's; what they say
    of the present one does not count. ``out_of_sight``: nobody can tell whether its process has ended.

    Never tried again: what was asked to stop, what Ray's own users submitted, and what could not start
    again before its deadline.
    """
    policy = Policy.of(run.definition).retry
    before = [each.end_reason for each in attempts if each.number < run.attempt]
    tries = before.count(reason) + 1
    if run.stop_requested or run.origin == "ray" or tries > most(policy, reason):
        return End(tries)
    at = now
    if reason is not EndReason.PREEMPTED:
        failures = sum(end is not EndReason.PREEMPTED for end in before)
        # The exponent is bounded, for a float is.
        at += timedelta(seconds=min(policy.backoff * 2.0 ** min(failures, 60), policy.backoff_most))
    if out_of_sight and run.heartbeat_at is not None:
        at = max(at, run.heartbeat_at + timedelta(seconds=ALIVE_SECONDS))
    if run.deadline_at is not None and at >= run.deadline_at:
        return End(tries)
    return Again(at)


def most(policy: Retry, reason: EndReason) -> int:
    """How many attempts that ended for this reason are followed by another."""
    return {
        EndReason.LOST: policy.lost,
        EndReason.OUT_OF_MEMORY: policy.out_of_memory,
        EndReason.PREEMPTED: policy.preempted,
        EndReason.TIMED_OUT: policy.timed_out,
        EndReason.USER_ERROR: policy.user_error,
    }.get(reason, 0)
