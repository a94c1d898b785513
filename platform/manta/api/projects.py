"""Projects: plan and apply."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from manta.answers import Applied
from manta.api.context import By, ProjectName, Served, Who, check_is
from manta.plan import Plan
from manta.project import Project

router = APIRouter(tags=["projects"])

Acknowledge = Annotated[
    bool, Query(description="What the plan lists under `breaks` may be broken; without it, that is refused.")
]


@router.get("/v1/projects", operation_id="projects")
def projects(platform: Served, who: Who) -> list[str]:
    """The names of the projects that one may see."""
    return [name for name in platform.projects() if who.sees(name)]


@router.post("/v1/projects/{project}/plan", operation_id="plan")
def plan(project: ProjectName, body: Project, platform: Served) -> Plan:
    """What an apply would do, and why. Changes nothing."""
    check_is(body, project)
    return platform.plan(body)


@router.post("/v1/projects/{project}/apply", operation_id="apply")
def apply(
    project: ProjectName, body: Project, platform: Served, by: By, acknowledge: Acknowledge = False
) -> Applied:
    """Make the platform hold what the project defines. Answers when all is set going."""
    check_is(body, project)
    return platform.apply(body, by=by, acknowledge=acknowledge)
