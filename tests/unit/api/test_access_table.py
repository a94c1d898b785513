"""The table of who may do what is whole."""

from __future__ import annotations

import pytest
from fastapi import APIRouter
from fastapi.routing import APIRoute

from manta.api import server
from manta.api.access_table import TABLE, Where
from manta.api.door import Routes
from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.settings import Settings


def test_a_route_that_is_not_in_the_table_makes_no_application(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = APIRouter()
    extra.add_api_route("/v1/forgotten", lambda: None, methods=["GET"])
    monkeypatch.setattr(server, "ROUTERS", (*server.ROUTERS, extra))
    settings.home.mkdir()
    platform = Platform(settings, InlineEngine(settings, settings.home / "inline"))
    with pytest.raises(LookupError, match="GET /v1/forgotten is not in"):
        server.create(platform)


def test_every_line_of_the_table_is_a_route() -> None:
    served = {(method, route.path) for route in server.routes() for method in route.methods}
    assert served == set(TABLE)


def test_no_two_routes_answer_at_one_path() -> None:
    routes = Routes(server.routes(), TABLE)
    for route in server.routes():
        for method in route.methods:
            matched = routes.match(method, route.path)
            assert matched is not None
            assert matched.template == route.path


def test_operation_ids_are_unique_and_open_routes_are_few() -> None:
    ids = [route.operation_id for route in server.routes() if isinstance(route, APIRoute)]
    assert len(set(ids)) == len(ids)
    assert sorted(path for (_, path), rule in TABLE.items() if rule.where is Where.OPEN) == [
        "/healthz",
        "/metrics",
        "/readyz",
    ]
