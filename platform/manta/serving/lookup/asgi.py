"""The door as a plain ASGI application, for a server of one's own: see `__main__.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manta.serving.lookup.door import MOST_BYTES, Door, too_large


class Asgi:
    """HTTP in, the door's answers out."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def __call__(self, scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await _lifespan(scope, receive, send)

        async def body() -> bytes:
            event = await receive()
            content = event.get("body", b"")
            while event.get("more_body") and len(content) <= MOST_BYTES:
                event = await receive()
                content += event.get("body", b"")
            if len(content) > MOST_BYTES:
                raise too_large()
            return bytes(content)

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        answer = await self._door.answer(scope["method"], path, headers, body)
        sent = [
            (b"content-type", answer.media_type.encode()),
            (b"content-length", str(len(answer.content)).encode()),
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
