"""Models that were made elsewhere: put, and taken in by a training."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Path, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from manta.api.context import By, ProjectName, Served, check_is
from manta.api.runs import JobName
from manta.errors import NotFound
from manta.ledger.runs import Run
from manta.project import Project

router = APIRouter(tags=["models"])

DIGEST = r"^[0-9a-f]{64}$"
Sha256 = Annotated[str, Path(pattern=DIGEST, examples=["0" * 64])]


class Import(BaseModel):
    """A file that was put, to be taken in as a version of what ``training`` trains. ``file`` is its name: it
    must not contradict what the file is."""

    project: Project
    training: JobName
    sha256: Annotated[str, Field(pattern=DIGEST)]
    file: Annotated[str, Field(pattern=r"^[^/\\\x00-\x1f]{1,200}$")] = "model"
    key: Annotated[str, Field(min_length=1, max_length=128)] | None = None


@router.head("/v1/foreign/{sha256}", operation_id="has_foreign", response_class=Response)
def has_foreign(sha256: Sha256, platform: Served) -> Response:
    """Whether the server has it."""
    if not platform.has_foreign(sha256):
        raise NotFound(f"the file {sha256} has not been put", hint="PUT it here")
    return Response(status_code=200)


@router.put(
    "/v1/foreign/{sha256}",
    operation_id="put_foreign",
    status_code=204,
    response_class=Response,
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "ONNX, XGBoost JSON or UBJ, safetensors, or an MLflow folder as a zip.",
            "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
async def put_foreign(sha256: Sha256, platform: Served, request: Request) -> Response:
    """Keep a model's file under its digest. It is not looked into before a run takes it in."""
    content = await request.body()
    await run_in_threadpool(platform.put_foreign, sha256, content)
    return Response(status_code=204)


@router.post("/v1/projects/{project}/imports", operation_id="import_model", status_code=201)
def import_model(
    project: ProjectName,
    body: Import,
    platform: Served,
    by: By,
    idempotency_key: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Run:
    """Submit a run that takes a file in instead of fitting, through the training's own gates."""
    check_is(body.project, project)
    key = body.key or idempotency_key
    return platform.import_model(body.project, body.training, body.sha256, body.file, key, by=by)
