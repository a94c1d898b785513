"""The connector for SQL databases, at each database that there is a server of."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import polars as pl
import psycopg
import pytest
from sqlalchemy import create_engine, make_url

from manta import Sql
from manta.testing.connectors import COLUMNS, ConnectorConformance, texts

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
NAMES = tuple(COLUMNS)
INTO = "insert into rows_put values "


class _Incremental(ConnectorConformance):
    incremental = True


class TestPostgres(_Incremental):
    @pytest.fixture
    def place(self, postgres_url: str) -> Any:
        return postgres_url

    def put(self, rows: pl.DataFrame, place: str) -> Sql:
        with psycopg.connect(place) as connection:
            connection.execute(
                "create table rows_put (id bigint, amount bigint, ratio float8, flag bool, name text,"
                " at timestamptz, day date, price numeric(20, 4), local timestamp, blob bytea, tags text[],"
                " place jsonb, nothing text)"
            )
        self.more(rows, place)
        return Sql(url=place, table="rows_put", cursor="id")

    def more(self, rows: pl.DataFrame, place: str) -> None:
        with psycopg.connect(place) as connection, connection.cursor() as cursor:
            marks = ", ".join(["%s"] * len(NAMES))
            cursor.executemany(f"{INTO} ({marks})", texts(rows, "place").select(NAMES).rows())

    def broken(self, place: str) -> Sql:
        return Sql(url="postgresql://nobody:wrong@127.0.0.1:1/nothing", table="rows_put")


class TestMariaDb(_Incremental):
    @pytest.fixture
    def place(self, mariadb_url: str) -> Any:
        return mariadb_url

    def put(self, rows: pl.DataFrame, place: str) -> Sql:
        self._execute(
            place,
            "create table rows_put (id bigint, amount bigint, ratio double, flag bool, name text,"
            " at datetime(6), day date, price decimal(20, 4), local datetime(6), `blob` blob, tags json,"
            " place json, nothing text)",
        )
        self.more(rows, place)
        return Sql(url=place, table="rows_put", cursor="id")

    def more(self, rows: pl.DataFrame, place: str) -> None:
        marks = ", ".join(["%s"] * len(NAMES))
        self._execute(place, f"{INTO} ({marks})", texts(rows, "tags", "place").select(NAMES).rows())

    def _execute(self, place: str, statement: str, rows: Any = None) -> None:
        engine = create_engine(make_url(place).set(drivername="mysql+pymysql"))
        with engine.begin() as connection:
            if rows != []:
                connection.exec_driver_sql(statement, rows)
        engine.dispose()

    def broken(self, place: str) -> Sql:
        return Sql(url="mysql://nobody:wrong@127.0.0.1:1/nothing", table="rows_put")


class TestSqlite(_Incremental):
    def put(self, rows: pl.DataFrame, place: Path) -> Sql:
        with sqlite3.connect(place / "rows.db") as connection:
            connection.execute("create table rows_put ({})".format(", ".join(f'"{name}"' for name in NAMES)))
        self.more(rows, place)
        return Sql(url=f"sqlite:///{place}/rows.db", table="rows_put", cursor="id")

    def more(self, rows: pl.DataFrame, place: Path) -> None:
        plain = texts(rows, "at", "day", "price", "local", "tags", "place").select(NAMES)
        with sqlite3.connect(place / "rows.db") as connection:
            connection.executemany(f"{INTO} ({', '.join('?' * len(NAMES))})", plain.rows())

    def broken(self, place: Path) -> Sql:
        return Sql(url=f"sqlite:///{place}/nowhere.db", table="rows_put")
