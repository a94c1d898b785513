"""What the server shows of principals, keys and roles; the client reads it too."""

from __future__ import annotations

from pydantic import BaseModel

from manta.ledger.records import Key
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


class NewKey(Key):
    """``key`` is shown here, once. It is null when the request is answered again, and ``note`` says so."""

    key: str | None
    note: str = ""


class Granted(BaseModel):
    """``project`` "*" is every project."""

    principal: str
    project: str
    role: Role
