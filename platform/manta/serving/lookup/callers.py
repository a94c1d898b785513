"""Who may use the door: manta's keys and roles, asked of its server and remembered for seconds.

The server is asked once for a key, not once for a request. What it said holds for :data:`REMEMBERED` seconds;
of a key in use it is asked again before they are over, so that nobody waits for it. So a key that was
revoked, or a role that was taken away, opens nothing :data:`REMEMBERED` seconds later. While the server does
not answer, a key that was right goes on for :data:`GRACE` seconds more: look-ups outlive the control plane.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field

import httpx

from manta.errors import Forbidden, MantaError, NotFound, Unauthenticated, Unavailable, from_problem
from manta.ledger.roles import EVERY_PROJECT, Role

REMEMBERED = 10.0
ASKED_AGAIN = 5.0
GRACE = 300.0
MOST_REMEMBERED = 10_000
HINT = (
    "send `Authorization: Bearer KEY`; a Feast SDK does, with `auth: {type: oidc, token_env_var: "
    "MANTA_API_KEY}` in its feature_store.yaml"
)


@dataclass
class _Known:
    """What the server said of a key, and when: roles, or why it opens nothing."""

    at: float
    roles: Mapping[str, Role] = field(default_factory=dict)
    error: MantaError | None = None


class Callers:
    """Tells what the callers of one project's door may do. For one event loop."""

    def __init__(self, server_url: str, project: str) -> None:
        self._http = httpx.AsyncClient(base_url=server_url, timeout=5.0)
        self._project = project
        self._known: OrderedDict[bytes, _Known] = OrderedDict()
        self._asking: dict[bytes, asyncio.Task[_Known]] = {}

    async def require(self, authorization: str, role: Role) -> None:
        """Returns when who shows this header holds the role in the project.

        Raises:
            Unauthenticated: no credentials, or bad ones.
            NotFound: no role in this project: it does not exist for the caller.
            Forbidden: a lesser role.
            TooMany, Unavailable: manta's server does not say, and has not said of late.
        """
        scheme, _, shown = authorization.partition(" ")
        if scheme.lower() != "bearer" or not shown.strip():
            raise Unauthenticated("this needs an API key or a token", hint=HINT)
        known = await self._of(authorization)
        if known.error is not None:
            raise known.error
        held = [known.roles[place] for place in (EVERY_PROJECT, self._project) if place in known.roles]
        if not held:
            raise NotFound(f"there is no project {self._project!r}", hint="ask its operator for a role in it")
        if not any(each.covers(role) for each in held):
            raise Forbidden(
                f"this needs the role {role} in {self._project}", hint="ask its operator for the role"
            )

    async def _of(self, authorization: str) -> _Known:
        name = hashlib.sha256(authorization.encode()).digest()
        known = self._known.get(name)
        age = time.monotonic() - known.at if known else REMEMBERED
        if known is not None and age < ASKED_AGAIN:
            return known
        task = self._asking.get(name)
        if task is None:
            task = asyncio.create_task(self._ask(name, authorization))
            self._asking[name] = task
            task.add_done_callback(lambda _: self._asking.pop(name, None))
        if known is not None and age < REMEMBERED:
            return known
        return await asyncio.shield(task)

    async def _ask(self, name: bytes, authorization: str) -> _Known:
        began = time.monotonic()
        try:
            answer = await self._http.get("/v1/me", headers={"authorization": authorization})
            said = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            silent = f"manta's server, which knows the keys, does not answer: {type(error).__name__}"
            return self._unsaid(name, Unavailable(silent, hint="try again; `manta status` shows what is up"))
        if answer.status_code == 200:
            roles = {project: Role(role) for project, role in said["roles"].items()}
            return self._remember(name, _Known(began, roles))
        if answer.status_code == 401:
            return self._remember(name, _Known(began, error=Unauthenticated(said["detail"], hint=HINT)))
        return self._unsaid(name, from_problem(said))

    def _unsaid(self, name: bytes, error: MantaError) -> _Known:
        """The server did not say: what it said before holds for a while."""
        known, now = self._known.get(name), time.monotonic()
        if known is not None and known.error is None and now - known.at < GRACE:
            return known
        return _Known(now, error=error)

    def _remember(self, name: bytes, known: _Known) -> _Known:
        self._known[name] = known
        self._known.move_to_end(name)
        while len(self._known) > MOST_REMEMBERED:
            self._known.popitem(last=False)
        return known

    async def close(self) -> None:
        await self._http.aclose()
