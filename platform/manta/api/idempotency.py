"""Requests sent again with the same Idempotency-Key: done once, answered alike."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar, NamedTuple

import psutil

from manta.errors import InProgress, KeyReused, RequestInvalid
from manta.ledger.requests import Requests, Seen

KEY = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
KEPT = timedelta(hours=24)
# A server of another machine that has not answered for this long is taken for dead.
PATIENCE_SECONDS = 120.0


class Kept(NamedTuple):
    """An answer given before."""

    status: int
    content: bytes


class Claim(NamedTuple):
    """A request that is to be executed now. ``holder`` tells this execution from every other."""

    principal: str
    key: str
    holder: str


class Idempotency:
    """Of one server process. An answer is kept when the request succeeded; one that failed changed nothing,
    and may be sent again with its key. Thread-safe."""

    # The claims that this process executes: of all its applications, for a claim names the process.
    _at_work: ClassVar[set[str]] = set()

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        process = psutil.Process()
        self._me = f"{socket.gethostname()} {process.pid} {process.create_time()}"

    def begin(self, principal: str, key: str, request: str) -> Claim | Kept:
        """The claim to execute the request, to be given to :meth:`end`; or the answer to be given again.

        Raises:
            RequestInvalid: it cannot be a key.
            KeyReused: the key was sent with another request.
            InProgress: the first with this key has not been answered yet.
        """
        if not KEY.fullmatch(key):
            raise RequestInvalid("an Idempotency-Key is 1 to 128 visible ASCII characters")
        claim = Claim(principal, key, f"{self._me} {secrets.token_hex(6)}")
        self._at_work.add(claim.holder)
        mine = False
        try:
            seen = self._requests.begin(principal, key, request, claim.holder)
            mine = seen is None or self._takes_over(seen, claim, request)
        finally:
            if not mine:
                self._at_work.discard(claim.holder)
        if seen is None or mine:
            return claim
        if seen.request != request:
            raise KeyReused(
                "this Idempotency-Key was sent with another request",
                hint="a key stands for one request: send another with a new key",
            )
        if seen.status is not None:
            return Kept(seen.status, seen.answer.encode())
        raise InProgress(
            "the same request, sent before, is at work", hint="send it again in 1 s", retry_after=1
        )

    def end(self, claim: Claim, status: int, content: bytes, once: Sequence[str]) -> None:
        """The request was answered. Of what succeeded the answer is kept, without the fields ``once``."""
        try:
            if 200 <= status < 300:
                answer = _without(content, once) if once else content.decode()
                self._requests.end(*claim, status, answer)
            else:
                self._requests.forget(*claim)
        finally:
            # Also when the ledger is down: whoever sends it again then finds it abandoned.
            self._at_work.discard(claim.holder)

    def purge(self) -> None:
        self._requests.purge(KEPT)

    def _takes_over(self, seen: Seen, claim: Claim, request: str) -> bool:
        """Go on with what nobody is at work on any more: its server has died, or has lost the ledger."""
        if seen.request != request or seen.status is not None or not self._is_abandoned(seen):
            return False
        return self._requests.take_over(claim.principal, claim.key, claim.holder, seen.holder)

    def _is_abandoned(self, seen: Seen) -> bool:
        host, pid, created, _ = seen.holder.split(" ")
        if f"{host} {pid} {created}" == self._me:
            return seen.holder not in self._at_work
        if host != self._me.partition(" ")[0]:
            return seen.seconds > PATIENCE_SECONDS
        try:
            return bool(psutil.Process(int(pid)).create_time() != float(created))
        except psutil.Error:
            return True


def _without(content: bytes, once: Sequence[str]) -> str:
    shown = json.loads(content)
    for name in once:
        shown[name] = None
    shown["note"] = f"this was answered before: {', '.join(once)} was shown then, and is kept nowhere"
    return json.dumps(shown)


def request_digest(method: str, path: str, query: bytes, body: bytes) -> str:
    """What tells one request from another."""
    digest = hashlib.sha256(f"{method} {path}?".encode(errors="surrogateescape") + query + b"\n")
    digest.update(body)
    return digest.hexdigest()


def strict_json(body: bytes) -> Any:
    """Parse JSON that every part behind can hold.

    Raises:
        RequestInvalid: it is no JSON, or holds NaN, NUL characters or halves of surrogate pairs.
    """

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        value = json.loads(body, parse_constant=refuse)
        if re.search(rb"\\u(?:0000|[dD][89a-fA-F])", body):
            text = json.dumps(value, ensure_ascii=False)
            text.encode()
            if "\\u0000" in text.replace("\\\\", ""):
                raise ValueError("text with a NUL character")
    except (ValueError, RecursionError) as error:
        raise RequestInvalid(
            f"the body is not JSON: {error}", hint="see the schema: GET /openapi.json"
        ) from None
    return value
