"""ArrowComputeEngine, as Feast's own `materialize` and `materialize_incremental` use it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest

from manta.errors import FeaturesUnavailable
from manta.features.stores.sqlite import writable

from .conftest import START, Shop, every_store, hours

END = START + timedelta(hours=50)
ENGINE = "batch_engine: {type: manta.features.engine.ArrowComputeEngine}\nmaterialization:"


@pytest.fixture
def engine_shop(new_shop: Callable[[], Shop]) -> Shop:
    shop = new_shop()
    shop.change("feature_store.yaml", "materialization:", ENGINE)
    shop.apply()
    return shop


def read(store: Any, *cities: str) -> list[float | None]:
    rows = [{"city": city} for city in cities]
    return store.get_online_features(["weather:temp"], rows).to_dict()["temp"]


def weather(*rows: tuple[str, float, float]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "city": [city for city, _, _ in rows],
            "hour": hours(*(hour for _, hour, _ in rows)),
            "temp": [temp for _, _, temp in rows],
        }
    ).with_columns(rain=pl.lit(0.0), measured="hour")


@every_store
def test_feasts_own_verbs_write_the_newest_and_find_what_comes_late(engine_shop: Shop) -> None:
    shop, store = engine_shop, engine_shop.store()
    shop.put("weather", weather(("rom", 1, 1.0), ("rom", 3, 3.0), ("bari", 2, 2.0)))
    store.materialize(START, START + timedelta(hours=4))
    assert read(store, "rom", "bari", "oslo") == [3.0, 2.0, None]
    pushed = pd.DataFrame(
        [{"city": "rom", "temp": 9.0, "rain": 0.0, "measured": hours(5)[0], "hour": hours(5)[0]}]
    )
    store.write_to_online_store("weather", pushed)
    # Behind the watermark, by the clock of the rows: Oslo is new, Bari newer, and Rome older.
    shop.put("weather", weather(("rom", 1, 1.0), ("rom", 3.5, 3.5), ("bari", 3.5, 4.0), ("oslo", 3, 5.0)))
    store.materialize_incremental(START + timedelta(hours=6))
    assert read(store, "rom", "bari", "oslo") == [9.0, 4.0, 5.0]
    view = store.get_feature_view("weather")
    assert view.most_recent_end_time == START + timedelta(hours=6)


def test_a_failure_is_raised_and_the_watermark_stays(engine_shop: Shop) -> None:
    shop, store = engine_shop, engine_shop.store()
    shop.put("weather", weather(("rom", 1, 1.0)))
    store.materialize(START, START + timedelta(hours=2))
    with writable(str(shop.settings.home / "feast" / "online.db")) as connection:
        connection.execute(
            "CREATE TRIGGER losing BEFORE INSERT ON test_weather WHEN NEW.feature_name = 'rain' "
            "BEGIN SELECT RAISE(IGNORE); END"
        )
    shop.put("weather", weather(("rom", 3, 3.0), ("bari", 3, 3.0)))
    with pytest.raises(FeaturesUnavailable, match="'rain' under 1 keys online, and should under 2"):
        store.materialize_incremental(START + timedelta(hours=4))
    assert store.get_feature_view("weather").most_recent_end_time == START + timedelta(hours=2)
    assert read(store, "rom", "bari") == [1.0, None]
    with writable(str(shop.settings.home / "feast" / "online.db")) as connection:
        connection.execute("DROP TRIGGER losing")
    store.materialize_incremental(START + timedelta(hours=4))
    assert read(store, "rom", "bari") == [3.0, 3.0]


def test_it_works_over_feasts_own_offline_store_and_files(tmp_path: Path) -> None:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64, Int64

    (tmp_path / "feature_store.yaml").write_text(
        f"project: plain\nprovider: local\nregistry: {tmp_path}/registry.db\noffline_store: {{type: file}}\n"
        f"online_store: {{type: sqlite, path: {tmp_path}/online.db}}\nentity_key_serialization_version: 3\n"
        "batch_engine: {type: manta.features.engine.ArrowComputeEngine}\n"
    )
    at = pd.to_datetime(hours(1, 3, 2))
    frame = pd.DataFrame({"user": [1, 1, 2], "ts": at, "score": [0.5, 1.5, 2.5]})
    frame.to_parquet(tmp_path / "rows.parquet")
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    view = FeatureView(
        name="scores",
        entities=[user],
        ttl=timedelta(days=1),
        schema=[Field(name="user", dtype=Int64), Field(name="points", dtype=Float64)],
        source=FileSource(
            path=str(tmp_path / "rows.parquet"), timestamp_field="ts", field_mapping={"score": "points"}
        ),
    )
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([user, view])
    store.materialize(START, START + timedelta(hours=5))
    rows = [{"user": 1}, {"user": 2}, {"user": 3}]
    assert store.get_online_features(["scores:points"], rows).to_dict()["points"] == [1.5, 2.5, None]
