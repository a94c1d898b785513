"""The connector for files, in each of its formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pyarrow import orc

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


class TestOrc(_Files):
    def put(self, rows: pl.DataFrame, place: Path) -> Files:
        table = rows.to_arrow()
        orc.write_table(table, str(place / "rows.orc"))
        return Files(path=str(place / "rows.orc"), format="orc")


class TestAvro(_Files):
    def put(self, rows: pl.DataFrame, place: Path) -> Files:
        import fastavro

        types: dict[str, Any] = {"id": "long", "amount": "long", "ratio": "double", "flag": "boolean"}
        types |= {
            "at": {"type": "long", "logicalType": "timestamp-micros"},
            "local": {"type": "long", "logicalType": "local-timestamp-micros"},
            "day": {"type": "int", "logicalType": "date"},
            "price": {"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 4},
            "blob": "bytes",
            "tags": {"type": "array", "items": ["null", "string"]},
            "place": {
                "type": "record",
                "name": "place",
                "fields": [{"name": "city", "type": "string"}, {"name": "lat", "type": "double"}],
            },
        }
        fields = [{"name": name, "type": ["null", types.get(name, "string")]} for name in rows.columns]
        schema = fastavro.parse_schema({"type": "record", "name": "rows", "fields": fields})
        with (place / "rows.avro").open("wb") as stream:
            fastavro.writer(stream, schema, rows.to_dicts(), codec="deflate", sync_interval=2_000)
        return Files(path=str(place / "rows.avro"), format="avro")


class TestNewFilesOnly(_Files):
    incremental = True

    def put(self, rows: pl.DataFrame, place: Path) -> Files:
        texts(rows, "blob", "tags", "place").write_csv(place / "rows.csv")
        return Files(path=str(place / "*.csv"), new_only=True)

    def more(self, rows: pl.DataFrame, place: Path) -> None:
        texts(rows, "blob", "tags", "place").write_csv(place / f"more-{len(list(place.iterdir()))}.csv")
