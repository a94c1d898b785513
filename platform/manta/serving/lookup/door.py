"""The door itself: paths, methods, bodies and refusals. Neither Ray nor Feast is known here.

Feast's paths are answered as Feast's feature server answers them; refusals are problem objects (RFC 9457),
which a Feast SDK shows in its error.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NamedTuple

from manta.definitions import Lookup
from manta.errors import NotFound, Unavailable
from manta.features.catalog import Catalog
from manta.features.stores import OnlineStore, open_store_of
from manta.ledger.roles import Role
from manta.serving.http import JSON, Answer, Asked, answered, require_media_type
from manta.serving.lookup import messages
from manta.serving.lookup.callers import Callers
from manta.serving.lookup.messages import GetOnlineFeatures, Push, WriteToOnlineStore
from manta.serving.lookup.reading import Readings

log = logging.getLogger("manta.lookup")


class Loaded(NamedTuple):
    """One version of what is registered."""

    version: str
    catalog: Catalog
    store: OnlineStore
    readings: Readings


class Door:
    """Answers for one :class:`Lookup`. ``callers`` None: whoever reaches it may do everything.

    ``lake`` is the folder of the project's datasets; None when nothing can be pushed offline.
    """

    def __init__(self, lookup: Lookup, project: str, callers: Callers | None, lake: str | None) -> None:
        self._lookup = lookup
        self._project = project
        self._callers = callers
        self._lake = lake
        self.loaded: Loaded | None = None
        self.refused: dict[str, str] = {}

    def load(self, version: str, catalog: Catalog) -> None:
        """Serve from this catalog from now on.

        Raises:
            NotFound: a service that is to be answered for is not in it.
            FeaturesUnavailable, DefinitionInvalid: one of them cannot be read.
        """
        store = open_store_of(catalog.store)
        readings = Readings(catalog, self._lookup.features, store)
        for name in self._lookup.features:
            readings.of(GetOnlineFeatures({}, feature_service=name))
        self.loaded = Loaded(version, catalog, store, readings)

    async def answer(self, asked: Asked) -> Answer:
        """Never raises: what is wrong is a problem object."""
        return await answered(asked, self._route, "door", log)

    async def _route(self, request: Asked, _: str) -> Answer:
        path = request.path.strip("/")
        if path == "get-online-features":
            return await self._get(request)
        if path == "push":
            return await self._push(request)
        if path == "write-to-online-store":
            return await self._write(request)
        if path in ("", "health"):
            request.only("GET", "HEAD")
            loaded = self._serving() if path else self.loaded
            return Answer(200, JSON, messages.encode(self._description(loaded)))
        raise NotFound(
            f"there is no {path!r:.80} here",
            hint="POST …/get-online-features, …/push, …/write-to-online-store, or GET …/health",
        )

    async def _get(self, request: Asked) -> Answer:
        content = await self._let_in(request, Role.VIEWER)
        asked = messages.decode(content, GetOnlineFeatures)
        rows = messages.rows_in(asked.entities, self._lookup.max_rows, "entities")
        reading = self._serving().readings.of(asked)
        columns, at = reading.columns(asked.entities, rows)
        looked = await reading.read(columns, at)
        return Answer(200, JSON, reading.answer(asked, looked, rows))

    async def _push(self, request: Asked) -> Answer:
        content = await self._let_in(request, Role.DEVELOPER)
        asked = messages.decode(content, Push)
        messages.rows_in(asked.df, self._lookup.max_rows, "df")
        loaded = self._serving()
        views = loaded.catalog.pushed(asked.push_source_name)
        online, offline = asked.to != "offline", asked.to != "online"
        lake = self._lake if offline else None
        if offline and lake is None:
            raise Unavailable("this door does not write datasets", hint='push to "online"')
        await asyncio.to_thread(_pushed, views, asked.df, loaded.store if online else None, lake)
        return Answer(200, JSON, b"null")

    async def _write(self, request: Asked) -> Answer:
        content = await self._let_in(request, Role.DEVELOPER)
        asked = messages.decode(content, WriteToOnlineStore)
        messages.rows_in(asked.df, self._lookup.max_rows, "df")
        loaded = self._serving()
        view = loaded.catalog.view(asked.feature_view_name)
        await asyncio.to_thread(_pushed, [view], asked.df, loaded.store, None)
        return Answer(200, JSON, b"null")

    async def _let_in(self, request: Asked, role: Role) -> bytes:
        """The body, once the caller is known to hold the role."""
        request.only("POST")
        if self._callers is not None:
            await self._callers.require(request.headers.get("authorization", ""), role)
        require_media_type(request.media_type, JSON)
        return await request.body()

    def _serving(self) -> Loaded:
        if self.loaded is None:
            raise Unavailable("nothing is served yet", hint="`manta status` shows what is up")
        return self.loaded

    def _description(self, loaded: Loaded | None) -> dict[str, Any]:
        return {
            "lookup": self._lookup.name,
            "project": self._project,
            "version": loaded.version if loaded else None,
            "refused": self.refused or None,
        }


def _pushed(views: Any, columns: Any, store: Any, lake: Any) -> None:
    from manta.features.push import push  # it loads Polars, which look-ups do without

    push(views, columns, store, lake)
