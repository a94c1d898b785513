"""The Ray Serve application of an endpoint: `build` is what its configuration imports."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from manta.definitions import Endpoint, from_json
from manta.errors import MantaError, NotFound, TooLarge, WrongMediaType, WrongMethod
from manta.serving import core
from manta.serving.core import Loaded
from manta.serving.loopback import stay_on_loopback
from manta.serving.protocols import predict

log = logging.getLogger("ray.serve")

MOST_BYTES = 16 * 2**20
ROWS_ON_THE_LOOP = (
    64  # more than these are computed in a thread, so that single requests do not wait for them
)


class Replica:
    """Answers for one endpoint. Which version it serves comes by ``reconfigure``, in place."""

    def __init__(self, endpoint: dict[str, Any], project: str) -> None:
        definition = from_json(endpoint)
        assert isinstance(definition, Endpoint)
        self._endpoint = definition
        self._project = project
        self._loaded: Loaded | None = None
        self._refused: dict[str, str] = {}
        stay_on_loopback()

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Swap to the version that ``config`` names, once it is loaded and has answered. Requests go on
        meanwhile; each is answered by one version.

        A version that cannot be loaded leaves the one that is served in place, and is named in the
        endpoint's description; a replica that serves none yet fails to start.
        """
        served = self._loaded
        if served and (served.version, served.digest) == (config["version"], config["digest"]):
            self._refused = {}
            return
        try:
            self._loaded = await asyncio.to_thread(core.load, self._endpoint, config)
            self._refused = {}
        except Exception as error:
            if served is None:
                raise
            log.exception("version %s is refused; %s stays", config["version"], served.version)
            self._refused = {"version": config["version"], "why": f"{type(error).__name__}: {error}"}

    async def __call__(self, request: Request) -> Response:
        # Serve makes one where the caller gave none, and names it in the header of every answer.
        request_id = request.headers.get("x-request-id") or uuid.uuid4().hex
        path = request.scope["path"].removeprefix(request.scope.get("root_path", "")).strip("/")
        try:
            content = await self._answer(path, request, request_id)
            return Response(content, media_type="application/json")
        except MantaError as error:
            return _problem(error, request_id)
        except Exception:
            log.exception("request %s", request_id)
            failed = MantaError("the endpoint failed", hint=f"its log has request {request_id}")
            return _problem(failed, request_id)

    async def _answer(self, path: str, request: Request, request_id: str) -> bytes:
        loaded = self._loaded
        assert loaded is not None  # Serve calls reconfigure before the first request
        if path == "":
            _only(request, "GET", "HEAD")
            return self._description(loaded)
        if path == "ready":
            _only(request, "GET", "HEAD")
            return msgspec.json.encode({"ready": True, "version": loaded.version})
        if path == "predict":
            _only(request, "POST")
            return await self._predict(loaded, request, request_id)
        raise NotFound(f"there is no {path!r} here", hint="POST …/predict, GET …/ready, or GET the endpoint")

    async def _predict(self, loaded: Loaded, request: Request, request_id: str) -> bytes:
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise WrongMediaType(
                f"content-type {media_type or 'is missing'}", hint="send content-type: application/json"
            )
        form, rows = predict.parse(await _body(request), self._endpoint.max_rows)
        features = request.query_params.get("features", "").lower() in ("1", "true", "yes")
        given: Mapping[str, Any] = {"features": features, "request_id": request_id}
        if len(rows) > ROWS_ON_THE_LOOP:
            return await asyncio.to_thread(predict.answer, self._endpoint, loaded, form, rows, **given)
        return predict.answer(self._endpoint, loaded, form, rows, **given)

    def _description(self, loaded: Loaded) -> bytes:
        return msgspec.json.encode(
            {
                "endpoint": self._endpoint.name,
                "project": self._project,
                "model": self._endpoint.model,
                "version": loaded.version,
                "digest": loaded.digest,
                "refused": self._refused or None,
                "keys": loaded.fields,
                "features": loaded.service.types,
                "inputs": list(loaded.package.inputs),
                "threshold": self._endpoint.threshold,
                "max_rows": self._endpoint.max_rows,
                "example": loaded.example,
            }
        )


async def _body(request: Request) -> bytes:
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise TooLarge(
                f"the body is larger than {MOST_BYTES >> 20} MiB", hint="send it in several requests"
            )
    return bytes(content)


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise WrongMethod(f"{request.method} is not answered here", hint=f"use {methods[0]}")


def _problem(error: MantaError, request_id: str) -> Response:
    content = msgspec.json.encode(error.problem() | {"request_id": request_id})
    return Response(content, error.http_status, media_type="application/problem+json")


def build(args: dict[str, Any]) -> serve.Application:
    """The application. ``args``: ``endpoint``, the definition as JSON, and ``project``."""
    deployment: Any = serve.deployment(name="endpoint", max_ongoing_requests=100, max_queued_requests=1000)
    application: serve.Application = deployment(Replica).bind(args["endpoint"], args["project"])
    return application
