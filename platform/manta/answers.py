"""What the platform's verbs answer, as plain data."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from manta.ledger.runs import Run
from manta.plan import Plan


class Applied(BaseModel):
    """What an apply set going: the plan it carried out, and the run of each step, kept ones included."""

    plan: Plan
    runs: dict[str, int]


class ModelVersion(BaseModel):
    """A registered version, the aliases that point at it, and the run that made it."""

    model: str
    version: str
    aliases: tuple[str, ...]
    run: Run


class EndpointInfo(BaseModel):
    """An endpoint with the URL it answers at. ``kind`` is ``endpoint`` or ``lookup``; what a look-up door
    serves has ``features`` for its ``model``."""

    name: str
    kind: str = "endpoint"
    model: str
    state: str
    url: str
    served: dict[str, Any]
    message: str


class Readiness(BaseModel):
    """What each part says: ``ok``, or what is wrong. ``controller`` is the leading one."""

    ledger: str = "ok"
    controller: str = "ok"
    ray: str = "ok"

    @property
    def problems(self) -> dict[str, str]:
        return {name: said for name, said in self.model_dump().items() if said != "ok"}
