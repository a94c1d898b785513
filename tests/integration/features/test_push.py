"""Pushing rows through the door: online, offline, both; checked by Feast's SDK and by the lake itself."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import polars as pl
import pytest

from manta.errors import DefinitionInvalid
from manta.features.materialize import materialize
from manta.features.repo import parse

from .conftest import START, Shop
from .doors import PUSHING, opened

AT = START + timedelta(hours=10)


def history() -> pl.DataFrame:
    """One row, of shop 1."""
    return pl.DataFrame(
        {
            "shop": [1],
            "at": [START],
            "written": [START],
            "amount": [1.0],
            "cashier": ["ada"],
            "recent": [[0.5]],
            "opened": [START],
            "waiting": [3],
            "calm": [True],
            "remark": ["from the ingest"],
        },
        schema_overrides={"waiting": pl.Int64},
    )


@pytest.fixture
def shop_pushed_to(shop: Shop) -> Shop:
    """With a dataset that has one row, of shop 1, nothing of it online, and the cursor of an ingest."""
    shop.write("pushing.py", PUSHING)
    shop.lake.replace("tills", history(), run_key="first", metadata={"cursors": {"tills": {"t": {"0": 7}}}})
    return shop


@pytest.fixture
def door(shop_pushed_to: Shop) -> Iterator[httpx.Client]:
    with opened(shop_pushed_to) as client:
        yield client


def rows(*each: dict[str, Any]) -> dict[str, list[Any]]:
    whole = {
        "shop": 1,
        "at": AT.isoformat(),
        "amount": 2.5,
        "cashier": "bob",
        "recent": [1, 2.5],
        "opened": int(START.timestamp()),
        "waiting": 4,
        "calm": False,
    }
    return {name: [(whole | row)[name] for row in each] for name in whole}


def push(door: httpx.Client, df: dict[str, Any], to: str = "online") -> httpx.Response:
    return door.post("/push", json={"push_source_name": "tills_push", "df": df, "to": to})


def held(door: httpx.Client, *shops: int) -> dict[str, list[Any]]:
    body = {
        "entities": {"shop": list(shops), "event_timestamp": [AT.isoformat()] * len(shops)},
        "feature_service": "counter",
    }
    answer = door.post("/get-online-features", json=body).raise_for_status().json()
    return {
        name: result["values"]
        for name, result in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
    }


def test_what_is_pushed_online_is_read_by_the_door_and_by_the_sdk(
    door: httpx.Client, shop_pushed_to: Shop
) -> None:
    assert push(door, rows({}, {"shop": 2, "cashier": None, "recent": None, "opened": None})).is_success
    found = held(door, 1, 2, 3)
    assert found == {
        "shop": [1, 2, 3],
        "takings": [2.5, 2.5, None],
        "cashier": ["bob", None, None],
        "recent": [[1.0, 2.5], None, None],
        "opened": [int(START.timestamp()), None, None],
        "waiting": [4, 4, None],
        "calm": [False, False, None],
    }
    store = shop_pushed_to.store()
    keys = [{"shop": each} for each in (1, 2, 3)]
    sdk = store.get_online_features(store.get_feature_service("counter"), keys).to_dict()
    sdk["opened"] = [each and int(each.timestamp()) for each in sdk["opened"]]
    assert sdk == found
    assert shop_pushed_to.lake.version("tills") == 0


def test_the_newest_event_time_wins_in_any_order_and_among_many_at_once(door: httpx.Client) -> None:
    assert push(
        door, rows({"amount": 1.0}, {"amount": 3.0, "at": (AT + timedelta(hours=1)).isoformat()}, {})
    ).is_success
    assert held(door, 1)["takings"] == [3.0]
    assert push(door, rows({"amount": 9.0})).is_success  # older
    assert held(door, 1)["takings"] == [3.0]
    many = [rows({"amount": float(n), "at": (AT + timedelta(minutes=61 + n)).isoformat()}) for n in range(20)]
    with ThreadPoolExecutor(8) as several:
        answers = list(several.map(lambda df: push(door, df), reversed(many)))
    assert {answer.status_code for answer in answers} == {200}
    assert held(door, 1)["takings"] == [19.0]


def test_offline_is_one_commit_which_keeps_the_ingests_cursor(
    door: httpx.Client, shop_pushed_to: Shop
) -> None:
    lake = shop_pushed_to.lake
    df = rows({}, {"shop": 2})
    assert push(door, df, "offline").is_success
    assert push(door, df, "offline").is_success  # the same rows again, as a client that lost the answer sends
    assert lake.version("tills") == 1
    assert lake.metadata("tills")["cursors"] == {"tills": {"t": {"0": 7}}}
    frame = lake.read("tills")
    assert frame["remark"].to_list() == ["from the ingest", None, None]
    assert frame["shop"].to_list() == [1, 1, 2]
    assert frame["written"][1] > datetime.now(UTC) - timedelta(hours=1)
    assert held(door, 1)["takings"] == [None]  # nothing online


def test_both_agree_and_materializing_takes_nothing_newer_away(
    door: httpx.Client, shop_pushed_to: Shop
) -> None:
    later = rows({"amount": 8.0, "at": (AT + timedelta(hours=1)).isoformat()})
    assert push(door, rows({}), "online_and_offline").is_success
    assert push(door, later, "online").is_success
    service, versions = shop_pushed_to.service("counter"), {"tills": 1}
    materialize(service, shop_pushed_to.settings.datasets, versions)
    assert held(door, 1)["takings"] == [8.0]
    joined = shop_pushed_to.store().get_historical_features(
        pl.DataFrame({"shop": [1, 1], "event_timestamp": [AT, START]}).to_pandas(),
        shop_pushed_to.store().get_feature_service("counter"),
    )
    assert sorted(joined.to_arrow()["takings"].to_pylist()) == [1.0, 2.5]


def test_pushes_offline_at_once_are_all_there_once(door: httpx.Client, shop_pushed_to: Shop) -> None:
    several = [rows({"shop": n}) for n in range(10)] * 2
    with ThreadPoolExecutor(6) as at_once:
        answers = list(at_once.map(lambda df: push(door, df, "offline"), several))
    assert {answer.status_code for answer in answers} == {200}
    assert sorted(shop_pushed_to.lake.read("tills")["shop"].to_list()) == sorted([1, *range(10)])


def without(df: dict[str, list[Any]], name: str) -> dict[str, list[Any]]:
    return {column: values for column, values in df.items() if column != name}


@pytest.mark.parametrize(
    ("df", "status", "says"),
    [
        (without(rows({}), "at"), 400, "'at'"),
        (without(rows({}), "amount"), 400, "'amount'"),
        (without(rows({}), "shop"), 400, "'shop'"),
        (rows({"at": None}), 400, "'at' must not be null"),
        (rows({"shop": None}), 400, "'shop' must not be null"),
        (rows({"at": "soon"}), 400, "'at'"),
        (rows({"at": True}), 400, "'at'"),
        (rows({"shop": "1"}), 400, "'shop'"),
        (rows({"shop": 2**63}), 400, "'shop'"),
        (rows({"waiting": 2**40}), 400, "'waiting'"),
        (rows({"waiting": 1.5}), 400, "'waiting'"),
        (rows({"calm": 1}), 400, "'calm'"),
        (rows({"amount": "2.5"}), 400, "'amount'"),
        (rows({"recent": 1.0}), 400, "'recent'"),
        (rows({"recent": ["x"]}), 400, "'recent'"),
        (rows({}) | {"amont": [1.0]}, 400, "amont"),
        (rows({}, {}) | {"amount": [1.0]}, 400, "lengths"),
        ({}, 400, "df"),
        ({"shop": {"0": 1}}, 400, "array"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_written(
    module_door: httpx.Client, df: dict[str, Any], status: int, says: str
) -> None:
    answer = push(module_door, df, "online_and_offline")
    assert answer.status_code == status, answer.text
    assert says in answer.json()["detail"]
    assert held(module_door, 1)["takings"] == [None]


@pytest.fixture(scope="module")
def module_door(module_shop: Shop) -> Iterator[httpx.Client]:
    module_shop.write("pushing.py", PUSHING)
    of = rows({"recent": [1.0]})
    shape = {name: values for name, values in of.items() if name not in ("at", "opened")}
    frame = pl.DataFrame(shape).with_columns(at=pl.lit(START), opened=pl.lit(START), written=pl.lit(START))
    module_shop.put("tills", frame)
    with opened(module_shop) as client:
        yield client


def test_what_there_is_to_push_to(module_door: httpx.Client) -> None:
    body = {"push_source_name": "till_push", "df": rows({})}
    unknown = module_door.post("/push", json=body)
    assert (unknown.status_code, "tills_push" in unknown.json()["hint"]) == (404, True)
    assert module_door.post("/push", json=body | {"to": "moon"}).status_code == 400
    body = {"feature_view_name": "sales", "df": {"shop": [1]}}
    refused = module_door.post("/write-to-online-store", json=body)
    assert (refused.status_code, "not pushed to" in refused.json()["detail"]) == (400, True)
    assert (
        module_door.post("/write-to-online-store", json=body | {"feature_view_name": "?"}).status_code == 404
    )
    assert push(module_door, rows()).is_success  # no rows
    large = json.dumps({"push_source_name": "tills_push", "df": {"shop": [1]}, "x": " " * 2**24}).encode()
    headers = {"content-type": "application/json"}
    assert module_door.post("/push", content=large, headers=headers).status_code == 413


def test_a_view_is_written_by_name_with_feasts_names_for_times(
    door: httpx.Client, shop_pushed_to: Shop
) -> None:
    df = {
        "shop": [1],
        "waiting": [7],
        "calm": [True],
        "event_timestamp": [AT.replace(tzinfo=None).isoformat()],
        "created": [None],
    }
    body = {"feature_view_name": "queue", "df": df, "allow_registry_cache": False}
    assert door.post("/write-to-online-store", json=body).is_success
    found = held(door, 1)
    assert (found["waiting"], found["calm"], found["takings"]) == ([7], [True], [None])


def test_a_push_source_that_cannot_be_pushed_to_is_refused(shop: Shop) -> None:
    timeless = PUSHING.replace('timestamp_field="at"', "timestamp_field=None").replace(
        "    ttl=timedelta(days=3),\n", ""
    )
    shop.write("pushing.py", timeless)
    with pytest.raises(DefinitionInvalid, match="has no time"):
        parse(shop.root, shop.settings)
