"""A small project with every kind of view that manta serves, its datasets, and Feast on top of both."""

from __future__ import annotations

import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from feast import FeatureStore
from sqlalchemy import make_url

from manta.data.lake import Lake
from manta.features.apply import apply
from manta.features.compiled import Service, read_manifest, service_of
from manta.features.repo import open_store, parse
from manta.settings import Settings
from tests.soak.parts import RedisServer

PASSWORD = "a-password-of-the-tests"
STORE = """
project: ${MANTA_PROJECT}
provider: local
registry:
  registry_type: sql
  path: sqlite:///${MANTA_HOME}/feast/registry.db
  cache_ttl_seconds: 0
  serve_features_while_materializing: true
offline_store:
  type: manta.features.offline.AsofOfflineStore
  lake: ${MANTA_LAKE}
online_store: ONLINE
materialization:
  pull_latest_features: true
entity_key_serialization_version: 3
"""

ONLINE = {
    "sqlite": "{type: sqlite, path: '${MANTA_HOME}/feast/online.db'}",
    "redis": "{type: redis, connection_string: '127.0.0.1:${TEST_REDIS_PORT},password=${TEST_PASSWORD}'}",
    "postgres": "{type: postgres, host: '${TEST_PG_HOST}', database: postgres, user: postgres, "
    "db_schema: '${TEST_PG_SCHEMA}', password: '${TEST_PASSWORD}'}",
}
KINDS = list(ONLINE)
every_store = pytest.mark.parametrize("online_kind", KINDS, indirect=True)

ASKED = '''
"""Free of Feast."""
import math

STEP = 0.5

def _root(value):
    return None if value is None or value < 0 else math.sqrt(value) + STEP

def asked(columns):
    return {
        "amount_root": [_root(value) for value in columns["amount"]],
        "warmer": [None if t is None else t > 20 for t in columns["weather__temp"]],
        "age": [
            None if seen is None or at is None else int((at - seen).total_seconds())
            for at, seen in zip(columns["at"], columns["measured"])
        ],
    }
'''

VIEWS = """
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, OnDemandFeatureView, RequestSource, ValueType
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from features.asking import asked
from manta.features import DatasetSource

shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.INT64)
city = Entity(name="city", join_keys=["city"], value_type=ValueType.STRING)

sales = FeatureView(
    name="sales",
    entities=[shop, city],
    ttl=timedelta(days=2),
    schema=[
        Field(name="shop", dtype=Int64),
        Field(name="city", dtype=String),
        Field(name="sold", dtype=Float32),
        Field(name="buyers", dtype=Int32),
        Field(name="best", dtype=String),
        Field(name="open", dtype=Bool),
        Field(name="last_sale", dtype=UnixTimestamp),
        Field(name="recent", dtype=Array(Float64)),
    ],
    source=DatasetSource(
        name="sales", dataset="sales", timestamp_field="at", created_timestamp_column="written"
    ),
)
weather = FeatureView(
    name="weather",
    entities=[city],
    ttl=timedelta(hours=3),
    schema=[
        Field(name="city", dtype=String),
        Field(name="temp", dtype=Float64),
        Field(name="rain", dtype=Float64),
        Field(name="measured", dtype=UnixTimestamp),
    ],
    source=DatasetSource(name="weather", dataset="weather", timestamp_field="hour"),
)
facts = FeatureView(
    name="facts",
    entities=[shop],
    ttl=timedelta(0),
    schema=[Field(name="shop", dtype=Int64), Field(name="built", dtype=Int64)],
    source=DatasetSource(
        name="facts", dataset="facts", timestamp_field=None, field_mapping={"year": "built"}
    ),
)
world = FeatureView(
    name="world",
    entities=[],
    ttl=timedelta(days=9),
    schema=[Field(name="mood", dtype=String)],
    source=DatasetSource(name="world", dataset="world", timestamp_field="day"),
)
request = RequestSource(
    name="request", schema=[Field(name="amount", dtype=Float64), Field(name="at", dtype=UnixTimestamp)]
)
asking = OnDemandFeatureView(
    name="asking",
    sources=[request, weather[["temp", "measured"]]],
    schema=[
        Field(name="amount_root", dtype=Float64),
        Field(name="warmer", dtype=Bool),
        Field(name="age", dtype=Int64),
    ],
    mode="python",
    udf=asked,
)
trip = FeatureService(name="trip", features=[sales, weather[["temp"]], facts, world, asking])
plain = FeatureService(
    name="plain",
    features=[
        sales,
        facts,
        world,
        weather[["rain"]].with_name("away").with_join_key_map({"city": "from_city"}),
    ],
)
"""

START = datetime(2024, 3, 1, tzinfo=UTC)


def hours(*offsets: float | None) -> list[datetime | None]:
    return [None if h is None else START + timedelta(hours=h) for h in offsets]


def datasets() -> dict[str, pl.DataFrame]:
    """Ties, late rows, missing values and keys, more than one row a key."""
    return {
        "sales": pl.DataFrame(
            {
                "shop": [1, 1, 1, 2, 2, None, 3],
                "city": ["rom", "rom", "rom", "rom", None, "rom", "bari"],
                "at": hours(0, 5, 5, 1, 2, 3, 30),
                "written": hours(0, 9, 6, 1, 2, 3, 30),
                "sold": [0.1, 1.5, 2.5, None, 9.0, 9.0, float("nan")],
                "buyers": [1, 2, 3, -4, 5, 6, 7],
                "best": ["ham", "", None, "égg", "x", "x", "tea"],
                "open": [True, False, None, True, True, True, False],
                "last_sale": hours(0.5, 4.25, 4.5, None, 1, 1, 29),
                "recent": [[1.0], [], None, [1.5, -2.0], [1.0], [1.0], [3.0]],
            },
            schema_overrides={"buyers": pl.Int64, "shop": pl.Int64},
        ),
        "weather": pl.DataFrame(
            {
                "city": ["rom", "rom", "bari", "rom", "oslo"],
                "hour": hours(0, 6, 2, 3, 40),
                "temp": [10.0, 25.0, -3.5, 22.0, None],
                "rain": [0.0, 1.0, None, 3.0, 2.0],
                "measured": hours(-0.5, 5.75, 1.5, None, 39.5),
            }
        ),
        "facts": pl.DataFrame({"shop": [1, 2, 2], "year": [1990, None, 2001]}),
        "world": pl.DataFrame({"day": hours(0, 24), "mood": ["calm", "gay"]}),
    }


@dataclass
class Shop:
    """The project, with its settings and its lake."""

    root: Path
    settings: Settings

    @property
    def lake(self) -> Lake:
        return Lake(self.settings.datasets)

    def put(self, dataset: str, frame: pl.DataFrame, key: str = "") -> int:
        return self.lake.replace(dataset, frame, run_key=key or f"{dataset}-{self.lake.version(dataset)}")

    def versions(self) -> dict[str, int]:
        return {name: self.lake.version(name) or 0 for name in datasets()}

    def write(self, name: str, text: str) -> None:
        path = self.root / "features" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))

    def change(self, name: str, old: str, new: str) -> None:
        text = (self.root / "features" / name).read_text()
        assert old in text
        self.write(name, text.replace(old, new))

    def apply(self) -> dict[str, Path]:
        return apply(parse(self.root, self.settings), self.root, self.settings)

    def service(self, name: str) -> Service:
        return service_of(self.manifest(name), name)

    def manifest(self, name: str) -> dict[str, Any]:
        return read_manifest(self.apply()[name])

    def store(self) -> FeatureStore:
        return open_store(self.root, self.settings)


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"), PASSWORD)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def online_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of online store, empty; its server is up."""
    kind = str(getattr(request, "param", "sqlite"))
    monkeypatch.setenv("TEST_PASSWORD", PASSWORD)
    if kind == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        server.client().flushall()
        monkeypatch.setenv("TEST_REDIS_PORT", str(server.port))
    if kind == "postgres":
        monkeypatch.setenv("TEST_PG_HOST", str(make_url(request.getfixturevalue("postgres")).query["host"]))
        monkeypatch.setenv("TEST_PG_SCHEMA", f"s{uuid.uuid4().hex}")
    return kind


@pytest.fixture
def new_shop(settings: Settings, monkeypatch: pytest.MonkeyPatch, online_kind: str) -> Callable[[], Shop]:
    """The project before anything has been applied; its folder is the working directory, as in a worker."""

    return lambda: _made(Shop(settings.root, settings), monkeypatch, online_kind)


@pytest.fixture
def shop(new_shop: Callable[[], Shop]) -> Iterator[Shop]:
    yield new_shop()
    _forget()


def _made(shop: Shop, patch: pytest.MonkeyPatch, kind: str = "sqlite") -> Shop:
    shop.write("feature_store.yaml", STORE.replace("ONLINE", ONLINE[kind]))
    shop.write("asking.py", ASKED)
    shop.write("views.py", VIEWS)
    for name, frame in datasets().items():
        shop.put(name, frame)
    patch.chdir(shop.root)
    patch.syspath_prepend(str(shop.root))
    return shop


def _forget() -> None:
    for name in [name for name in sys.modules if name == "features" or name.startswith("features.")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def module_shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """The project, applied and with nothing online yet, for tests of a module that change nothing of it."""
    root = tmp_path_factory.mktemp("shop")
    settings = Settings(project="test", root=root, home=root / ".manta")._resolved()
    with pytest.MonkeyPatch.context() as patch:
        yield _made(Shop(settings.root, settings), patch)
    _forget()
