"""Errors as problem objects (RFC 9457): every answer from 400 on is one."""

from __future__ import annotations

import json
import logging
import secrets
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException

from manta import words
from manta.errors import InvalidInput, MantaError, Unauthenticated

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
SCHEMA_HINT = "see the schema: GET /openapi.json"
MOST_TEXT = 2000


class Problem(BaseModel):
    """What went wrong: ``code`` is stable, ``detail`` is for people, ``hint`` says what to do next."""

    type: str
    title: str
    status: int
    code: str
    detail: str
    hint: str = ""
    errors: dict[str, Any] = {}


def answer(problem: dict[str, Any], headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(problem, ensure_ascii=True, default=str).encode()
    return Response(content, problem["status"], headers, MEDIA_TYPE)


def of(error: MantaError) -> Response:
    """The answer that says ``error``."""
    headers = {}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    if "retry_after" in error.detail:
        headers["Retry-After"] = str(error.detail["retry_after"])
    return answer(error.problem(), headers)


def of_status(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """The answer of an HTTP status that is no error of manta's."""
    phrase = HTTPStatus(status).phrase
    code = phrase.lower().replace(" ", "_")
    made = {"type": f"urn:manta:error:{code}", "title": phrase.lower(), "status": status, "code": code}
    return answer(made | {"detail": detail, "hint": SCHEMA_HINT}, headers)


def of_fault(error: BaseException, what: str) -> Response:
    """The answer to a request that met a fault of ours: it tells a number under which the log tells all."""
    number = secrets.token_hex(6)
    log.error("fault %s in %s", number, what, exc_info=error)
    problem = MantaError(
        "the server met a fault of its own", hint=f"the server's log tells more: fault {number}", fault=number
    ).problem()
    return answer(problem)


def add_to(app: FastAPI) -> None:
    app.add_exception_handler(MantaError, _manta_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(DataError, _data)


async def _manta_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, MantaError)
    if error.http_status == 500:
        return of_fault(error, f"{request.method} {request.url.path}")
    return of(error)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    lines = words.faults(error.errors())
    return of(InvalidInput(lines[:MOST_TEXT], hint=SCHEMA_HINT))


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return of_status(error.status_code, str(error.detail), dict(error.headers or {}))


async def _data(_request: Request, error: Exception) -> Response:
    # A value that the database cannot hold, such as text with a NUL.
    assert isinstance(error, DataError)
    return of(InvalidInput("a value does not fit what the ledger can hold", hint=SCHEMA_HINT))
