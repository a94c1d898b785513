"""An endpoint as the ledger holds it: what is wanted, and what was last seen to be served."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class EndpointRow(BaseModel):
    """``state`` is WANTED (not yet up), READY, or FAILED with ``message``; ``served`` is the user
    configuration last accepted by Ray Serve: model version, location, digest."""

    model_config = ConfigDict(frozen=True)

    project: str
    name: str
    definition: dict[str, Any]
    package: str
    fingerprint: str
    state: str
    served: dict[str, Any]
    message: str
    changed_at: datetime

    @property
    def route(self) -> str:
        """The path prefix under which Ray Serve answers for it."""
        return f"/{self.project}/{self.name}"
