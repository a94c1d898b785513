"""The connector for REST APIs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import polars as pl
import pytest

from manta import RestApi
from manta.connectors.rest import PageNumber, Since
from manta.testing.connectors import ConnectorConformance, texts
from tests.unit.connectors.http_api import served

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


class TestRest(ConnectorConformance):
    @pytest.fixture
    def place(self) -> Iterator[Any]:
        with served() as api:
            yield api

    def put(self, rows: pl.DataFrame, place: Any) -> RestApi:
        place.records = json.loads(texts(rows, "blob").write_json())
        return RestApi(url=f"{place.url}/page", records="data.items", pages=PageNumber())

    def broken(self, place: Any) -> RestApi:
        return RestApi(url="http://127.0.0.1:9/nobody", tries=2)


class TestRestSince(TestRest):
    incremental = True

    def put(self, rows: pl.DataFrame, place: Any) -> RestApi:
        return super().put(rows, place).replace(since=Since(field="id", param="after"))

    def more(self, rows: pl.DataFrame, place: Any) -> None:
        place.records += json.loads(texts(rows, "blob").write_json())
