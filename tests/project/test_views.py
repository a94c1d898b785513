"""The feature views against the datasets that they read."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta

import polars as pl
import pytest
from feast import FeatureView
from feast.types import Float32, Int64, String, UnixTimestamp

from features import services, views
from features.request_time import request_time
from manta import FeatureTable

Frames = dict[str, pl.DataFrame]
TYPES = {Float32: pl.Float32, Int64: pl.Int64, String: pl.String, UnixTimestamp: pl.Datetime("us", "UTC")}
HOURS = {"h": 1, "d": 24}
VIEWS = [value for value in vars(views).values() if isinstance(value, FeatureView)]


@pytest.fixture(scope="module")
def datasets(days: Callable[[str, str], Frames], compute: Callable[[Frames], Frames]) -> Frames:
    some = days("2013-05-01", "2013-05-04")
    return some | compute(some)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_names_what_its_dataset_holds(view: FeatureView, datasets: Frames) -> None:
    held = datasets[view.batch_source.dataset].schema
    for field in [*view.entity_columns, *view.features]:
        assert held[view.batch_source.column(field.name)] == TYPES[field.dtype], field
    assert view.batch_source.time in (None, "event_time")


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_view_does_not_outlive_its_shortest_window(view: FeatureView) -> None:
    named = [re.search(r"_(\d+)([hd])$", field.name) for field in view.features]
    windows = [timedelta(hours=int(found[1]) * HOURS[found[2]]) for found in named if found]
    if windows:
        assert timedelta(0) < view.ttl <= min(windows)


def test_every_computed_feature_is_served(feature_tables: list[FeatureTable], datasets: Frames) -> None:
    # A column that no view reads would be computed for nothing.
    read = {(view.batch_source.dataset, field.name) for view in VIEWS for field in view.features}
    for table in feature_tables:
        if table.time:
            columns = set(datasets[table.dataset].columns) - {*table.key, table.time}
            assert {(table.dataset, column) for column in columns} <= read


def test_the_function_gives_what_the_on_demand_view_declares() -> None:
    given = request_time({"scheduled_departure": [None], "plane_back_at": [None]})
    assert set(given) == {field.name for field in services.asked.features}
