"""Who one is; API keys, and the roles that principals hold in projects."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel, Field

import manta
from manta.api.context import By, Served, Who
from manta.api.identity import Identity
from manta.api.shown import Granted, Me, NewKey
from manta.errors import Conflict
from manta.ledger.actor import OWNER
from manta.ledger.records import Key
from manta.ledger.roles import EVERY_PROJECT, Role

router = APIRouter(tags=["access"])

# Not `controller`, `run:7` or `address:…`, under which the platform itself is in the audit log.
NAME = r"^(owner|(user|ci|team|service):[A-Za-z0-9][A-Za-z0-9._@+|-]{0,99})$"
Principal = Annotated[str, Field(pattern=NAME, examples=["user:ada"])]
InPath = Annotated[str, Path(pattern=NAME, examples=["user:ada"])]
Prefix = Annotated[str, Path(pattern=r"^[0-9a-f]{12}$", examples=["0123456789ab"])]
Project = Annotated[str, Path(pattern=r"^([a-z][a-z0-9_]{0,30}|\*)$", examples=["flights"])]


class KeyWanted(BaseModel):
    """A key for ``principal``; ``days`` until it expires, null for never."""

    principal: Principal
    label: Annotated[str, Field(max_length=100)] = ""
    days: Annotated[int, Field(ge=1, le=3650)] | None = None


class GrantWanted(BaseModel):
    role: Role


@router.get("/v1/me", operation_id="me")
async def me(platform: Served, who: Who) -> Me:
    """Who one is, and which roles one holds."""
    settings = platform.settings
    return Me(
        name=who.name,
        roles=dict(who.roles),
        version=manta.__version__,
        project=settings.project,
        root=str(settings.root),
        trouble=platform.controller.trouble,
    )


@router.get("/v1/keys", operation_id="keys")
def keys(platform: Served) -> list[Key]:
    """Every API key, newest first; revoked ones too."""
    held = platform.ledger.access.keys()
    return [Key(**key.model_dump(exclude={"digest"})) for key in held]


@router.post("/v1/keys", operation_id="create_key", status_code=201)
def create_key(body: KeyWanted, request: Request, response: Response, by: By) -> NewKey:
    """Make an API key. Its secret is in this answer, and nowhere else ever again."""
    response.headers["Cache-Control"] = "no-store"
    identity: Identity = request.app.state.identity
    expires_at = datetime.now(UTC) + timedelta(days=body.days) if body.days else None
    made, key = identity.make_key(body.principal, by=by, label=body.label, expires_at=expires_at)
    return NewKey(**made.model_dump(exclude={"digest"}), key=key)


@router.delete("/v1/keys/{prefix}", operation_id="revoke_key", status_code=204, response_class=Response)
def revoke_key(prefix: Prefix, platform: Served, by: By) -> Response:
    """Revoke a key: the next request with it is refused. Revoking it again changes nothing."""
    platform.ledger.access.revoke_key(prefix, by=by)
    return Response(status_code=204)


@router.get("/v1/grants", operation_id="grants")
def grants(platform: Served) -> list[Granted]:
    """Every role that a principal holds in a project."""
    return [Granted(**grant._asdict()) for grant in platform.ledger.access.grants()]


@router.put("/v1/grants/{principal}/{project}", operation_id="set_grant")
def set_grant(principal: InPath, project: Project, body: GrantWanted, platform: Served, by: By) -> Granted:
    """Give a principal a role in a project ("*": in all), in place of the one it holds there."""
    _keep_an_admin(principal, project, body.role)
    platform.ledger.access.grant(principal, project, body.role, by=by)
    return Granted(principal=principal, project=project, role=body.role)


@router.delete(
    "/v1/grants/{principal}/{project}", operation_id="remove_grant", status_code=204, response_class=Response
)
def remove_grant(principal: InPath, project: Project, platform: Served, by: By) -> Response:
    """Take a principal's role in a project away. Where it holds none, nothing changes."""
    _keep_an_admin(principal, project, None)
    platform.ledger.access.take_away(principal, project, by=by)
    return Response(status_code=204)


def _keep_an_admin(principal: str, project: str, role: Role | None) -> None:
    """Raises:
    Conflict: nobody could give roles any more.
    """
    if (principal, project) == (OWNER.name, EVERY_PROJECT) and role is not Role.ADMIN:
        raise Conflict(
            f"{principal} stays admin of every project: the server would give it back when it starts",
            hint="revoke its keys instead: `manta keys list`",
        )
