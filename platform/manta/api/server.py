"""The HTTP application: one router per noun over the verbs of Platform, errors as problem objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

import manta
from manta.api import health, models, packages, projects, runs
from manta.app import Platform
from manta.errors import InvalidInput, MantaError

ROUTERS = (health.router, packages.router, projects.router, runs.router, models.router)


def create(platform: Platform) -> FastAPI:
    """The application over a platform, whose control loop it starts and ends."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        platform.start()
        yield
        platform.close()

    app = FastAPI(
        title="manta",
        version=manta.__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.platform = platform
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(MantaError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


def _problem(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MantaError)
    return JSONResponse(error.problem(), error.http_status, media_type="application/problem+json")


def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    lines = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
    return _problem(request, InvalidInput(lines, hint="see the schema: GET /openapi.json"))
