"""The online reader against Feast's SDK: the same store, the same answers, whoever has written it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import psycopg
import pytest
from feast.protos.feast.types.Value_pb2 import Value

from manta.errors import FeaturesUnavailable, NotFound, RequestInvalid
from manta.features.materialize import materialize
from manta.features.online import OnlineReader, Status

from .conftest import START, Shop, every_store

END = START + timedelta(hours=50)
FOREVER = {"weather": 0.0, "sales": 0.0, "world": 0.0, "away": 0.0}


def written(shop: Shop, by: str) -> None:
    """Put everything online, with Feast's own engine or with manta's."""
    if by == "feast":
        shop.apply()
        shop.store().materialize(datetime(1970, 1, 1, tzinfo=UTC), END)
    else:
        for name in ("trip", "plain"):
            materialize(shop.service(name), shop.settings.datasets, shop.versions(), until=END)


def without_ttl(manifest: dict[str, Any]) -> dict[str, Any]:
    """As Feast's SDK reads: whatever the age."""
    for view in manifest["service"]["views"]:
        view["ttl_seconds"] = 0.0
    return manifest


ROWS: list[dict[str, Any]] = [
    {"shop": shop, "city": city, "from_city": away, "amount": amount, "at": START + timedelta(hours=8)}
    for shop, city, away, amount in [
        (1, "rom", "bari", 4.0),
        (2, "rom", "rom", -1.0),
        (3, "bari", "oslo", 0.0),
        (2, "bari", "nowhere", 2.25),
        (99, "", "", 1e9),
        (1, "rom", "bari", 4.0),
    ]
]


def columns(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in names}


def plain_values(answer: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {name: [None if v is None else v for v in values] for name, values in answer.items()}


@every_store
@pytest.mark.parametrize("by", ["feast", "manta"])
def test_answers_are_the_sdks(shop: Shop, by: str) -> None:
    written(shop, by)
    store = shop.store()
    for service in ("trip", "plain"):
        reader = OnlineReader(without_ttl(shop.manifest(service)), service)
        asked = (*reader.join_keys, *reader.request_fields)
        sdk = store.get_online_features(
            store.get_feature_service(service), [{name: row[name] for name in asked} for row in ROWS]
        ).to_dict()
        looked = reader.read(columns(ROWS, asked), [END] * len(ROWS))
        assert list(looked.values) == list(reader.features)
        assert {name: sdk[name] for name in reader.features} == plain_values(looked.values)
        assert sum(value is not None for column in looked.values.values() for value in column) > 10
        assert asyncio.run(reader.read_async(columns(ROWS, asked), [END] * len(ROWS))) == looked


@every_store
def test_what_manta_writes_is_byte_for_byte_what_feast_writes(shop: Shop, online_kind: str) -> None:
    written(shop, "feast")
    feast = content(shop, online_kind)
    assert len(feast) > 20
    written(shop, "manta")
    assert content(shop, online_kind) == feast
    emptied(shop, online_kind)
    assert content(shop, online_kind) == {}
    written(shop, "manta")
    assert content(shop, online_kind) == feast


def content(shop: Shop, kind: str) -> dict[Any, Any]:
    """All that is online. Feast writes a missing time as the smallest one, manta as nothing, like others."""
    smallest = Value(unix_timestamp_val=-(2**63)).SerializeToString()
    if kind == "redis":
        with redis_client() as client:
            hashes = {key: client.hgetall(key) for key in client.scan_iter()}
        return {
            (key, field): b"" if value == smallest else value
            for key, held in hashes.items()
            for field, value in held.items()
        }
    found: dict[Any, Any] = {}
    with online_connection(shop, kind) as connection:
        for name in ("sales", "weather", "facts", "world"):
            for key, feature, value, *rest in connection.execute(f"SELECT * FROM test_{name}").fetchall():
                found[name, key, feature] = (b"" if value == smallest else value, *rest)
    return found


def emptied(shop: Shop, kind: str) -> None:
    if kind == "redis":
        with redis_client() as client:
            client.flushall()
        return
    with online_connection(shop, kind) as connection:
        for name in ("sales", "weather", "facts", "world"):
            connection.execute(f"DELETE FROM test_{name}")


def redis_client() -> Any:
    import redis

    return redis.Redis(port=int(os.environ["TEST_REDIS_PORT"]), password=os.environ["TEST_PASSWORD"])


def online_connection(shop: Shop, kind: str) -> Any:
    if kind == "sqlite":
        return sqlite3.connect(shop.settings.home / "feast" / "online.db")
    schema = os.environ["TEST_PG_SCHEMA"]
    return psycopg.connect(
        host=os.environ["TEST_PG_HOST"], user="postgres", options=f"-c search_path={schema}", autocommit=True
    )


def test_types_and_columns_are_said(shop: Shop) -> None:
    reader = OnlineReader(shop.manifest("trip"), "trip")
    assert reader.join_keys == ("shop", "city")
    assert reader.request_fields == {"amount": "float64", "at": "timestamp"}
    assert reader.features == {
        "sold": "float64",
        "buyers": "int64",
        "best": "string",
        "open": "bool",
        "last_sale": "timestamp",
        "recent": "list[float64]",
        "temp": "float64",
        "built": "int64",
        "mood": "string",
        "amount_root": "float64",
        "warmer": "bool",
        "age": "int64",
    }
    assert OnlineReader(shop.manifest("plain"), "plain").join_keys == ("shop", "city", "from_city")


@every_store
def test_a_value_is_left_out_when_the_join_would_leave_it_out(shop: Shop) -> None:
    written(shop, "manta")
    reader = OnlineReader(shop.manifest("trip"), "trip")
    measured = START + timedelta(hours=6)  # the newest of `weather` in Rome; it holds for three hours
    at = [
        measured,
        measured + timedelta(hours=3),
        measured + timedelta(hours=3, microseconds=1),
        (measured + timedelta(hours=3)).replace(tzinfo=None),
        END,
    ]
    rows = [ROWS[0] | {"at": when} for when in at]
    looked = reader.read(columns(rows, ("shop", "city", "amount", "at")), at)
    assert looked.values["temp"] == [25.0, 25.0, None, 25.0, None]
    assert looked.values["warmer"] == [True, True, None, True, None]
    assert looked.values["amount_root"] == [2.5] * 5
    assert looked.status["weather"] == [
        Status.PRESENT,
        Status.PRESENT,
        Status.OUTSIDE_MAX_AGE,
        Status.PRESENT,
        Status.OUTSIDE_MAX_AGE,
    ]
    assert looked.fresh_as_of["weather"] == [measured, measured, None, measured, None]
    assert looked.status["facts"] == [Status.PRESENT] * 5
    assert looked.fresh_as_of["facts"] == [datetime(1970, 1, 1, tzinfo=UTC)] * 5

    joined = shop.store().get_historical_features(
        pl.DataFrame(rows[:3] + rows[4:])
        .rename({"at": "event_timestamp"})
        .with_columns(at="event_timestamp")
        .to_pandas(),
        shop.store().get_feature_service("trip"),
    )
    assert joined.to_arrow()["temp"].to_pylist() == [25.0, 25.0, None, None]


@every_store
def test_unknown_and_missing_keys_are_not_found(shop: Shop) -> None:
    written(shop, "manta")
    reader = OnlineReader(shop.manifest("trip"), "trip")
    asked = {
        "shop": [1, 1, None, 99],
        "city": ["rom", None, "rom", "?"],
        "amount": [None] * 4,
        "at": [None] * 4,
    }
    looked = reader.read(asked, [START + timedelta(hours=6)] * 4)
    assert looked.status["sales"] == [Status.PRESENT, Status.NOT_FOUND, Status.NOT_FOUND, Status.NOT_FOUND]
    assert looked.status["facts"] == [Status.PRESENT, Status.PRESENT, Status.NOT_FOUND, Status.NOT_FOUND]
    assert looked.values["built"] == [1990, 1990, None, None]
    assert looked.values["mood"] == ["gay"] * 4
    assert looked.values["amount_root"] == [None] * 4
    empty = reader.read({name: [] for name in asked}, [])
    assert all(column == [] for column in empty.values.values())


def test_many_rows_at_once_are_what_they_are_one_by_one(shop: Shop) -> None:
    chance = random.Random(5)
    cities = [f"city{i}" for i in range(700)]
    frame = pl.DataFrame(
        {
            "city": cities,
            "hour": [START + timedelta(hours=chance.randrange(10)) for _ in cities],
            "temp": [chance.random() for _ in cities],
            "rain": [0.0] * 700,
            "measured": [START] * 700,
        }
    )
    shop.put("weather", frame)
    written(shop, "manta")
    reader = OnlineReader(shop.manifest("trip"), "trip")
    at = [START + timedelta(hours=chance.randrange(14)) for _ in range(1500)]
    asked: dict[str, list[Any]] = {
        "shop": [chance.randrange(4) for _ in at],
        "city": [chance.choice([*cities, "rom", "nowhere"]) for _ in at],
        "amount": [1.0 for _ in at],
        "at": at,
    }
    whole = reader.read(asked, at)
    for i in chance.sample(range(len(at)), 200):
        one = reader.read({name: [column[i]] for name, column in asked.items()}, [at[i]])
        assert {name: [column[i]] for name, column in whole.values.items()} == one.values
        assert {name: [column[i]] for name, column in whole.status.items()} == one.status
    assert len(set(map(str, whole.status["weather"]))) == 3


def test_wrong_input_says_what_to_give(shop: Shop) -> None:
    written(shop, "manta")
    reader = OnlineReader(shop.manifest("trip"), "trip")
    good = columns(ROWS[:1], ("shop", "city", "amount", "at"))
    reader.read(good, [END])
    for changed, says, hint in [
        ({"shop": None}, "the join key 'shop' is missing", "give shop, city, amount, at"),
        ({"amount": None}, "the request field 'amount' is missing", "give shop, city, amount, at"),
        ({"shop": ["1"]}, "'1' is not an integer", "shop is int64"),
        ({"shop": [True]}, "True is not an integer", "shop is int64"),
        ({"shop": [2**70]}, "does not fit int64", "shop is int64"),
        ({"city": [5]}, "5 is not a string", "city is string"),
        ({"amount": ["4"]}, "request field 'amount' holds '4'", "float64"),
        ({"at": ["2024-01-01"]}, "request field 'at' holds '2024-01-01'", "timestamp"),
        ({"shop": [1, 2]}, "'shop' has 2 values for 1 rows", ""),
    ]:
        asked = {name: value for name, value in {**good, **changed}.items() if value is not None}
        with pytest.raises(RequestInvalid, match=says) as failure:
            reader.read(asked, [END])
        assert hint in failure.value.hint


def test_a_store_that_is_not_there_says_what_to_do(shop: Shop) -> None:
    manifest = shop.manifest("trip")
    asked = columns(ROWS[:1], ("shop", "city", "amount", "at"))
    (shop.settings.home / "feast" / "online.db").unlink()
    with pytest.raises(FeaturesUnavailable, match="unable to open") as failure:
        OnlineReader(manifest, "trip").read(asked, [END])
    assert "materialize" in failure.value.hint
    materialize(shop.service("plain"), shop.settings.datasets, shop.versions(), until=END)
    manifest["service"]["views"][0]["table"] = "test_gone"
    with pytest.raises(FeaturesUnavailable, match="no such table: test_gone"):
        OnlineReader(manifest, "trip").read(asked, [END])
    manifest["service"]["store"]["kind"] = "etcd"
    with pytest.raises(FeaturesUnavailable, match="kind 'etcd'"):
        OnlineReader(manifest, "trip")
    with pytest.raises(NotFound, match="not 'plain'"):
        OnlineReader(manifest, "plain")


WRITE_ELSEWHERE = """
import json, sys
from datetime import datetime
from manta.features.compiled import read_manifest, service_of
from manta.features.materialize import materialize
manifest, root, lake, versions, until, at = json.loads(sys.argv[1])
materialize(service_of(read_manifest(manifest), "trip"), lake, versions, datetime.fromisoformat(until))
assert "feast" not in sys.modules
"""
READ_ELSEWHERE = """
import json, sys
from datetime import datetime
manifest, root, lake, versions, until, at = json.loads(sys.argv[1])
sys.path.insert(0, root)
from manta.features.online import OnlineReader
reader = OnlineReader(json.load(open(manifest)), "trip")
rows = {"shop": [1], "city": ["rom"], "amount": [4.0], "at": [datetime.fromisoformat(at)]}
looked = reader.read(rows, rows["at"])
heavy = {"feast", "google.protobuf", "polars", "pandas", "pyarrow", "torch"} & set(sys.modules)
fresh = looked.fresh_as_of["weather"][0].isoformat()
print(json.dumps([looked.values["temp"], looked.values["age"], fresh, sorted(heavy)]))
"""


@pytest.mark.parametrize("zone", ["UTC", "America/New_York"])
def test_a_replica_loads_no_feast_and_reads_the_same_in_any_zone(shop: Shop, zone: str) -> None:
    at = (START + timedelta(hours=7)).isoformat()
    manifest = str(shop.apply()["trip"])
    given = json.dumps(
        [manifest, str(shop.root), shop.settings.datasets, shop.versions(), END.isoformat(), at]
    )
    for code in (WRITE_ELSEWHERE, READ_ELSEWHERE):
        command = [sys.executable, "-c", code, given]
        done = subprocess.run(command, env=os.environ | {"TZ": zone}, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
    temp, age, fresh, heavy = json.loads(done.stdout.splitlines()[-1])
    assert (temp, age, fresh) == ([25.0], [4500], (START + timedelta(hours=6)).isoformat())
    assert heavy == []


def test_one_key_is_read_in_less_than_a_millisecond(shop: Shop) -> None:
    written(shop, "manta")
    reader = OnlineReader(shop.manifest("trip"), "trip")
    asked = columns(ROWS[:1], ("shop", "city", "amount", "at"))
    took = []
    for _ in range(500):
        began = time.perf_counter()
        reader.read(asked, [END])
        took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 0.001
