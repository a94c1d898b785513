"""The connector for files, in each of its formats."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from manta import Files
from manta.testing.connectors import CHECKSUM, ConnectorConformance, checksum, rows, texts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_the_checksum_is_that_of_the_rows() -> None:
    assert checksum(rows()) == CHECKSUM
    assert checksum(rows().with_columns(amount=None)) != CHECKSUM


class _Files(ConnectorConformance):
    def broken(self, place: Path) -> Files:
        return Files(path=str(place / "nowhere"))


class TestCsv(_Files):
    def put(self, rows: pl.DataFrame, place: Path) -> Files:
        texts(rows, "blob", "tags", "place").write_csv(place / "rows.csv")
        return Files(path=str(place / "*.csv"))


class TestJsonl(_Files):
    def put(self, rows: pl.DataFrame, place: Path) -> Files:
        texts(rows, "blob").write_ndjson(place / "rows.jsonl")
        return Files(path=str(place / "rows.jsonl"), format="jsonl")


class TestParquet(_Files):
    def put(self, rows: pl.DataFrame, place: Path) -> Files:
        rows.write_parquet(place / "rows.parquet")
        return Files(path=str(place / "rows.parquet"), format="parquet")
