"""One feature view of numbers on each kind of online store, its rows in a lake, and Feast on top of both."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from feast import FeatureStore

from manta.data.lake import Lake
from manta.features.apply import apply
from manta.features.compiled import read_manifest
from manta.features.repo import open_store, parse
from manta.settings import Settings
from tests.soak.parts import Postgres, RedisServer

os.environ.setdefault("BENCH_PASSWORD", "nothing-to-hide")
AT = datetime(2026, 1, 1, tzinfo=UTC)
STORES = ("sqlite", "redis", "postgres")
STORE = """
project: ${MANTA_PROJECT}
provider: local
registry: {registry_type: sql, path: "sqlite:///${MANTA_HOME}/feast/registry.db", cache_ttl_seconds: 600,
  serve_features_while_materializing: true}
offline_store: {type: manta.features.offline.AsofOfflineStore, lake: "${MANTA_LAKE}"}
online_store: ONLINE
batch_engine: ENGINE
materialization: {pull_latest_features: true, online_write_batch_size: 10000}
entity_key_serialization_version: 3
"""
SOURCE = 'DatasetSource(name="stats", dataset="stats", timestamp_field="at")'
VIEWS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
from feast.types import Float64, Int64
from manta.features import DatasetSource

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[user], ttl=timedelta(days=7),
    schema=[Field(name="user", dtype=Int64)] + [Field(name=f"f{n}", dtype=Float64) for n in range(FEATURES)],
    source=DatasetSource(name="stats", dataset="stats", timestamp_field="at"),
)
wide = FeatureService(name="wide", features=[stats])
"""


@dataclass
class Repository:
    kind: str
    root: Path
    settings: Settings
    manifest: dict[str, Any]
    version: int
    store: FeatureStore
    server: Any  # what runs the store; None for a file


@contextmanager
def repository(
    kind: str,
    frame: pl.DataFrame,
    features: int,
    *,
    engine: str = "local",
    append: str = "no",
    pushed: bool = False,
) -> Iterator[Repository]:
    """A repository on a store of its own, with those rows in its dataset and nothing online. ``append``:
    whether Redis writes to disk; ``pushed``: whether the view is pushed to."""
    folder = Path(tempfile.mkdtemp(prefix="fb", dir=os.environ.get("MANTA_BENCH_FOLDER", "/tmp")))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        before = Path.cwd(), list(sys.path)
        os.chdir(folder)
        stack.callback(os.chdir, before[0])
        sys.path.insert(0, str(folder))
        stack.callback(_forget, before[1])
        (folder / "features").mkdir()
        online, server = _online(kind, folder, stack, append)
        text = STORE.replace("ONLINE", online).replace("ENGINE", engine)
        (folder / "features/feature_store.yaml").write_text(text)
        views = VIEWS.replace(SOURCE, f'PushSource(name="push", batch_source={SOURCE})') if pushed else VIEWS
        (folder / "features/views.py").write_text(views.replace("FEATURES", str(features)))
        settings = Settings(project="bench", root=folder, home=folder / ".manta")._resolved()
        version = Lake(settings.datasets).replace("stats", frame, run_key="bench")
        manifest = read_manifest(apply(parse(folder, settings), folder, settings)["wide"])
        yield Repository(kind, folder, settings, manifest, version, open_store(folder, settings), server)


def rows(keys: int, features: int) -> pl.DataFrame:
    chance = np.random.default_rng(1)
    values = {f"f{number}": chance.normal(100, 30, keys) for number in range(features)}
    return pl.DataFrame({"user": np.arange(keys), **values}).with_columns(at=pl.lit(AT))


def _online(kind: str, folder: Path, stack: ExitStack, append: str) -> tuple[str, Any]:
    if kind == "sqlite":
        return f'{{type: sqlite, path: "{folder}/online.db"}}', None
    if kind == "redis":
        server = RedisServer(folder, append=append)
        server.start()
        stack.callback(server.kill)
        return f'{{type: redis, connection_string: "127.0.0.1:{server.port}"}}', server
    postgres = Postgres(folder / "pg")
    stack.callback(postgres.stop)
    online = f'{{type: postgres, host: "{folder}/pg", database: postgres, user: postgres, '
    return online + 'password: "${BENCH_PASSWORD}"}', postgres


def _forget(path: list[str]) -> None:
    sys.path[:] = path
    for name in [name for name in sys.modules if name == "features" or name.startswith("features.")]:
        del sys.modules[name]
