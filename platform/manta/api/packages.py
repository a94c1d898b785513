"""Packages: projects' files by the digest of their content."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from starlette.concurrency import run_in_threadpool

from manta.api.context import Served
from manta.errors import NotFound

router = APIRouter(tags=["packages"])
Package = Annotated[str, Path(pattern=r"^[0-9a-f]{32}$", examples=["0" * 32])]


@router.head("/v1/packages/{package}", operation_id="has_package", response_class=Response)
def has_package(package: Package, platform: Served) -> Response:
    """Whether the server has it."""
    if not platform.has_package(package):
        raise NotFound(f"the package {package} has not been put", hint="PUT it here")
    return Response(status_code=200)


@router.put(
    "/v1/packages/{package}",
    operation_id="put_package",
    status_code=204,
    response_class=Response,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "A zip; the package's name is the first half of its SHA-256.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_package(package: Package, platform: Served, request: Request) -> Response:
    """Keep a package under its digest. Putting it again changes nothing."""
    content = await request.body()
    await run_in_threadpool(platform.put_package, package, content)
    return Response(status_code=204)
