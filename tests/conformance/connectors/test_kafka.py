"""The connector for Kafka, in the formats whose messages have columns."""

from __future__ import annotations

import io
import json
import secrets
from typing import Any, NamedTuple

import fastavro
import polars as pl
import pytest

from manta import Kafka
from manta.testing.connectors import ConnectorConformance, texts
from tests.brokers import make, produce

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class Place(NamedTuple):
    servers: str
    topic: str


class _Kafka(ConnectorConformance):
    incremental = True

    @pytest.fixture
    def place(self, kafka: str) -> Place:
        return Place(kafka, f"t{secrets.token_hex(6)}")

    def put(self, rows: pl.DataFrame, place: Place) -> Kafka:
        make(place.servers, place.topic)
        self.more(rows, place)
        return self.source(place)

    def more(self, rows: pl.DataFrame, place: Place) -> None:
        produce(place.servers, place.topic, self.messages(rows))

    def broken(self, place: Any) -> Kafka:
        return self.source(Place("127.0.0.1:1", "nowhere")).replace(timeout=1)

    def source(self, place: Place) -> Kafka:
        return Kafka(servers=place.servers, topic=place.topic, per_piece=200)

    def messages(self, rows: pl.DataFrame) -> list[bytes]:
        return texts(rows, "blob").write_ndjson().encode().splitlines()


class TestJson(_Kafka):
    pass


def _nullable(kind: Any) -> list[Any]:
    return ["null", kind]


SCHEMA = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "amount", "type": _nullable("long")},
        {"name": "ratio", "type": _nullable("double")},
        {"name": "flag", "type": "boolean"},
        {"name": "name", "type": _nullable("string")},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "day", "type": _nullable({"type": "int", "logicalType": "date"})},
        {
            "name": "price",
            "type": _nullable({"type": "bytes", "logicalType": "decimal", "precision": 20, "scale": 4}),
        },
        {"name": "local", "type": _nullable({"type": "long", "logicalType": "local-timestamp-micros"})},
        {"name": "blob", "type": _nullable("bytes")},
        {"name": "tags", "type": _nullable({"type": "array", "items": ["null", "string"]})},
        {
            "name": "place",
            "type": _nullable(
                {
                    "type": "record",
                    "name": "Place",
                    "fields": [{"name": "city", "type": "string"}, {"name": "lat", "type": "double"}],
                }
            ),
        },
        {"name": "nothing", "type": _nullable("string")},
    ],
}


class TestAvro(_Kafka):
    def source(self, place: Place) -> Kafka:
        return super().source(place).replace(format="avro", avro_schema=json.dumps(SCHEMA))

    def messages(self, rows: pl.DataFrame) -> list[bytes]:
        schema, made = fastavro.parse_schema(SCHEMA), []
        for row in rows.iter_rows(named=True):
            out = io.BytesIO()
            fastavro.schemaless_writer(out, schema, row)
            made.append(out.getvalue())
        return made
