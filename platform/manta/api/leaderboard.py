"""The leaderboard of a model: its trainings, the best first."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from manta.api.context import Before, Limit, Page, ProjectName, Served, page_of
from manta.ledger.leaderboard import Standing

router = APIRouter(tags=["models"])


@router.get("/v1/projects/{project}/models/{model}/leaderboard", operation_id="leaderboard")
def leaderboard(
    project: ProjectName,
    model: Annotated[str, Path(pattern=r"^[a-z][a-z0-9_-]{0,62}$")],
    platform: Served,
    metric: Annotated[
        str | None,
        Query(min_length=1, max_length=64, description="To rank by: roc_auc, or rmse of a regression."),
    ] = None,
    everything: Annotated[
        bool, Query(description="Also replays, and what was never measured: at work, failed, stopped.")
    ] = False,
    before: Before = None,
    limit: Limit = 50,
) -> Page[Standing]:
    """The runs that trained the model, the best first; those that a gate refused are among them."""
    found = platform.models.leaderboard(
        project, model, metric, everything=everything, before=before, limit=limit + 1
    )
    return page_of(found, limit, "run")
