"""Online look-ups of ten features: manta's compiled reader beside Feast's own SDK, on the same SQLite store.

Same keys, same values (checked before anything is timed), one process each way. The SDK spends its time on
protobuf objects and on the registry; ours on SQLite itself and on decoding the values it needs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl

from manta.data.lake import Lake
from manta.features.apply import apply
from manta.features.compiled import read_manifest, service_of
from manta.features.materialize import materialize
from manta.features.online import OnlineReader
from manta.features.repo import open_store, parse
from manta.settings import Settings
from tests.benchmarks._measure import compare

KEYS = 20_000
FEATURES = [f"f{number}" for number in range(10)]
AT = datetime(2026, 1, 1, tzinfo=UTC)

STORE = """
project: ${MANTA_PROJECT}
provider: local
registry: {registry_type: sql, path: "sqlite:///${MANTA_HOME}/feast/registry.db", cache_ttl_seconds: 600,
  serve_features_while_materializing: true}
offline_store: {type: manta.features.offline.AsofOfflineStore, lake: "${MANTA_LAKE}"}
online_store: {type: sqlite, path: "${MANTA_HOME}/feast/online.db"}
materialization: {pull_latest_features: true}
entity_key_serialization_version: 3
"""

VIEWS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float32, Int64
from manta.features import DatasetSource

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats", entities=[user], ttl=timedelta(days=7),
    schema=[Field(name="user", dtype=Int64)] + [Field(name=f"f{n}", dtype=Float32) for n in range(10)],
    source=DatasetSource(name="stats", dataset="stats", timestamp_field="at"),
)
wide = FeatureService(name="wide", features=[stats])
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.chdir(root)
        sys.path.insert(0, folder)
        settings = Settings(project="bench", root=root, home=root / ".manta")._resolved()
        (root / "features").mkdir()
        (root / "features/feature_store.yaml").write_text(STORE)
        (root / "features/views.py").write_text(VIEWS)
        _measure(root, settings)


def _measure(root: Path, settings: Settings) -> None:
    values = {name: pl.int_range(KEYS, eager=True).cast(pl.Float32) + at for at, name in enumerate(FEATURES)}
    frame = pl.DataFrame({"user": range(KEYS), "at": [AT] * KEYS, **values})
    version = Lake(settings.datasets).replace("stats", frame, run_key="bench")
    manifest = read_manifest(apply(parse(root, settings), root, settings)["wide"])
    materialize(service_of(manifest, "wide"), settings.datasets, {"stats": version})
    reader = OnlineReader(manifest, "wide")
    store = open_store(root, settings)
    service = store.get_feature_service("wide")
    for keys, rounds in ((1, 300), (100, 60)):
        users = [(number * 197) % KEYS for number in range(keys)]
        at = [AT + timedelta(hours=1)] * keys

        def ours(users: list[int] = users, at: list[datetime] = at) -> dict[str, list[float]]:
            return dict(reader.read({"user": users}, at).values)

        def theirs(users: list[int] = users) -> dict[str, list[float]]:
            rows = [{"user": user} for user in users]
            return store.get_online_features(features=service, entity_rows=rows).to_dict()

        mine, other = ours(), theirs()
        assert all(mine[name] == other[name] for name in FEATURES)
        fast, slow, ratio = compare(ours, theirs, rounds)
        print(f"{keys:>4} keys: {fast * 1e6:8.0f} µs beside the SDK's {slow * 1e6:8.0f} µs: {ratio:.1f} x")


if __name__ == "__main__":
    main()
