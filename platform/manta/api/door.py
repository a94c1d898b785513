"""What every request passes: the one place where it is measured, identified, authorized and limited."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from manta.api import problems
from manta.api.access_table import Decision, Rule, Takes, Where, decide
from manta.api.context import BIGGEST_ID
from manta.api.idempotency import Idempotency, Kept, request_digest, strict_json
from manta.api.identity import Identity, Principal, credentials
from manta.api.limits import Denials, Limits
from manta.api.metrics import Metrics
from manta.errors import Forbidden, MantaError, NotFound, TooLarge, TooMany, Unauthenticated, WrongMediaType
from manta.ledger.actor import Actor
from manta.ledger.store import Ledger

CHANGING = ("POST", "PUT", "DELETE", "PATCH")
METHODS = ("GET", "HEAD", *CHANGING)
MOST_TARGET = 200


class Matched(NamedTuple):
    """The route of a request: its path's template, its rule, and what the path names."""

    template: str
    rule: Rule
    names: Mapping[str, str]


class Routes:
    """All routes with their rules."""

    def __init__(self, routes: Iterable[APIRoute], table: Mapping[tuple[str, str], Rule]) -> None:
        """Raises:
        LookupError: a route has no rule.
        """
        self._by_method: dict[str, list[tuple[re.Pattern[str], str, Rule]]] = {}
        for route in routes:
            for method in route.methods or ():
                if (method, route.path) not in table:
                    raise LookupError(f"{method} {route.path} is not in manta.api.access_table.TABLE")
                entry = (route.path_regex, route.path, table[method, route.path])
                self._by_method.setdefault(method, []).append(entry)

    def match(self, method: str, path: str) -> Matched | None:
        for pattern, template, rule in self._by_method.get(method, ()):
            found = pattern.match(path)
            if found:
                return Matched(template, rule, found.groupdict())
        return None

    def methods(self, path: str) -> list[str]:
        """Those with which something answers at ``path``."""
        return sorted(method for method in self._by_method if self.match(method, path))


class Door:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: Routes,
        ledger: Ledger,
        identity: Identity,
        limits: Limits,
        denials: Denials,
        idempotency: Idempotency,
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._routes = routes
        self._ledger = ledger
        self._identity = identity
        self._limits = limits
        self._denials = denials
        self._idempotency = idempotency
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        method = scope["method"]
        matched = self._routes.match(method, scope["path"])
        out = _Answer(send)
        try:
            if matched is None:
                await self._nothing_there(method, scope, receive, out)
            else:
                await self._pass(scope, receive, out, matched)
        except MantaError as error:
            await out.instead(problems.of(error), scope, receive)
        except Exception as error:
            await out.instead(problems.of_fault(error, f"{method} {scope['path']!r}"), scope, receive)
        finally:
            counted = method if method in METHODS else "OTHER"
            template = matched.template if matched else "none"
            self._metrics.count(counted, template, out.status, time.perf_counter() - began)

    async def _pass(self, scope: Scope, receive: Receive, out: _Answer, matched: Matched) -> None:
        headers = Headers(scope=scope)
        rule, method = matched.rule, scope["method"]
        principal = None
        if rule.where is not Where.OPEN:
            # One change of thread for all that reads the ledger.
            principal = await run_in_threadpool(self._let_in, scope, headers, matched)
            scope.setdefault("state", {})["principal"] = principal
        if method not in CHANGING:
            out.etag = matched.template.startswith("/v1/")
            out.if_none_match = headers.get("if-none-match", "")
            await self._app(scope, receive, out)
            await out.finish()
            return
        body = await _body(rule, headers, receive)
        key = headers.get("idempotency-key")
        if key is None or principal is None:
            await self._app(scope, _given(body, receive), out)
        else:
            await self._once(scope, receive, out, principal, key, body, rule)

    def _let_in(self, scope: Scope, headers: Headers, matched: Matched) -> Principal:
        """Who asks, if they may.

        Raises:
            Unauthenticated, TooMany, Forbidden, NotFound.
        """
        address = scope["client"][0] if scope.get("client") else "local"
        principal = self._identify(address, headers.get("authorization"), scope["path"])
        self._limits.request(principal.name)
        run_id, project = self._about(scope, matched)
        if run_id is not None and project is None:
            raise _no_run(run_id)
        decision = decide(matched.rule, principal.roles, project)
        if decision is Decision.ALLOW:
            return principal
        by, asked = Actor(principal.name, "http"), f"{scope['method']} {matched.template}"
        self._denials.note(by, asked, _printable(scope["path"]), project=_printable(project or "")[:64])
        if decision is Decision.HIDE:
            raise _no_run(run_id) if run_id is not None else NotFound(f"there is no project {project!r}")
        rule = matched.rule
        needed = f"the role {rule.role} in {_place(rule, project)}"
        raise Forbidden(f"this needs {needed}", hint="an admin gives it: `manta grants set`")

    def _identify(self, address: str, header: str | None, path: str) -> Principal:
        prefix = ""
        try:
            shown = credentials(header)
            prefix = shown.prefix
            self._limits.check(address, prefix)
            principal = self._identity.of(shown)
        except (Unauthenticated, TooMany) as error:
            if getattr(error, "guess", False):
                self._limits.wrong(address, prefix)
            by = Actor(f"address:{_printable(address)[:100]}", "http")
            about = f"key:{prefix}" if prefix else _printable(path)
            self._denials.note(by, "log in", about, why=error.message[:200])
            raise
        self._limits.right(address, prefix)
        return principal

    def _about(self, scope: Scope, matched: Matched) -> tuple[int | None, str | None]:
        """The run and the project that a request is about."""
        where, names = matched.rule.where, matched.names
        if where is Where.PATH:
            return None, names["project"]
        if where is Where.RUN:
            text = names["run_id"]
            run_id = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0
            return run_id, self._ledger.project_of(run_id) if 0 < run_id <= BIGGEST_ID else None
        if where is Where.QUERY:
            named = _query(scope, "project")
            return None, named[-1] if named else None
        return None, None

    async def _once(
        self,
        scope: Scope,
        receive: Receive,
        out: _Answer,
        principal: Principal,
        key: str,
        body: bytes,
        rule: Rule,
    ) -> None:
        request = request_digest(scope["method"], scope["path"], scope.get("query_string", b""), body)
        claim = await run_in_threadpool(self._idempotency.begin, principal.name, key, request)
        if isinstance(claim, Kept):
            await out.instead(_again(claim), scope, receive)
            return
        out.keep = True
        try:
            await self._app(scope, _given(body, receive), out)
        except BaseException:
            out.status = 500
            raise
        finally:
            # The answer is written down before it is sent: whoever was told of it finds it again.
            content = b"".join(out.kept)
            await run_in_threadpool(self._idempotency.end, claim, out.status, content, rule.once)
        await out.finish()

    async def _nothing_there(self, method: str, scope: Scope, receive: Receive, out: _Answer) -> None:
        allowed = self._routes.methods(scope["path"])
        if allowed:
            answer = problems.of_status(
                405, f"{_printable(method)} is not done here", {"Allow": ", ".join(allowed)}
            )
        else:
            answer = problems.of_status(404, "nothing answers at this path")
        await out.instead(answer, scope, receive)


class _Answer:
    """The sending end: sees the status, and holds the body back where it is wanted whole."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self.status = 500
        self.started = False
        self.etag = False
        self.if_none_match = ""
        self.keep = False
        self.kept: list[bytes] = []

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            json = b"application/json" in dict(message["headers"]).get(b"content-type", b"")
            self.etag = self.etag and self.status == 200 and json
            if self.etag or self.keep:
                self._start = message
                return
            self.started = True
        elif self._start is not None:
            self.kept.append(message.get("body", b""))
            return
        await self._send(message)

    async def finish(self) -> None:
        """Send what was held back."""
        if self._start is None:
            return
        content = b"".join(self.kept)
        headers = MutableHeaders(raw=self._start["headers"])
        if self.etag:
            tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
            headers["ETag"] = tag
            headers["Cache-Control"] = "private, no-cache"
            if _names(self.if_none_match, tag):
                self.status = self._start["status"] = 304
                content = b""
                del headers["content-length"]
                del headers["content-type"]
        self.started = True
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": content})

    async def instead(self, answer: Response, scope: Scope, receive: Receive) -> None:
        """Send another answer; where one has begun, nothing more can be said."""
        if not self.started:
            self.status = answer.status_code
            self.started = True
            await answer(scope, receive, self._send)


async def _body(rule: Rule, headers: Headers, receive: Receive) -> bytes:
    """The whole body.

    Raises:
        TooLarge, WrongMediaType, RequestInvalid.
    """
    length = headers.get("content-length", "0")
    if length.isdigit() and int(length) > rule.most_bytes:
        raise _too_large(rule)
    chunks, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            break
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > rule.most_bytes:
            raise _too_large(rule)
        chunks.append(chunk)
        more = message.get("more_body", False)
    body = b"".join(chunks)
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if rule.takes is Takes.JSON and body:
        if kind != "application/json":
            raise WrongMediaType(
                f"the body's content-type is {_printable(kind)!r}", hint="send application/json"
            )
        strict_json(body)
    return body


def _too_large(rule: Rule) -> TooLarge:
    return TooLarge(f"the body is bigger than {rule.most_bytes} bytes", hint="send less")


def _given(body: bytes, receive: Receive) -> Receive:
    """A receiving end that gives a body already read, and then what comes."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _again(kept: Kept) -> Response:
    headers = {"Idempotent-Replayed": "true"}
    media_type = "application/json" if kept.content else None
    return Response(kept.content, kept.status, headers, media_type)


def _names(header: str, tag: str) -> bool:
    """Whether an If-None-Match header names that tag."""
    tags = [each.strip().removeprefix("W/") for each in header.split(",")]
    return "*" in tags or tag in tags


def _no_run(run_id: int) -> NotFound:
    return NotFound(f"there is no run {run_id}", hint="`manta runs` lists them")


def _place(rule: Rule, project: str | None) -> str:
    if rule.where is Where.SOME:
        return "some project"
    return f"the project {project}" if project is not None else "every project"


def _query(scope: Scope, name: str) -> Sequence[str]:
    text = scope.get("query_string", b"").decode("latin-1")
    found: dict[str, Any] = parse_qs(text, keep_blank_values=True)
    return list(found.get(name, ()))


def _printable(text: str) -> str:
    """Text from outside, as the ledger may hold it."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:MOST_TARGET])
