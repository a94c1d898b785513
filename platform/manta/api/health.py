"""Whether the server lives and can work, what it counts, and what it can be asked."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

import manta
from manta.answers import Readiness
from manta.api.context import Served
from manta.errors import Unavailable

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str


@router.get("/healthz", operation_id="healthz")
async def healthz() -> Health:
    """Whether the server answers. Asks nothing of the parts behind it."""
    return Health(version=manta.__version__)


@router.get("/readyz", operation_id="readyz")
def readyz(platform: Served) -> Readiness:
    """Whether it can do its work: the ledger and Ray answer, and a controller leads. 503 when not."""
    found = platform.readiness()
    missing = [f"{name}: {said}" for name, said in found.problems.items()]
    if missing:
        raise Unavailable("; ".join(missing), hint="`manta status` shows what is up")
    return found


@router.get(
    "/metrics",
    operation_id="metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
def metrics(request: Request) -> Response:
    """What the server counts, in Prometheus' text format."""
    return Response(request.app.state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/openapi.json", operation_id="openapi")
async def openapi(request: Request) -> dict[str, Any]:
    """This interface, as OpenAPI 3.1."""
    described: dict[str, Any] = request.app.openapi()
    return described
