"""What a run is: its states, the legal moves between them, and why it ended."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

from manta.definitions import Ref
from manta.errors import Conflict


class State(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PREEMPTING = "PREEMPTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED})
ACTIVE = frozenset(State) - ENDED
WORKING = ACTIVE - {State.QUEUED}

# A lost attempt goes back to QUEUED, to be tried again.
LEGAL: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.STARTING, State.FAILED, State.STOPPED}),
    State.STARTING: frozenset({State.RUNNING, State.QUEUED, State.FAILED, State.STOPPED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.FAILED, State.STOPPED, State.PREEMPTING, State.QUEUED}),
    State.PREEMPTING: frozenset({State.QUEUED, State.SUCCEEDED, State.FAILED, State.STOPPED}),
    State.SUCCEEDED: frozenset(),
    State.FAILED: frozenset(),
    State.STOPPED: frozenset(),
}


class EndReason(StrEnum):
    """Why a run or one attempt of it ended, apart from its state."""

    DONE = "DONE"
    USER_ERROR = "USER_ERROR"  # its code, definition or data
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    LOST = "LOST"  # its node, its process or the cluster went away
    TIMED_OUT = "TIMED_OUT"
    PREEMPTED = "PREEMPTED"
    GATE_FAILED = "GATE_FAILED"
    NEED_FAILED = "NEED_FAILED"  # a run that it needs did not succeed
    STOP_REQUESTED = "STOP_REQUESTED"


def check_move(run_id: int, now: State, to: State) -> None:
    """Raises:
    Conflict: a run in state ``now`` cannot go to ``to``.
    """
    if to not in LEGAL[now]:
        raise Conflict(f"run {run_id} is {now} and cannot become {to}")


class Version(BaseModel):
    """A named version that a run read or produced. ``detail`` is what its kind needs to find it again."""

    model_config = ConfigDict(frozen=True)

    kind: str
    name: str
    version: str
    detail: dict[str, Any] = {}

    @property
    def ref(self) -> Ref:
        return Ref(self.kind, self.name)

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}@{self.version}"


class Progress(BaseModel):
    """How far a run is: ``done`` of ``total`` ``unit`` s; total 0 when it cannot be known."""

    model_config = ConfigDict(frozen=True)

    done: float
    total: float
    unit: str = ""


class Attempt(BaseModel):
    """One try of a run. ``number`` counts from 1; ``accepted_at`` is when Ray was first known to have it;
    ``environment`` is what it ran in: ``python``, ``manta``, ``platform``, and ``lock``, a hash of what was
    installed."""

    model_config = ConfigDict(frozen=True)

    run_id: int
    number: int
    submission: str
    started_at: datetime
    accepted_at: datetime | None = None
    running_at: datetime | None = None
    ended_at: datetime | None = None
    end_reason: EndReason | None = None
    message: str = ""
    environment: dict[str, Any] | None = None


class Run(BaseModel):
    """One execution of a job: a row of the ledger. Times are UTC.

    Attributes:
        origin: ``manta``, or ``ray`` for one that was submitted straight to Ray and adopted.
        priority: of those that wait, the higher goes first.
        not_before: when a lost attempt may be tried again.
        deadline_at: when it must have ended, whatever its state.
        replay_of: the run that it repeats.
        commit: of git, where the project was in a repository when it was submitted; with ``+changes`` where
            files of it had not been committed.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    project: str
    job: str
    kind: str
    definition: dict[str, Any]
    fingerprint: str
    package: str
    params: dict[str, Any] = {}
    needs: tuple[int, ...] = ()
    state: State
    attempt: int = 0
    submission: str = ""
    end_reason: EndReason | None = None
    message: str = ""
    stop_requested: bool = False
    progress: Progress | None = None
    metrics: dict[str, Any] = {}
    created_at: datetime
    started_at: datetime | None = None
    ended_at: datetime | None = None
    heartbeat_at: datetime | None = None
    submitted_by: str = ""
    origin: str = "manta"
    priority: int = 0
    not_before: datetime | None = None
    deadline_at: datetime | None = None
    replay_of: int | None = None
    commit: str = ""
    inputs: tuple[Version, ...] = ()
    outputs: tuple[Version, ...] = ()

    @property
    def seconds(self) -> float | None:
        """From the start of its last attempt to its end; None while it has none."""
        if self.started_at is None or self.ended_at is None:
            return None
        return (self.ended_at - self.started_at).total_seconds()
