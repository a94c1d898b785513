"""A door as a plain ASGI application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from manta.serving.http import MOST_BYTES, Answer, Asked, too_large


class Answers(Protocol):
    async def answer(self, asked: Asked) -> Answer:
        """Never raises."""
        ...


class Asgi:
    """HTTP in, the door's answers out."""

    def __init__(self, door: Answers) -> None:
        self._door = door

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await _lifespan(scope, receive, send)

        async def body() -> bytes:
            event = await receive()
            whole = bytearray(event.get("body", b""))
            while event.get("more_body") and len(whole) <= MOST_BYTES:
                event = await receive()
                whole += event.get("body", b"")
            if len(whole) > MOST_BYTES:
                raise too_large()
            return bytes(whole)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        query = scope.get("query_string", b"").decode("latin-1")
        answer = await self._door.answer(Asked(scope["method"], path, headers, query, body))
        sent = [
            (b"content-type", answer.media_type.encode()),
            (b"content-length", str(len(answer.content)).encode()),
            *((name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers),
        ]
        await send({"type": "http.response.start", "status": answer.status, "headers": sent})
        content = b"" if scope["method"] == "HEAD" else answer.content
        await send({"type": "http.response.body", "body": content})


async def _lifespan(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "lifespan":
        return
    while True:
        event = (await receive())["type"]
        await send({"type": f"{event}.complete"})
        if event == "lifespan.shutdown":
            return
