"""What the server shows of principals, keys and roles; light, for the client reads it too."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from manta.ledger.roles import Role


class Me(BaseModel):
    """Who the caller is: ``roles`` maps a project, or "*" for all, to a role. ``project``, ``root`` are those
    of the folder that the server was started in, ``trouble`` is what its controller last stumbled over."""

    name: str
    roles: dict[str, Role]
    version: str
    project: str
    root: str
    trouble: str


class Key(BaseModel):
    """An API key, without its secret."""

    prefix: str
    principal: str
    label: str
    created_at: datetime
    created_by: str
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None


class NewKey(Key):
    """``key`` is shown here, once. It is null when the request is answered again, and ``note`` says so."""

    key: str | None
    note: str = ""


class Granted(BaseModel):
    """``project`` "*" is every project."""

    principal: str
    project: str
    role: Role
