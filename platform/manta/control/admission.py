"""Admission: which queued runs may start now. Pure.

Thin for now: a run starts when its needs have succeeded, its time has come, no other run of its job is at
work, and fewer than ``limit`` runs are. Pools and quotas will decide here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from manta.ledger.runs import Run, State


@dataclass(frozen=True)
class Snapshot:
    """``active`` are all runs that have not ended; ``states`` the state of every run that one of them
    needs; ``limit`` the most runs at work at once; ``at`` the present. ``lingering`` are runs whose last
    attempt is over by the ledger, and whose process has not ended yet."""

    active: tuple[Run, ...]
    states: Mapping[int, State]
    limit: int
    at: datetime
    lingering: tuple[Run, ...] = ()


@dataclass(frozen=True)
class Start:
    run: Run


@dataclass(frozen=True)
class Refuse:
    """The run can never start: one that it needs ended otherwise than SUCCEEDED."""

    run: Run
    need: int


Decision = Start | Refuse


def decide(snapshot: Snapshot) -> list[Decision]:
    """Of higher priority first, of the same the oldest. Does not depend on the order of
    ``snapshot.active``."""
    working = [run for run in snapshot.active if run.state is not State.QUEUED]
    busy = {(run.project, run.job) for run in (*working, *snapshot.lingering)}
    room = snapshot.limit - len(working)
    decisions: list[Decision] = []
    for run in sorted(snapshot.active, key=lambda run: (-run.priority, run.id)):
        if run.state is not State.QUEUED or run.stop_requested:
            continue
        states = {need: snapshot.states[need] for need in run.needs}
        failed = [need for need, state in states.items() if state in (State.FAILED, State.STOPPED)]
        if failed:
            decisions.append(Refuse(run, failed[0]))
            continue
        ready = all(state is State.SUCCEEDED for state in states.values())
        due = run.not_before is None or run.not_before <= snapshot.at
        if ready and due and room > 0 and (run.project, run.job) not in busy:
            decisions.append(Start(run))
            busy.add((run.project, run.job))
            room -= 1
    return decisions
