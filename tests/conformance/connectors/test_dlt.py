"""The connector for dlt's resources."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import dlt
import polars as pl
import pytest

from manta import Dlt
from manta.testing.connectors import ConnectorConformance

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
ROWS: list[pl.DataFrame] = []


@dlt.resource
def tables() -> Iterator[Any]:
    yield from (rows.to_arrow() for rows in ROWS)


NUMBER = dlt.sources.incremental("id", initial_value=0)


@dlt.resource
def dicts(number: Any = NUMBER) -> Iterator[Any]:
    for rows in ROWS:
        yield from (row for row in rows.to_dicts() if row["id"] >= number.last_value)


@dlt.resource
def missing() -> Iterator[Any]:
    yield Path("/nowhere/at/all").read_text()


class TestDltTables(ConnectorConformance):
    made: ClassVar[Dlt] = Dlt(source=tables)

    def put(self, rows: pl.DataFrame, place: Path) -> Dlt:
        ROWS[:] = [rows]
        return self.made

    def broken(self, place: Path) -> Dlt:
        return Dlt(source=missing)


class TestDltNewOnly(TestDltTables):
    made = Dlt(source=dicts, new_only=True)
    incremental = True

    def more(self, rows: pl.DataFrame, place: Path) -> None:
        ROWS.append(rows)
