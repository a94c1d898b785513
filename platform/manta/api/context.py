"""What a route is given: the platform, and who asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Depends, Path, Query, Request
from pydantic import BaseModel

from manta.api.identity import Principal
from manta.app import Platform
from manta.errors import DefinitionInvalid
from manta.ledger.actor import Actor
from manta.project import Project

MOST_ROWS = 1000
BIGGEST_ID = 2**31 - 1  # what the ledger's integers hold

T = TypeVar("T")


class Page(BaseModel, Generic[T]):
    """Some of a list, newest first. ``next`` is the value of ``before`` that goes on from here; null at the
    end."""

    items: list[T]
    next: int | None = None


def page_of(found: Sequence[Any], limit: int, cursor: str) -> Page[Any]:
    """The page of ``limit`` items when ``limit + 1`` were asked for; ``cursor`` names their ordered field."""
    items = list(found[:limit])
    return Page(items=items, next=getattr(items[-1], cursor) if len(found) > limit else None)


# Asynchronous, so that they cost no change of thread.
async def _platform(request: Request) -> Platform:
    platform: Platform = request.app.state.platform
    return platform


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


async def _by(request: Request) -> Actor:
    return Actor(request.state.principal.name, "http")


Served = Annotated[Platform, Depends(_platform)]
Who = Annotated[Principal, Depends(_principal)]
By = Annotated[Actor, Depends(_by)]
ProjectName = Annotated[str, Path(pattern=r"^[a-z][a-z0-9_]{0,30}$", examples=["flights"])]
RunId = Annotated[int, Path(ge=1, le=BIGGEST_ID, examples=[1])]
Before = Annotated[int | None, Query(ge=1, le=BIGGEST_ID, description="Go on from here: a page's `next`.")]
Limit = Annotated[int, Query(ge=1, le=MOST_ROWS, description="The most items of one page.")]


def check_is(project: Project, name: str) -> None:
    """Raises:
    DefinitionInvalid: the project in the body is not the one in the path, for which the caller has a role.
    """
    if project.name != name:
        raise DefinitionInvalid(
            f"the body holds the project {project.name!r}, and the path names {name!r}",
            hint="send a project to its own path",
        )
