"""Models and endpoints of a project."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from manta.answers import EndpointInfo, ModelVersion
from manta.api.context import ProjectName, Served

router = APIRouter(tags=["models"])


@router.get("/v1/projects/{project}/models", operation_id="models")
def models(project: ProjectName, platform: Served) -> list[ModelVersion]:
    """Every registered version, newest first."""
    return platform.models(project)


@router.get("/v1/projects/{project}/endpoints", operation_id="endpoints")
def endpoints(project: ProjectName, platform: Served) -> list[EndpointInfo]:
    """The endpoints, and what they serve."""
    return platform.endpoints(project)


@router.get("/v1/projects/{project}/endpoints/{name}", operation_id="endpoint")
def endpoint(
    project: ProjectName, name: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], platform: Served
) -> EndpointInfo:
    """One endpoint."""
    return platform.endpoint(project, name)
