"""Runs: submit, adopt, list, read, stop."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, Field

from manta.api.context import (
    BIGGEST_ID,
    MOST_ROWS,
    Before,
    By,
    Limit,
    Page,
    ProjectName,
    RunId,
    Served,
    check_is,
    page_of,
)
from manta.ledger.comparison import Comparison
from manta.ledger.manifest import Manifest
from manta.ledger.runs import Attempt, Run
from manta.project import Project

router = APIRouter(tags=["runs"])

JobName = Annotated[str, Field(max_length=63)]


class Submission(BaseModel):
    """A run to be submitted. ``key`` makes sending it twice harmless, as the header Idempotency-Key does."""

    project: Project
    job: JobName
    params: dict[str, Any] = {}
    key: Annotated[str, Field(min_length=1, max_length=128)] | None = None


class Adoption(BaseModel):
    """A run that was submitted straight to Ray, as ``submission``, and executes already."""

    project: Project
    job: JobName
    params: dict[str, Any] = {}
    submission: Annotated[str, Field(min_length=1, max_length=100)]


class Happening(BaseModel):
    """Something that happened to a run."""

    at: datetime
    what: str
    detail: dict[str, Any]


@router.post("/v1/projects/{project}/runs", operation_id="submit", status_code=201)
def submit(
    project: ProjectName,
    body: Submission,
    platform: Served,
    by: By,
    idempotency_key: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Run:
    """Submit one run of a job, fresh or not. The same key again answers the same run."""
    check_is(body.project, project)
    return platform.run(body.project, body.job, body.params, body.key or idempotency_key, by=by)


@router.post("/v1/projects/{project}/adoptions", operation_id="adopt", status_code=201)
def adopt(project: ProjectName, body: Adoption, platform: Served, by: By) -> Run:
    """Take a run that was submitted straight to Ray into the ledger."""
    check_is(body.project, project)
    return platform.adopt(body.project, body.job, body.params, body.submission, by=by)


@router.get("/v1/projects/{project}/runs", operation_id="runs")
def runs(
    project: ProjectName,
    platform: Served,
    job: Annotated[str | None, Query(max_length=63)] = None,
    active: Annotated[bool, Query(description="Only those that have not ended.")] = False,
    ids: Annotated[
        list[Annotated[int, Field(ge=1, le=BIGGEST_ID)]] | None, Query(max_length=MOST_ROWS)
    ] = None,
    before: Before = None,
    limit: Limit = 50,
) -> Page[Run]:
    """The project's runs, newest first."""
    found = platform.runs(project, job=job, active=active, ids=ids, before=before, limit=limit + 1)
    return page_of(found, limit, "id")


@router.get("/v1/runs/{run_id}", operation_id="run")
def run(run_id: RunId, platform: Served) -> Run:
    """One run."""
    return platform.get_run(run_id)


@router.get("/v1/runs/{run_id}/events", operation_id="events")
def events(run_id: RunId, platform: Served) -> list[Happening]:
    """What happened to it, oldest first."""
    return [Happening(**event._asdict()) for event in platform.events(run_id)]


@router.get("/v1/runs/{run_id}/attempts", operation_id="attempts")
def attempts(run_id: RunId, platform: Served) -> list[Attempt]:
    """Its tries, oldest first."""
    return platform.attempts(run_id)


@router.get(
    "/v1/runs/{run_id}/logs",
    operation_id="logs",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "headers": {
                "Manta-Next-Offset": {
                    "description": "The offset to go on from.",
                    "schema": {"type": "integer"},
                },
                "Manta-Run-State": {
                    "description": "The run's state, read before its log: once it has ended, an empty answer "
                    "is the log's end.",
                    "schema": {"type": "string"},
                },
            },
        }
    },
)
def logs(
    run_id: RunId,
    platform: Served,
    offset: Annotated[int, Query(ge=0, le=2**40, description="Bytes to leave out.")] = 0,
    attempt: Annotated[
        int | None, Query(ge=1, le=BIGGEST_ID, description="The last attempt unless given.")
    ] = None,
) -> Response:
    """What an attempt has printed so far, at most 4 MiB from `offset` on."""
    state = platform.get_run(run_id).state
    content, onward = platform.logs(run_id, attempt, offset)
    headers = {"Manta-Next-Offset": str(onward), "Manta-Run-State": str(state)}
    return Response(content, media_type="text/plain; charset=utf-8", headers=headers)


@router.post("/v1/runs/{run_id}/stop", operation_id="stop")
def stop(run_id: RunId, platform: Served, by: By) -> Run:
    """Ask for it to be stopped. Answers at once; read the run until it has ended."""
    return platform.stop(run_id, by=by)


@router.post("/v1/runs/{run_id}/replay", operation_id="replay", status_code=201)
def replay(run_id: RunId, platform: Served, by: By) -> Run:
    """Run it again, from the very versions that it read. What that makes becomes nobody's newest."""
    return platform.replay(run_id, by=by)


@router.get("/v1/runs/{run_id}/manifest", operation_id="manifest")
def manifest(run_id: RunId, platform: Served) -> Manifest:
    """All that decides what the run makes: code, parameters, versions read, environment; and one id of it."""
    return platform.manifest(run_id)


@router.get("/v1/runs/{run_id}/comparison", operation_id="comparison")
def comparison(run_id: RunId, platform: Served) -> Comparison:
    """Whether a replay made the same as the run that it repeats; `equal` is null until it has succeeded."""
    return platform.comparison(run_id)
