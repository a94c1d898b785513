"""The connectors for Delta and Iceberg tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from manta import DeltaTable, IcebergTable
from manta.testing.connectors import ConnectorConformance

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class TestDelta(ConnectorConformance):
    def put(self, rows: pl.DataFrame, place: Path) -> DeltaTable:
        rows.write_delta(place / "table")
        return DeltaTable(path=str(place / "table"))

    def broken(self, place: Path) -> DeltaTable:
        return DeltaTable(path=str(place / "nowhere"))


class TestDeltaNewOnly(TestDelta):
    incremental = True

    def put(self, rows: pl.DataFrame, place: Path) -> DeltaTable:
        return super().put(rows, place).replace(new_only=True)

    def more(self, rows: pl.DataFrame, place: Path) -> None:
        rows.write_delta(place / "table", mode="append")


class TestIceberg(ConnectorConformance):
    new_only: ClassVar[bool] = False

    def _table(self, place: Path) -> IcebergTable:
        catalog = {"type": "sql", "uri": f"sqlite:///{place}/catalog.db", "warehouse": f"file://{place}"}
        return IcebergTable(table="shop.rows", catalog=catalog, new_only=self.new_only)

    def _catalog(self, place: Path) -> Any:
        from pyiceberg.catalog import load_catalog

        return load_catalog("default", **self._table(place).catalog)

    def put(self, rows: pl.DataFrame, place: Path) -> IcebergTable:
        catalog = self._catalog(place)
        catalog.create_namespace("shop")
        catalog.create_table("shop.rows", rows.to_arrow().schema).append(rows.to_arrow())
        return self._table(place)

    def broken(self, place: Path) -> IcebergTable:
        return self._table(place)


class TestIcebergNewOnly(TestIceberg):
    incremental = True
    new_only = True

    def more(self, rows: pl.DataFrame, place: Path) -> None:
        self._catalog(place).load_table("shop.rows").append(rows.to_arrow())
