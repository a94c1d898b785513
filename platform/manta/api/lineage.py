"""Lineage: what something was made from, and what was made from it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from manta.api.context import ProjectName, Served
from manta.ledger.lineage import DEPTH, SIZE
from manta.ledger.records import Direction, Lineage

router = APIRouter(tags=["lineage"])


@router.get("/v1/projects/{project}/lineage", operation_id="lineage")
def lineage(
    project: ProjectName,
    platform: Served,
    of: Annotated[
        str,
        Query(
            min_length=1,
            max_length=300,
            description="`run:17`, `endpoint:delay`, or KIND:NAME@VERSION with the kinds source, dataset, "
            "features, online and model; the newest version without @VERSION.",
            examples=["run:1"],
        ),
    ],
    direction: Direction = "both",
    depth: Annotated[int, Query(ge=1, le=200, description="The most steps from it.")] = DEPTH,
    size: Annotated[int, Query(ge=1, le=5000, description="The most nodes in each direction.")] = SIZE,
) -> Lineage:
    """The versions, runs, promotions and endpoints that it came from and that came of it."""
    return platform.lineage(project, of, direction, depth=depth, size=size)
