"""What the tests of the look-up door share: a project that is pushed to, and the door over real HTTP."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from manta.definitions import Lookup
from manta.features.apply import register
from manta.features.catalog import Catalog, read_catalog
from manta.features.repo import parse
from manta.serving.asgi import Asgi
from manta.serving.lookup.callers import Callers
from manta.serving.lookup.door import Door
from tests.conftest import free_ports

from .conftest import Shop

PUSHING = """
from datetime import timedelta

from feast import FeatureService, FeatureView, Field, PushSource
from feast.types import Array, Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp

from features.views import city, shop
from manta.features import DatasetSource

tills = DatasetSource(
    name="tills",
    dataset="tills",
    timestamp_field="at",
    created_timestamp_column="written",
    field_mapping={"amount": "takings"},
)
pushed = PushSource(name="tills_push", batch_source=tills)
till = FeatureView(
    name="till",
    entities=[shop],
    schema=[
        Field(name="shop", dtype=Int64),
        Field(name="takings", dtype=Float64),
        Field(name="cashier", dtype=String),
        Field(name="recent", dtype=Array(Float64)),
        Field(name="opened", dtype=UnixTimestamp),
    ],
    source=pushed,
)
queue = FeatureView(
    name="queue",
    entities=[shop],
    ttl=timedelta(days=3),
    schema=[
        Field(name="shop", dtype=Int64),
        Field(name="waiting", dtype=Int32),
        Field(name="calm", dtype=Bool),
    ],
    source=pushed,
)
counter = FeatureService(name="counter", features=[till, queue])
"""


def catalog_of(shop: Shop, lookup: Lookup | None = None) -> tuple[str, Catalog]:
    path = register(parse(shop.root, shop.settings), shop.root, shop.settings).catalog
    return path.stem, read_catalog(path)


@contextmanager
def serving(app: Any) -> Iterator[httpx.Client]:
    """A client of an ASGI application, which runs in a thread of this process."""
    port = free_ports().server
    config = uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", timeout_keep_alive=600)
    server = uvicorn.Server(config)  # a slow machine may take its time between two requests
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while not server.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@contextmanager
def opened(
    shop: Shop, lookup: Lookup | None = None, callers: Callers | None = None
) -> Iterator[httpx.Client]:
    """A client of the door, over what is registered now."""
    door = Door(lookup or Lookup(), shop.settings.project, callers, shop.settings.datasets)
    door.load(*catalog_of(shop))
    with serving(Asgi(door)) as client:
        yield client
