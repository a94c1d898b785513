"""The look-up door over real HTTP, beside Feast's own feature server on the same registry and store."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from feast.feature_server import get_app
from feast.permissions.auth_model import NoAuthConfig
from feast.permissions.server.utils import (
    AuthManagerType,
    ServerType,
    init_auth_manager,
    init_security_manager,
)
from feast.protos.feast.types.Value_pb2 import Value

from manta.definitions import Lookup
from manta.features.materialize import materialize

from .conftest import START, Shop
from .doors import catalog_of, opened, serving

END = START + timedelta(hours=50)
SOON = (START + timedelta(hours=6)).isoformat()
TRIP = {"shop": [1, 2, 99, 1], "city": ["rom", "bari", "?", "rom"], "amount": [4.0, 2.0, None, 4]}


@pytest.fixture
def trips(shop: Shop) -> Shop:
    """The shop, all of it online."""
    for name in ("trip", "plain"):
        materialize(shop.service(name), shop.settings.datasets, shop.versions(), until=END)
    return shop


@pytest.fixture
def door(trips: Shop) -> Iterator[httpx.Client]:
    with opened(trips) as client:
        yield client


def ask(door: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    answer = door.post("/get-online-features", json=body)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def table(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))


@pytest.fixture
def feast_server(trips: Shop) -> Iterator[httpx.Client]:
    store = trips.store()
    init_security_manager(auth_type=AuthManagerType.NONE, fs=store)
    init_auth_manager(ServerType.REST, AuthManagerType.NONE, NoAuthConfig())
    with serving(get_app(store)) as client:
        yield client


def test_answers_are_those_of_feasts_server(trips: Shop, feast_server: httpx.Client) -> None:
    """In everything but the order of the features, and the TTL, which is taken away here."""
    trips.change("views.py", "ttl=timedelta(days=2)", "ttl=timedelta(0)")
    trips.change("views.py", "ttl=timedelta(hours=3)", "ttl=timedelta(0)")
    trips.change("views.py", "ttl=timedelta(days=9)", "ttl=timedelta(0)")
    keys = {"shop": TRIP["shop"], "city": TRIP["city"]}
    bodies: list[dict[str, Any]] = [
        {"entities": keys, "features": ["sales:sold", "sales:last_sale", "sales:recent", "facts:built"]},
        {
            "entities": keys,
            "features": ["sales:best", "weather:temp", "world:mood"],
            "full_feature_names": True,
        },
        {"entities": keys | {"from_city": ["oslo", "rom", "", "bari"]}, "feature_service": "plain"},
        {"entities": keys | {"ignored": [1, 2, 3, 4]}, "features": ["sales:open"]},
        {"entities": {"city": ["rom"], "amount": [9.0], "at": [None]}, "features": ["asking:amount_root"]},
    ]
    with opened(trips) as door:
        for body in bodies:
            ours = table(ask(door, body))
            theirs = table(ask(feast_server, body))
            assert ours == theirs, body
            assert list(ours) == [key for key in body["entities"] if key in ours] + [
                name for name in ours if name not in body["entities"]
            ]
            plain = json.dumps(ours)
            assert "PRESENT" in plain


def test_a_service_answers_for_when_it_is_asked(door: httpx.Client) -> None:
    at = [SOON, int((START + timedelta(hours=6)).timestamp()), SOON, None]
    found = table(ask(door, {"entities": TRIP | {"at": at}, "feature_service": "trip"}))
    assert list(found)[:2] == ["shop", "city"]
    assert found["temp"] == {
        "values": [25.0, -3.5, None, None],
        "statuses": ["PRESENT", "OUTSIDE_MAX_AGE", "NOT_FOUND", "OUTSIDE_MAX_AGE"],
        "event_timestamps": [
            "2024-03-01T06:00:00Z",
            "1970-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
            "1970-01-01T00:00:00Z",
        ],
    } | ({"values": [25.0, None, None, None]})
    assert found["best"]["values"] == ["", None, None, None]
    assert found["best"]["statuses"][0] == "PRESENT"
    assert found["last_sale"]["values"][0] == int((START + timedelta(hours=4.25)).timestamp())
    assert found["amount_root"]["values"] == [2.5, math.sqrt(2) + 0.5, None, 2.5]
    assert found["amount_root"]["statuses"] == ["PRESENT"] * 4


def test_a_list_is_asked_for_now_or_for_a_given_time(door: httpx.Client) -> None:
    body = {"entities": {"city": ["rom"]}, "features": ["weather:temp"]}
    now = table(ask(door, body))["temp"]
    assert (now["values"], now["statuses"]) == ([None], ["OUTSIDE_MAX_AGE"])
    body["entities"]["event_timestamp"] = [SOON]  # type: ignore[index]
    then = table(ask(door, body))
    assert list(then) == ["city", "temp"]
    assert (then["temp"]["values"], then["temp"]["statuses"]) == ([25.0], ["PRESENT"])


def test_features_of_one_name_need_full_names(door: httpx.Client, trips: Shop) -> None:
    trips.change("views.py", 'Field(name="mood", dtype=String)', 'Field(name="temp", dtype=String)')
    trips.change(
        "views.py",
        'source=DatasetSource(name="world"',
        'source=DatasetSource(field_mapping={"mood": "temp"}, name="world"',
    )
    trips.change("views.py", "facts, world, asking])", "facts, asking])")
    catalog_of(trips)
    with opened(trips) as door:
        body: dict[str, Any] = {"entities": {"city": ["rom"]}, "features": ["weather:temp", "world:temp"]}
        refused = door.post("/get-online-features", json=body)
        assert refused.status_code == 400
        assert "full_feature_names" in refused.json()["hint"]
        body |= {"full_feature_names": True}
        body["entities"]["event_timestamp"] = [SOON]
        found = table(ask(door, body))
        assert list(found) == ["city", "weather__temp", "world__temp"]
        assert found["weather__temp"]["values"] == [25.0]


def test_a_feature_that_is_not_written_is_not_found_and_a_null_is_present(trips: Shop) -> None:
    """`measured` is read by an on-demand view only, and `rain` by the other service."""
    (trips.settings.home / "feast" / "online.db").unlink()
    trips.apply()
    materialize(trips.service("plain"), trips.settings.datasets, trips.versions(), until=END)
    with opened(trips) as door:
        body = {"entities": {"city": ["bari", "rom"], "event_timestamp": [START.isoformat()] * 2}}
        found = table(ask(door, body | {"features": ["weather:temp", "weather:rain"]}))
    assert found["temp"]["statuses"] == ["NOT_FOUND", "NOT_FOUND"]
    assert found["rain"]["values"] == [None, 1.0]
    assert found["rain"]["statuses"] == ["PRESENT", "PRESENT"]


def test_what_is_no_number_is_answered_by_name(door: httpx.Client, trips: Shop) -> None:
    for value, text in ((math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")):
        with sqlite3.connect(trips.settings.home / "feast" / "online.db") as connection:
            held = Value(double_val=value).SerializeToString()
            connection.execute("UPDATE test_weather SET value = ? WHERE feature_name = 'temp'", [held])
        body = {
            "entities": {"city": ["rom", "?"], "event_timestamp": [SOON, SOON]},
            "features": ["weather:temp", "weather:rain"],
        }
        found = table(ask(door, body))
        assert found["temp"]["values"] == [text, None]
        assert found["rain"]["values"] == [1.0, None]


GOOD: dict[str, Any] = {"entities": {"city": ["rom"]}, "features": ["weather:temp"]}


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "JSON"),
        (b"[]", 400, "object"),
        (b'{"entities": {"city": [NaN]}}', 400, "JSON"),
        (b"\xff", 400, "JSON"),
        (b"[" * 100_000, 400, "array"),
        ({}, 400, "entities"),
        ({"entities": {}}, 400, "entities"),
        ({"entities": {"city": "rom"}}, 400, "array"),
        ({"entities": {"city": ["rom"]}}, 400, "features"),
        ({"entities": {"city": ["rom"]}, "features": []}, 400, "features"),
        ({"entities": {"city": ["rom"]}, "features": ["weather"]}, 400, "weather"),
        ({"entities": {"city": ["rom"]}, "features": [":temp"]}, 400, "temp"),
        (GOOD | {"features": ["weathr:temp"]}, 404, "weathr"),
        (GOOD | {"features": ["weather:tmp"]}, 404, "tmp"),
        (GOOD | {"feature_service": "strip"}, 404, "strip"),
        (GOOD | {"entities": {"town": ["rom"]}}, 400, "city"),
        (GOOD | {"entities": {"city": [1]}}, 400, "'city'"),
        (GOOD | {"entities": {"city": [["rom"]]}}, 400, "'city'"),
        (GOOD | {"entities": {"city": ["rom"], "shop": [1, 2]}}, 400, "lengths"),
        (GOOD | {"entities": {"city": ["rom"] * 101}}, 400, "101"),
        (GOOD | {"entities": {"city": ["rom"], "event_timestamp": ["soon"]}}, 400, "event_timestamp"),
        (GOOD | {"entities": {"city": ["rom"], "event_timestamp": [1e300]}}, 400, "event_timestamp"),
        (GOOD | {"entities": {"city": ["rom"], "event_timestamp": [True]}}, 400, "event_timestamp"),
        ({"entities": {"shop": ["1"]}, "features": ["facts:built"]}, 400, "'shop'"),
        ({"entities": {"shop": [2**63]}, "features": ["facts:built"]}, 400, "'shop'"),
        ({"entities": {"shop": [1.5]}, "features": ["facts:built"]}, 400, "'shop'"),
        ({"entities": {"shop": [True]}, "features": ["facts:built"]}, 400, "'shop'"),
        (
            {"entities": {"city": ["rom"], "amount": ["x"], "at": [SOON]}, "features": ["asking:age"]},
            400,
            "amount",
        ),
        ({"entities": {"city": ["rom"], "amount": [1.0]}, "features": ["asking:age"]}, 400, "'at'"),
        (b'"' + b" " * (16 * 2**20) + b'"', 413, "16 MiB"),
    ],
)
def test_what_is_not_answered_is_a_problem_that_names_it(
    shop_door: httpx.Client, body: Any, status: int, says: str
) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = shop_door.post(
        "/get-online-features", content=content, headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert says in problem["detail"]
    assert problem["status"] == status
    assert problem["request_id"]


@pytest.fixture(scope="module")
def shop_door(module_shop: Shop) -> Iterator[httpx.Client]:
    with opened(module_shop, Lookup(max_rows=100)) as client:
        yield client


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/get-online-features", 405),
        ("POST", "/health", 405),
        ("POST", "/retrieve-online-documents", 404),
        ("GET", "/push", 405),
        ("POST", "/get-online-features", 415),
    ],
)
def test_paths_and_methods(shop_door: httpx.Client, method: str, path: str, status: int) -> None:
    answer = shop_door.request(method, path, content=b"{}")
    assert answer.status_code == status
    assert answer.json()["hint"]


def test_health_and_description_are_open(shop_door: httpx.Client) -> None:
    assert shop_door.get("/health").status_code == 200
    assert shop_door.head("/health").content == b""
    described = shop_door.get("/").json()
    assert (described["lookup"], described["project"], described["refused"]) == ("lookup", "test", None)
    assert described["version"]


def test_only_the_services_of_the_door_are_answered_for(trips: Shop) -> None:
    with opened(trips, Lookup(features=("plain",))) as door:
        entities = TRIP | {"at": [SOON] * 4, "from_city": ["rom"] * 4}
        assert door.post(
            "/get-online-features", json={"entities": entities, "feature_service": "plain"}
        ).is_success
        refused = door.post("/get-online-features", json={"entities": entities, "feature_service": "trip"})
        assert refused.status_code == 404
        assert "plain" in refused.json()["hint"]


def test_many_rows_are_what_they_are_one_by_one(door: httpx.Client) -> None:
    cities = ["rom", "bari", "oslo", "?", None] * 200
    features = {"features": ["weather:temp", "weather:rain"]}
    body = features | {"entities": {"city": cities, "event_timestamp": [SOON] * 1000}}
    many = table(ask(door, body))
    for i in range(5):
        one = table(ask(door, features | {"entities": {"city": [cities[i]], "event_timestamp": [SOON]}}))
        for name in ("temp", "rain"):
            for part in ("values", "statuses", "event_timestamps"):
                assert many[name][part][i::5] == one[name][part] * 200
