"""The one place of the client that crosses HTTP: to a server, or to the same application in this process."""

from __future__ import annotations

import asyncio
import atexit
import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from manta.errors import (
    InProgress,
    InvalidInput,
    MantaError,
    PlatformDown,
    TooMany,
    Unavailable,
    from_problem,
)
from manta.settings import Settings

OK = (200, 201, 204)
TIMEOUT_SECONDS = 60.0
PATIENCE_SECONDS = 2.0
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
LOST = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.ReadError,
    httpx.WriteError,
    httpx.RemoteProtocolError,
)
LATER = (TooMany, InProgress)


class Transport:
    """Sends requests and raises what the server raised.

    A connection that is lost is tried again: reads as they are, and each POST with the Idempotency-Key that
    it had the first time, so that what the server did already is not done twice. A server that asks to be
    spared, or is still at work on the same request, is asked again.
    """

    def __init__(self, url: str, key: str | None, app: InProcess | None = None) -> None:
        self.url = url
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT_SECONDS, headers=headers, transport=app)
        # Endpoints are other servers: the key is not theirs to see.
        self._endpoints = httpx.Client(timeout=TIMEOUT_SECONDS)

    def close(self) -> None:
        self._http.close()
        self._endpoints.close()

    def json(self, method: str, path: str, **content: Any) -> Any:
        return self.send(method, path, **content).json()

    def send(
        self,
        method: str,
        path: str,
        *,
        accept: tuple[int, ...] = OK,
        key: str | None = None,
        patience: float = PATIENCE_SECONDS,
        **content: Any,
    ) -> httpx.Response:
        """One request to the platform.

        Args:
            accept: statuses that are no error.
            key: what makes a POST sent twice harmless; one is made up, unless given.
            patience: seconds for which a platform that does not answer is asked again.

        Raises:
            PlatformDown: nothing answers.
            MantaError: what the server raised.
        """
        headers = {"idempotency-key": key or secrets.token_hex(16)} if method == "POST" else {}
        return self._patiently(
            lambda: self._http.request(method, path, headers=headers, **content), accept, patience
        )

    def ask(self, url: str, **content: Any) -> httpx.Response:
        """One POST to an endpoint, by its whole address. Asking changes nothing, so it may be sent twice."""
        return self._patiently(lambda: self._endpoints.post(url, **content), OK, PATIENCE_SECONDS)

    def fetch(self, url: str, **content: Any) -> httpx.Response:
        """One GET of another server of the platform, MLflow's, by its whole address."""
        return self._patiently(lambda: self._endpoints.get(url, **content), OK, PATIENCE_SECONDS)

    @staticmethod
    def _patiently(
        request: Callable[[], httpx.Response], accept: tuple[int, ...], patience: float
    ) -> httpx.Response:
        until, pause = time.monotonic() + patience, FIRST_PAUSE
        while True:
            wait = pause
            try:
                answer = request()
            except httpx.InvalidURL as error:
                raise InvalidInput(f"the platform's address: {error}") from None
            except httpx.TransportError as error:
                if not isinstance(error, LOST) or time.monotonic() + wait > until:
                    raise PlatformDown(
                        f"the platform does not answer at {error.request.url}: "
                        f"{error or type(error).__name__}",
                        hint="start it with `manta up`; `manta status` shows what is up",
                    ) from None
            else:
                if answer.status_code in accept:
                    return answer
                wait = max(pause, _asked_to_wait(answer))
                problem = _problem(answer)
                if not isinstance(problem, LATER) or time.monotonic() + wait > until:
                    raise problem
            time.sleep(wait)
            pause = min(pause * 2, LONGEST_PAUSE)


def _asked_to_wait(answer: httpx.Response) -> float:
    try:
        return float(answer.headers.get("retry-after", 0))
    except ValueError:
        return 0.0  # a date: servers of ours give seconds


def _problem(answer: httpx.Response) -> MantaError:
    try:
        return from_problem(answer.json())
    except (ValueError, AttributeError):
        return Unavailable(f"{answer.request.url} answered {answer.status_code}: {answer.text[:500]}")


class InProcess(httpx.BaseTransport):
    """An ASGI application as a transport: its own event loop in a thread, from construction until closed or
    until the interpreter ends. Answers are whole when they are returned.
    """

    def __init__(self, app: Any) -> None:
        self._asgi = httpx.ASGITransport(app, raise_app_exceptions=False)
        self._loop = asyncio.new_event_loop()
        self._ready: Future[None] = Future()
        self._leave = asyncio.Event()
        # A daemon: the interpreter waits for other threads before it runs what `atexit` was given.
        self._thread = threading.Thread(target=self._loop.run_forever, name="manta", daemon=True)
        self._thread.start()
        self._life = asyncio.run_coroutine_threadsafe(self._live(app), self._loop)
        self._life.add_done_callback(self._failed)
        self._ready.result()
        atexit.register(self.close)

    async def _live(self, app: Any) -> None:
        # Entered and left in one task, as the cancel scopes within it require.
        async with app.router.lifespan_context(app):
            self._ready.set_result(None)
            await self._leave.wait()

    def _failed(self, life: Future[None]) -> None:
        error = life.exception()
        if error and not self._ready.done():
            self._ready.set_exception(error)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if self._loop.is_closed():
            raise httpx.ConnectError("this client has been closed", request=request)
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop).result()

    async def _answer(self, request: httpx.Request) -> httpx.Response:
        answer = await self._asgi.handle_async_request(request)
        content = await answer.aread()
        return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    def close(self) -> None:
        """Leave the application, and return when it has ended."""
        if self._loop.is_closed():
            return
        atexit.unregister(self.close)
        self._loop.call_soon_threadsafe(self._leave.set)
        try:
            self._life.result()
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()


def find_key(settings: Settings, key: str | None, *, own: bool) -> str | None:
    """The key given, else that of MANTA_API_KEY, else that in the file MANTA_API_KEY_FILE; for the platform
    of this folder (``own``), else its owner's. A key of one platform is never shown to another.

    Raises:
        InvalidInput: the file cannot be read.
    """
    given = key or os.environ.get("MANTA_API_KEY")
    if given:
        return given.strip()
    named = os.environ.get("MANTA_API_KEY_FILE")
    path = Path(named) if named else settings.home / "owner.key"
    if not named and not (own and path.exists()):
        return None
    try:
        return path.read_text().strip() or None
    except OSError as error:
        raise InvalidInput(
            f"the API key in {path} cannot be read: {error.strerror}",
            hint="MANTA_API_KEY_FILE names it" if named else "it belongs to whoever ran `manta up`",
        ) from None


def segment(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")
