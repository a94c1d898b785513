"""The interface described in OpenAPI 3.1: each route with every status that it can answer."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

import manta
from manta.api.access_table import TABLE, Rule, Takes, Where
from manta.api.problems import MEDIA_TYPE, Problem

WHY = {
    304: "What If-None-Match names is still what there is.",
    400: "The request does not fit the schema.",
    401: "No credentials, or such as open nothing.",
    403: "The caller may see this, and may not do it.",
    404: "There is no such thing, or the caller may not see it.",
    409: "Somebody else was first; or the same request, sent before, is still at work.",
    413: "The body is too big.",
    415: "The body's content-type is another.",
    422: "The definitions cannot be used; or the Idempotency-Key was sent with another request.",
    429: "Too many requests, or too many failed log-ins.",
    500: "A fault of the server's own.",
    503: "A part behind the server does not answer.",
}
RETRY_AFTER = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
KEY_HEADER = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Makes sending the request again harmless: it is done once, and answered alike.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,128}$"},
    "example": "5e0f6c1c-nightly",
}
ABOUT = (
    "Every answer from 400 on is a problem object (RFC 9457) whose `code` is stable. What one may not see "
    "answers 404, what one may see and not do answers 403. Lists come as pages: `next` is the value of "
    "`before` that goes on. Roles: viewer, developer, operator, admin; each holds those before it."
)


def describe(app: FastAPI) -> dict[str, Any]:
    """The whole description. Made once, when it is first asked for."""
    if app.openapi_schema is None:
        made = get_openapi(
            title="manta",
            version=manta.__version__,
            openapi_version="3.1.0",
            description=ABOUT,
            routes=app.routes,
        )
        components = made.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        schemas["Problem"] = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
        components["securitySchemes"] = {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": "An API key (`manta_…`), or a token of the issuer in the settings.",
            }
        }
        for path, operations in made["paths"].items():
            for method, operation in operations.items():
                _complete(operation, method.upper(), TABLE[method.upper(), path])
        app.openapi_schema = made
    return app.openapi_schema


def _complete(operation: dict[str, Any], method: str, rule: Rule) -> None:
    changes = method in ("POST", "PUT", "DELETE")
    if rule.where is Where.OPEN:
        operation["security"] = []
    else:
        operation["security"] = [{"bearer": []}]
        said = {Where.ANY: "Any principal.", Where.SOME: f"Needs {rule.role} in some project."}
        needs = said.get(rule.where) or f"Needs {rule.role}."
        operation["description"] = f"{operation.get('description', '')}\n\n{needs}".strip()
    if changes:
        operation.setdefault("parameters", []).append(KEY_HEADER)
    responses = operation["responses"]
    responses.pop("422", None)
    for status in _statuses(operation, method, rule):
        responses[str(status)] = _response(status, method)


def _statuses(operation: dict[str, Any], method: str, rule: Rule) -> list[int]:
    found = {500, 503}
    if rule.where is not Where.OPEN:
        found |= {401, 429}
    if rule.where not in (Where.OPEN, Where.ANY):
        found |= {403, 404}
    if operation.get("parameters") or operation.get("requestBody"):
        found |= {400, 404}
    if method == "GET" and rule.where is not Where.OPEN:
        found |= {304}
    if method in ("POST", "PUT", "DELETE"):
        found |= {400, 409, 413, 422}
    if rule.takes is Takes.JSON:
        found |= {415}
    return sorted(found)


def _response(status: int, method: str) -> dict[str, Any]:
    response: dict[str, Any] = {"description": WHY[status]}
    if status != 304 and method != "HEAD":
        response["content"] = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if status in (409, 429):
        response["headers"] = {"Retry-After": RETRY_AFTER}
    return response
