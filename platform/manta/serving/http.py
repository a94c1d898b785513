"""What is asked of a door over HTTP and what it answers, without a server: for all that is served."""

from __future__ import annotations

import logging
import uuid
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import parse_qsl

import msgspec

from manta.errors import MantaError, RequestInvalid, TooLarge, WrongMediaType, WrongMethod

JSON, PROBLEM = "application/json", "application/problem+json"
MOST_BYTES = 16 * 2**20


class Answer(NamedTuple):
    status: int
    media_type: str
    content: bytes
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Asked:
    """One request.

    Attributes:
        path: below the door's own address.
        headers: by names in lower case.
        query: as it stands in the address.
        body: reads all of it; raises TooLarge beyond :data:`MOST_BYTES`.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    query: str
    body: Callable[[], Awaitable[bytes]]

    def only(self, *methods: str) -> None:
        """Raises:
        WrongMethod: it is none of these.
        """
        if self.method not in methods:
            raise WrongMethod(f"{self.method} is not answered here", hint=f"use {methods[0]}")

    @property
    def media_type(self) -> str:
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    def parameters(self) -> dict[str, str]:
        return dict(parse_qsl(self.query, keep_blank_values=True))


def require_media_type(found: str, *wanted: str) -> None:
    """Raises:
    WrongMediaType: it is none of these.
    """
    if found not in wanted:
        raise WrongMediaType(
            f"content-type {found or 'is missing'}",
            hint=f"send content-type: {' or '.join(filter(None, wanted))}",
        )


def too_large() -> TooLarge:
    return TooLarge(f"the body is larger than {MOST_BYTES >> 20} MiB", hint="send it in several requests")


def uncompressed(content: bytes, encoding: str) -> bytes:
    """``content`` as it was before its content-encoding.

    Raises:
        RequestInvalid: it is not compressed so. WrongMediaType: another encoding than gzip and deflate.
        TooLarge: there is more in it than a body may hold.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return content
    if encoding not in ("gzip", "deflate"):
        raise WrongMediaType(f"content-encoding {encoding!r:.80}", hint="send gzip, deflate, or as it is")
    unpacking = zlib.decompressobj(wbits=47)  # gzip and zlib, told apart by their first bytes
    try:
        found = unpacking.decompress(content, MOST_BYTES + 1)
    except zlib.error as error:
        raise RequestInvalid(f"the body is not {encoding}: {error}", hint="compress it so") from None
    if len(found) > MOST_BYTES:
        raise too_large()
    if not unpacking.eof:
        raise RequestInvalid(f"the body ends in the middle of its {encoding}", hint="send all of it")
    return found


def json_of(value: object, status: int = 200) -> Answer:
    return Answer(status, JSON, msgspec.json.encode(value))


async def answered(
    asked: Asked, route: Callable[[Asked, str], Awaitable[Answer]], what: str, log: logging.Logger
) -> Answer:
    """What ``route`` answers to a request and its id. Never raises: what is wrong is a problem object (RFC
    9457); a fault of ``what`` itself is one too, and in its log."""
    request_id = asked.headers.get("x-request-id") or uuid.uuid4().hex
    try:
        return await route(asked, request_id)
    except MantaError as error:
        return problem(error, request_id)
    except Exception:
        log.exception("request %s", request_id)
        failed = MantaError(f"the {what} failed", hint=f"its log has request {request_id}")
        return problem(failed, request_id)


def problem(error: MantaError, request_id: str) -> Answer:
    # "error" is where clients of the Open Inference Protocol look for the message.
    told = error.problem() | {"error": error.message, "request_id": request_id}
    content = msgspec.json.encode(told)
    return Answer(error.http_status, PROBLEM, content)
