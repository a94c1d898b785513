"""The audit log."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from manta.api.context import Before, Limit, Page, Served, page_of
from manta.ledger.records import Entry, Verdict

router = APIRouter(tags=["audit"])


@router.get("/v1/audit", operation_id="audit")
def audit(
    platform: Served,
    project: Annotated[str | None, Query(max_length=64, description="Only what was done in it.")] = None,
    actor: Annotated[str | None, Query(max_length=128, description="Only what this principal did.")] = None,
    before: Before = None,
    limit: Limit = 50,
) -> Page[Entry]:
    """Who did what, and what was refused to whom; newest first."""
    found = platform.ledger.audit.entries(project=project, actor=actor, before=before, limit=limit + 1)
    return page_of(found, limit, "seq")


@router.get("/v1/audit/verify", operation_id="verify_audit")
def verify(
    platform: Served,
    expect: Annotated[
        str | None,
        Query(pattern="^[0-9a-f]{64}$", description="A head seen earlier, that must lie in the log."),
    ] = None,
) -> Verdict:
    """Recompute the whole log's chain of hashes. What is broken is in the answer."""
    return platform.ledger.audit.verify(expect)
