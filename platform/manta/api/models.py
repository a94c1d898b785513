"""Models and endpoints of a project."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field, StringConstraints

from manta.answers import EndpointInfo, ModelVersion
from manta.api.context import Before, By, Limit, Page, ProjectName, Served, page_of
from manta.ledger.records import Promotion

router = APIRouter(tags=["models"])

NAME = r"^[a-z][a-z0-9_-]{0,62}$"

Name = Annotated[str, Path(pattern=NAME)]
VersionName = Annotated[str, Field(pattern=r"^[0-9A-Za-z_.-]{1,64}$", examples=["3"])]
Why = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=1000)]


class _Move(BaseModel):
    """``expect`` is the version that was seen to hold the alias, null for none."""

    alias: Annotated[str, Field(pattern=NAME)] = "champion"
    expect: VersionName | None
    why: Why


class Promote(_Move):
    version: VersionName


class Rollback(_Move):
    pass


@router.get("/v1/projects/{project}/models", operation_id="models")
def models(project: ProjectName, platform: Served) -> list[ModelVersion]:
    """Every registered version, newest first."""
    return platform.models.versions(project)


@router.get("/v1/projects/{project}/models/{name}/history", operation_id="history")
def history(
    project: ProjectName,
    name: Name,
    platform: Served,
    alias: Annotated[str | None, Query(pattern=NAME, description="Only of this alias.")] = None,
    before: Before = None,
    limit: Limit = 50,
) -> Page[Promotion]:
    """The moves of a model's aliases, newest first: who, when, why, and what the gates said."""
    found = platform.models.history(project, name, alias, before=before, limit=limit + 1)
    return page_of(found, limit, "id")


@router.post("/v1/projects/{project}/models/{name}/promote", operation_id="promote")
def promote(project: ProjectName, name: Name, body: Promote, platform: Served, by: By) -> Promotion:
    """Point an alias at a registered version, if it still points at `expect`. Endpoints follow it."""
    return platform.models.promote(
        project, name, body.version, body.alias, expect=body.expect, why=body.why, by=by
    )


@router.post("/v1/projects/{project}/models/{name}/rollback", operation_id="rollback")
def rollback(project: ProjectName, name: Name, body: Rollback, platform: Served, by: By) -> Promotion:
    """Point an alias at the version that held it before, if it still points at `expect`."""
    return platform.models.rollback(project, name, body.alias, expect=body.expect, why=body.why, by=by)


@router.get("/v1/projects/{project}/endpoints", operation_id="endpoints")
def endpoints(project: ProjectName, platform: Served) -> list[EndpointInfo]:
    """The endpoints, and what they serve."""
    return platform.endpoints(project)


@router.get("/v1/projects/{project}/endpoints/{name}", operation_id="endpoint")
def endpoint(project: ProjectName, name: Name, platform: Served) -> EndpointInfo:
    """One endpoint."""
    return platform.endpoint(project, name)
