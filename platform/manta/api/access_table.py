"""Who may do what: every route, the role that it needs, and where it needs it.

A route that is not in the table makes :func:`manta.api.server.create` fail: nothing is open by omission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from manta.definitions.training import MOST_IMPORT_BYTES
from manta.ledger.roles import EVERY_PROJECT, Role

KIB, MIB = 2**10, 2**20


class Where(Enum):
    """Where one must hold the role."""

    OPEN = "open"  # nowhere: anybody may, without credentials
    ANY = "any"  # nowhere: every principal may
    SOME = "some"  # in at least one project
    PATH = "path"  # in the project that the path names
    RUN = "run"  # in the project of the run that the path names
    QUERY = "query"  # in the project that ?project= names; in every project when it names none
    EVERY = "every"  # in every project


class Takes(Enum):
    """What a request's body holds."""

    NOTHING = "nothing"
    JSON = "json"
    BYTES = "bytes"


@dataclass(frozen=True)
class Rule:
    """One line of the table. ``once`` names fields of the answer that are shown once and never kept."""

    where: Where
    role: Role = Role.VIEWER
    takes: Takes = Takes.NOTHING
    most_bytes: int = 64 * KIB
    once: tuple[str, ...] = ()


def _json(where: Where, role: Role, most_bytes: int = 16 * MIB, once: tuple[str, ...] = ()) -> Rule:
    return Rule(where, role, Takes.JSON, most_bytes, once)


VIEWER, DEVELOPER, OPERATOR, ADMIN = Role
P = "/v1/projects/{project}"
R = "/v1/runs/{run_id}"

TABLE: Mapping[tuple[str, str], Rule] = {
    ("GET", "/healthz"): Rule(Where.OPEN),
    ("GET", "/readyz"): Rule(Where.OPEN),
    ("GET", "/metrics"): Rule(Where.OPEN),
    ("GET", "/openapi.json"): Rule(Where.ANY),
    ("GET", "/v1/me"): Rule(Where.ANY),
    ("GET", "/v1/projects"): Rule(Where.ANY),
    ("HEAD", "/v1/packages/{package}"): Rule(Where.SOME, DEVELOPER),
    ("PUT", "/v1/packages/{package}"): Rule(Where.SOME, DEVELOPER, Takes.BYTES, 65 * MIB),
    ("HEAD", "/v1/foreign/{sha256}"): Rule(Where.SOME, DEVELOPER),
    ("PUT", "/v1/foreign/{sha256}"): Rule(Where.SOME, DEVELOPER, Takes.BYTES, MOST_IMPORT_BYTES),
    ("POST", P + "/imports"): _json(Where.PATH, DEVELOPER),
    ("POST", P + "/plan"): _json(Where.PATH, DEVELOPER),
    ("POST", P + "/apply"): _json(Where.PATH, OPERATOR),
    ("POST", P + "/runs"): _json(Where.PATH, DEVELOPER),
    ("POST", P + "/adoptions"): _json(Where.PATH, DEVELOPER),
    ("GET", P + "/runs"): Rule(Where.PATH, VIEWER),
    ("GET", P + "/models"): Rule(Where.PATH, VIEWER),
    ("GET", P + "/models/{name}/history"): Rule(Where.PATH, VIEWER),
    ("POST", P + "/models/{name}/promote"): _json(Where.PATH, OPERATOR, 64 * KIB),
    ("POST", P + "/models/{name}/rollback"): _json(Where.PATH, OPERATOR, 64 * KIB),
    ("GET", P + "/models/{model}/leaderboard"): Rule(Where.PATH, VIEWER),
    ("GET", P + "/endpoints"): Rule(Where.PATH, VIEWER),
    ("GET", P + "/endpoints/{name}"): Rule(Where.PATH, VIEWER),
    ("GET", P + "/lineage"): Rule(Where.PATH, VIEWER),
    ("GET", R): Rule(Where.RUN, VIEWER),
    ("GET", R + "/events"): Rule(Where.RUN, VIEWER),
    ("GET", R + "/attempts"): Rule(Where.RUN, VIEWER),
    ("GET", R + "/logs"): Rule(Where.RUN, VIEWER),
    ("GET", R + "/manifest"): Rule(Where.RUN, VIEWER),
    ("GET", R + "/comparison"): Rule(Where.RUN, VIEWER),
    ("POST", R + "/stop"): Rule(Where.RUN, DEVELOPER),
    ("POST", R + "/replay"): Rule(Where.RUN, DEVELOPER),
    ("GET", "/v1/audit"): Rule(Where.QUERY, ADMIN),
    ("GET", "/v1/audit/verify"): Rule(Where.EVERY, ADMIN),
    ("GET", "/v1/keys"): Rule(Where.EVERY, ADMIN),
    ("POST", "/v1/keys"): _json(Where.EVERY, ADMIN, 64 * KIB, once=("key",)),
    ("DELETE", "/v1/keys/{prefix}"): Rule(Where.EVERY, ADMIN),
    ("GET", "/v1/grants"): Rule(Where.EVERY, ADMIN),
    ("PUT", "/v1/grants/{principal}/{project}"): _json(Where.EVERY, ADMIN, 64 * KIB),
    ("DELETE", "/v1/grants/{principal}/{project}"): Rule(Where.EVERY, ADMIN),
}


class Decision(Enum):
    ALLOW = "allow"
    REFUSE = "refuse"  # 403: one may see it, and not do this
    HIDE = "hide"  # 404: as if it were not there


def decide(rule: Rule, roles: Mapping[str, Role], project: str | None) -> Decision:
    """Whether a principal with ``roles`` (project or "*" → role) may; ``project`` is the one that the request
    is about, None when it is about none."""
    everywhere = roles.get(EVERY_PROJECT)
    if rule.where in (Where.OPEN, Where.ANY):
        return Decision.ALLOW
    if rule.where is Where.SOME:
        held = list(roles.values())
    elif rule.where is Where.EVERY or project is None:
        held = [everywhere] if everywhere else []
    else:
        held = [role for role in (everywhere, roles.get(project)) if role]
        if not held:
            return Decision.HIDE
    return Decision.ALLOW if any(role.covers(rule.role) for role in held) else Decision.REFUSE
