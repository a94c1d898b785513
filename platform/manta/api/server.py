"""The HTTP application: one router per noun over the verbs of Platform, behind one door."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

import manta
from manta.api import (
    access,
    audit,
    health,
    imports,
    leaderboard,
    lineage,
    models,
    openapi,
    packages,
    problems,
    projects,
    runs,
)
from manta.api.access_table import TABLE
from manta.api.door import Door, Routes
from manta.api.idempotency import Idempotency
from manta.api.identity import Identity
from manta.api.limits import Denials, Limits
from manta.api.metrics import Metrics
from manta.app import Platform
from manta.errors import Unavailable

log = logging.getLogger(__name__)
TIDY_SECONDS = 15.0

ROUTERS = (
    health.router,
    access.router,
    packages.router,
    projects.router,
    runs.router,
    models.router,
    imports.router,
    leaderboard.router,
    lineage.router,
    audit.router,
)


def routes() -> list[APIRoute]:
    """Every route there is."""
    return [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]


def create(platform: Platform) -> FastAPI:
    """The application over a platform, whose control loop it starts and ends.

    Raises:
        LookupError: a route is not in the table of who may do what.
    """
    settings, ledger = platform.settings, platform.ledger
    identity = Identity(settings, ledger)
    denials = Denials(ledger.audit)
    idempotency = Idempotency(ledger.requests)
    metrics = Metrics(platform)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ledger.create()
        app.state.owner_key = identity.prepare()
        platform.start()
        tidying = asyncio.create_task(_tidy(identity.note_used, denials.flush, idempotency.purge))
        yield
        tidying.cancel()
        with contextlib.suppress(Unavailable):
            await run_in_threadpool(identity.note_used)
            await run_in_threadpool(partial(denials.flush, all_of_them=True))
        platform.close()

    app = FastAPI(
        title="manta",
        version=manta.__version__,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.platform, app.state.identity, app.state.metrics = platform, identity, metrics
    for router in ROUTERS:
        app.include_router(router)
    problems.add_to(app)
    app.openapi = partial(openapi.describe, app)  # type: ignore[method-assign]
    app.add_middleware(
        Door,
        routes=Routes(routes(), TABLE),
        ledger=ledger,
        identity=identity,
        limits=Limits(settings.requests_per_minute, settings.failures_per_minute),
        denials=denials,
        idempotency=idempotency,
        metrics=metrics,
    )
    return app


async def _tidy(*chores: Callable[[], object]) -> None:
    """Do the chores now and then, until cancelled."""
    while True:
        await asyncio.sleep(TIDY_SECONDS)
        for chore in chores:
            try:
                await run_in_threadpool(chore)
            except Unavailable as error:
                log.warning("%s", error.message)
            except Exception:
                log.exception("chore")
