"""What the ledger tells, as plain data: whoever only shows it, as the command line does, needs no SQL."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

Direction = Literal["up", "down", "both"]


class Key(BaseModel):
    """An API key, without its secret."""

    model_config = ConfigDict(frozen=True)

    prefix: str
    principal: str
    label: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class ApiKey(Key):
    """A key as the ledger knows it; the key itself is shown once, when it is made, and kept nowhere.
    ``digest`` is left out of what is shown."""

    digest: str


class Grant(NamedTuple):
    """``project`` "*" is every project."""

    principal: str
    project: str
    role: str


class Entry(BaseModel):
    """One line of the log. ``outcome`` is ``done`` or ``denied``; ``project`` may be empty."""

    model_config = ConfigDict(frozen=True)

    seq: int
    at: datetime
    actor: str
    door: str
    action: str
    target: str
    project: str
    outcome: str
    detail: dict[str, Any]
    previous: str
    hash: str


class Verdict(BaseModel):
    """What a verification found. ``broken`` is the first entry that does not fit, 0 for the head itself, None
    when all fit. ``head`` is the last hash: keep it elsewhere, and a log rewritten as a whole shows."""

    entries: int
    head: str
    broken: int | None = None
    why: str = ""


class Promotion(BaseModel):
    """One move of an alias.

    Attributes:
        previous: the version that held it before; None for the first.
        kind: ``rollback`` where an earlier move was taken back.
        by: a principal, or the run that trained the version.
        gates: what each gate said of the version, with the names of :class:`manta.training.gates.Result`.
    """

    model_config = ConfigDict(frozen=True)

    id: int
    model: str
    alias: str
    version: str
    previous: str | None = None
    kind: Literal["promote", "rollback"] = "promote"
    by: str = ""
    why: str = ""
    at: datetime
    run_id: int | None = None
    gates: tuple[dict[str, Any], ...] = ()


class Node(BaseModel):
    """``id`` names it in edges. ``detail`` says more of it: of a run its job, state, package, fingerprint,
    lock, parameters and seed; of a version what its producer kept with it."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str
    name: str
    version: str = ""
    detail: dict[str, Any] = {}


class Edge(NamedTuple):
    """``source`` was there before ``target``; ``what`` is one of ``read``, ``made``, ``promoted``,
    ``serves``."""

    source: str
    target: str
    what: str


class Lineage(BaseModel):
    """``truncated`` when there is more than was asked for: deeper, or wider."""

    of: str
    direction: Direction
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    truncated: bool
