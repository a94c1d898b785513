"""An endpoint's door: paths, bodies and refusals. Neither Ray nor a server is known here."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from manta.definitions import Endpoint
from manta.errors import NotFound, Unavailable
from manta.serving.core import Loaded
from manta.serving.http import Answer, Asked, answered, json_of, uncompressed
from manta.serving.protocols import Call, openapi, openinference, predict, scoring

log = logging.getLogger("manta.endpoint")

# More than this is worked on in a thread, so that single requests do not wait for it.
BYTES_ON_THE_LOOP = 32_768

PROTOCOLS = {
    "predict": predict.answer,
    "v2": openinference.answer,
    "invocations": scoring.answer,
    "ping": scoring.answer,
    "health": scoring.answer,
    "version": scoring.answer,
    "docs": openapi.answer,
    "openapi.json": openapi.answer,
}
HINT = "POST …/predict, GET …/ready, or GET the endpoint; …/docs is a page to try it on"


class Door:
    """Answers for one endpoint, by the version that is loaded when the request comes.

    Attributes:
        loaded: what is served; swapped as a whole, so that no answer mixes two versions.
        refused: the version that was to be served and cannot be, and why.
    """

    def __init__(self, endpoint: Endpoint, project: str) -> None:
        self._endpoint = endpoint
        self._project = project
        self.loaded: Loaded | None = None
        self.refused: dict[str, str] = {}

    async def answer(self, asked: Asked) -> Answer:
        """Never raises: what is wrong is a problem object."""
        return await answered(asked, self._route, "endpoint", log)

    async def _route(self, asked: Asked, request_id: str) -> Answer:
        path, loaded = asked.path.strip("/"), self.loaded
        if loaded is None:
            raise Unavailable("nothing is served yet", hint="`manta status` shows what is up")
        if path == "":
            asked.only("GET", "HEAD")
            return json_of(self._description(loaded))
        if path == "ready":
            asked.only("GET", "HEAD")
            return json_of({"ready": True, "version": loaded.version})
        protocol = PROTOCOLS.get(path.partition("/")[0])
        if protocol is None:
            raise NotFound(f"there is no {path!r:.80} here", hint=HINT)
        content = b""
        if asked.method == "POST":
            content = uncompressed(await asked.body(), asked.headers.get("content-encoding", ""))
        call = Call(self._endpoint, loaded, asked, path, content, request_id)
        if len(content) > BYTES_ON_THE_LOOP:
            return await asyncio.to_thread(protocol, call)
        return protocol(call)

    def _description(self, loaded: Loaded) -> dict[str, Any]:
        return {
            "endpoint": self._endpoint.name,
            "project": self._project,
            "model": self._endpoint.model,
            "version": loaded.version,
            "digest": loaded.digest,
            "refused": self.refused or None,
            "keys": loaded.fields,
            "features": loaded.service.types,
            "inputs": list(loaded.package.inputs),
            "task": loaded.package.task,
            **self._decides(loaded),
            "max_rows": self._endpoint.max_rows,
            "example": loaded.example,
        }

    def _decides(self, loaded: Loaded) -> dict[str, Any]:
        """What an answer is chosen by, or among."""
        package = loaded.package
        if package.task == "binary":
            return {"threshold": self._endpoint.threshold}
        return {"classes": list(package.classes)} if package.classes else {}
