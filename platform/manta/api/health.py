"""Whether the server lives and can work."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel

import manta
from manta.api.context import Served

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """``project`` and ``root`` are those of the folder that the server was started in; ``trouble`` is what
    the controller last stumbled over, empty when nothing."""

    status: str = "ok"
    version: str
    project: str
    root: str
    trouble: str


@router.get("/healthz", operation_id="healthz")
async def healthz(platform: Served) -> Health:
    """Whether the server answers."""
    settings = platform.settings
    return Health(
        version=manta.__version__,
        project=settings.project,
        root=str(settings.root),
        trouble=platform.controller.trouble,
    )


@router.get("/openapi.json", operation_id="openapi", include_in_schema=False)
async def openapi(request: Request) -> dict[str, Any]:
    """This interface, as OpenAPI 3.1."""
    described: dict[str, Any] = request.app.openapi()
    return described
