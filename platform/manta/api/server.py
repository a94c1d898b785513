"""The HTTP application: one route per verb of Platform, errors as problem objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel

import manta
from manta.app import Applied, EndpointInfo, ModelVersion, Platform
from manta.errors import InvalidInput, MantaError
from manta.ledger.runs import Run
from manta.plan import Plan
from manta.project import Project


class Submission(BaseModel):
    """A run to be submitted. ``key`` makes sending it twice harmless."""

    project: Project
    job: str
    params: dict[str, Any] = {}
    key: str | None = None


class Health(BaseModel):
    """``trouble`` is what the controller last stumbled over; empty when nothing."""

    project: str
    root: str
    version: str
    trouble: str


def create(platform: Platform) -> FastAPI:
    """The application over a platform, whose control loop it starts and ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        platform.start()
        yield
        platform.close()

    app = FastAPI(title="manta", version=manta.__version__, lifespan=lifespan)
    app.add_exception_handler(MantaError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)

    @app.get("/healthz")
    def healthz() -> Health:
        settings = platform.settings
        return Health(
            project=settings.project,
            root=str(settings.root),
            version=manta.__version__,
            trouble=platform.controller.trouble,
        )

    @app.head("/v1/packages/{package}")
    def has_package(package: str) -> Response:
        return Response(status_code=200 if platform.has_package(package) else 404)

    @app.put("/v1/packages/{package}", status_code=204)
    async def put_package(package: str, request: Request) -> Response:
        platform.put_package(package, await request.body())
        return Response(status_code=204)

    @app.post("/v1/plan")
    def plan(project: Project) -> Plan:
        return platform.plan(project)

    @app.post("/v1/apply")
    def apply(project: Project) -> Applied:
        return platform.apply(project)

    @app.post("/v1/runs", status_code=201)
    def submit(submission: Submission) -> Run:
        return platform.run(submission.project, submission.job, submission.params, submission.key)

    @app.get("/v1/runs")
    def runs(
        job: str | None = None,
        active: bool = False,
        ids: Annotated[list[int] | None, Query()] = None,
        limit: int = 50,
    ) -> list[Run]:
        return platform.runs(job=job, active=active, ids=ids, limit=min(max(limit, 1), 1000))

    @app.get("/v1/runs/{run_id}")
    def get_run(run_id: int) -> Run:
        return platform.get_run(run_id)

    @app.get("/v1/runs/{run_id}/logs", response_class=PlainTextResponse)
    def logs(run_id: int) -> str:
        return platform.logs(run_id)

    @app.post("/v1/runs/{run_id}/stop")
    def stop(run_id: int) -> Run:
        return platform.stop(run_id)

    @app.get("/v1/models")
    def models() -> list[ModelVersion]:
        return platform.models()

    @app.get("/v1/endpoints")
    def endpoints() -> list[EndpointInfo]:
        return platform.endpoints()

    @app.get("/v1/endpoints/{name}")
    def endpoint(name: str) -> EndpointInfo:
        return platform.endpoint(name)

    return app


def _problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MantaError)
    return JSONResponse(error.problem(), error.http_status, media_type="application/problem+json")


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return _problem(request, InvalidInput(lines, hint=f"see the schema at {request.base_url}docs"))
