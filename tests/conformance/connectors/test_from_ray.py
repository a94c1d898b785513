"""The connector for Ray Datasets."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import ray.data

from manta import FromRay
from manta.testing.connectors import ConnectorConformance

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
PLACE: list[Path] = []


def put() -> ray.data.Dataset:
    return ray.data.read_parquet(str(PLACE[-1]))


def missing() -> ray.data.Dataset:
    return ray.data.read_parquet("/nowhere/at/all")


class TestFromRay(ConnectorConformance):
    def put(self, rows: pl.DataFrame, place: Path) -> FromRay:
        PLACE.append(place / "rows.parquet")
        rows.write_parquet(PLACE[-1])
        return FromRay(fn=put)

    def broken(self, place: Path) -> FromRay:
        return FromRay(fn=missing)
