"""Iceberg tables as a source, against what pyiceberg and DuckDB read from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import LongType, NestedField, StringType

from manta.connectors.iceberg import IcebergTable
from manta.definitions.sources import Ask, Reading
from manta.errors import SourceUnreadable

IDS = Schema(NestedField(1, "id", LongType()), NestedField(2, "word", StringType()))


@pytest.fixture
def properties(tmp_path: Path) -> dict[str, str]:
    return {
        "name": "test",
        "type": "sql",
        "uri": f"sqlite:///{tmp_path}/catalog.db",
        "warehouse": f"file://{tmp_path}/house",
    }


@pytest.fixture
def catalog(properties: dict[str, str]) -> Catalog:
    made = load_catalog(**properties)
    made.create_namespace("shop")
    return made


@pytest.fixture
def table(catalog: Catalog) -> Table:
    return catalog.create_table("shop.orders", IDS, properties={"format-version": "2"})


@pytest.fixture
def source(properties: dict[str, str]) -> Callable[..., IcebergTable]:
    def make(**more: Any) -> IcebergTable:
        return IcebergTable(**{"table": "shop.orders", "catalog": properties, **more})

    return make


def put(table: Table, *ids: int) -> None:
    rows = {"id": pa.array(ids, pa.int64()), "word": pa.array([f"w{n}" for n in ids])}
    table.refresh().append(pa.table(rows))


def read(source: IcebergTable, *columns: str, cursor: Any = None) -> tuple[pl.DataFrame, Reading]:
    ask = Ask(Path("/"), columns, cursor)
    with source.opened(ask) as reading:
        found = [batch.values for piece in reading.pieces for batch in source.read(piece, ask)]
        return pl.concat(found) if found else pl.DataFrame(), reading


def test_types_and_partitions(catalog: Catalog, source: Callable[..., IcebergTable]) -> None:
    moment = datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
    rows = pa.table(
        {
            "id": pa.array([1, 2, 3]),
            "word": pa.array(["a b", "x/y%20", None]),
            "day": pa.array([date(2024, 2, 29), None, date(1, 1, 1)]),
            "cost": pa.array([Decimal("1.10"), Decimal("-99999999.99"), None], pa.decimal128(10, 2)),
            "at": pa.array([moment, None, moment.replace(year=1968)], pa.timestamp("us", "UTC")),
            "raw": pa.array([b"\x00\xff", b"", None]),
            "list": pa.array([[1, None], [], None]),
            "pair": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}]),
            "real": pa.array([0.1, None, float("inf")], pa.float32()),
        }
    )
    made = catalog.create_table("shop.types", rows.schema)
    with made.update_spec() as change:
        change.add_field("word", IdentityTransform())
    made.append(rows)
    found, _ = read(source(table="shop.types"), *rows.column_names)
    assert found.sort("id").rows() == pl.DataFrame(pl.from_arrow(rows)).rows()
    unordered = pl.DataFrame(pl.from_arrow(made.scan().to_arrow()))
    assert found.sort("id").rows() == unordered.sort("id").rows()
    assert read(source(table="shop.types"))[1].pieces, "with no columns at all, there are still rows"


def test_rows_that_delete_files_take_away(table: Table, source: Callable[..., IcebergTable]) -> None:
    put(table, *range(10))
    delete_rows(table, [0, 4, 9])
    found, _ = read(source(), "id")
    assert found["id"].to_list() == [1, 2, 3, 5, 6, 7, 8]
    assert table.refresh().scan().to_arrow()["id"].to_pylist() == found["id"].to_list()


def test_columns_that_were_renamed_added_and_widened(
    table: Table, source: Callable[..., IcebergTable]
) -> None:
    put(table, 1)
    with table.refresh().update_schema() as change:
        change.rename_column("word", "text")
        change.add_column("more", StringType())
    table.refresh().append(pa.table({"id": [2], "text": ["b"], "more": ["m"]}))
    found, _ = read(source(), "id", "text", "more", "word")
    assert found.sort("id").rows() == [(1, "w1", None), (2, "b", "m")]


def test_a_snapshot(table: Table, source: Callable[..., IcebergTable]) -> None:
    put(table, 1)
    first = table.refresh().current_snapshot().snapshot_id  # type: ignore[union-attr]
    table.overwrite(pa.table({"id": [2], "word": ["x"]}))
    assert read(source(snapshot=first), "id")[0]["id"].to_list() == [1]
    found, reading = read(source(), "id")
    assert found["id"].to_list() == [2]
    assert reading.token.split("@")[1] == str(table.refresh().current_snapshot().snapshot_id)  # type: ignore[union-attr]
    with pytest.raises(SourceUnreadable, match="has no snapshot 7"):
        read(source(snapshot=7), "id")
    with pytest.raises(ValueError, match="leave out `snapshot`"):
        source(snapshot=first, new_only=True)


def test_only_what_was_appended(table: Table, source: Callable[..., IcebergTable]) -> None:
    new = source(new_only=True)
    _, reading = read(new, "id")
    assert (list(reading.pieces), reading.cursor["snapshot"]) == ([], None)
    for ids in ([1, 2], [3], [4]):
        put(table, *ids)
        found, reading = read(new, "id", cursor=json.loads(json.dumps(reading.cursor)))
        assert sorted(found["id"]) == ids
    assert list(read(new, "id", cursor=reading.cursor)[1].pieces) == []
    put(table, 5)
    put(table, 6)
    assert sorted(read(new, "id", cursor=reading.cursor)[0]["id"]) == [5, 6]


def test_what_was_not_appended_is_refused(
    table: Table, catalog: Catalog, source: Callable[..., IcebergTable]
) -> None:
    new = source(new_only=True)
    put(table, 1, 2)
    cursor = read(new, "id")[1].cursor
    table.refresh().delete("id = 1")
    with pytest.raises(SourceUnreadable, match=r"\(overwrite\) changed or deleted rows") as failed:
        read(new, "id", cursor=cursor)
    assert "read it whole" in failed.value.hint
    catalog.drop_table("shop.orders")
    put(catalog.create_table("shop.orders", IDS), 1)
    with pytest.raises(SourceUnreadable, match="it is another table"):
        read(new, "id", cursor=cursor)


def test_equality_deletes_are_refused(table: Table, source: Callable[..., IcebergTable]) -> None:
    put(table, 1, 2)
    delete_rows(table, [0], DataFileContent.EQUALITY_DELETES)
    with pytest.raises(SourceUnreadable, match="equality deletes") as failed:
        read(source(), "id")
    assert "compact" in failed.value.hint


def test_what_is_not_there(
    table: Table, source: Callable[..., IcebergTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_TOKEN", "correct-horse")
    away = {"type": "rest", "uri": "http://127.0.0.1:9", "token": "${env:THE_TOKEN}"}
    for broken, told in [
        (source(table="shop.nothing"), "has no Iceberg table 'shop.nothing'"),
        (source(table="nowhere.orders"), "has no Iceberg table 'nowhere.orders'"),
        (source(catalog=away), "cannot be opened: ConnectionError"),
    ]:
        with pytest.raises(SourceUnreadable, match=told) as failed:
            read(broken, "id")
        assert failed.value.hint
        assert "correct-horse" not in f"{failed.value} {broken!r}"
    put(table, 1)
    ask = Ask(Path("/"), ("id",))
    with source().opened(ask) as reading:
        Path(reading.pieces[0].file.removeprefix("file://")).unlink()
        with pytest.raises(SourceUnreadable, match="cannot be read"):
            list(source().read(reading.pieces[0], ask))


def delete_rows(
    table: Table, rows: list[int], content: DataFileContent = DataFileContent.POSITION_DELETES
) -> None:
    """Merge-on-read, as Spark or Flink would: pyiceberg reads such tables, and writes none."""
    table.refresh()
    data = next(iter(table.scan().plan_files())).file.file_path
    path = f"{table.location()}/data/deletes.parquet"
    ids = {"id": pa.field("id", pa.int64(), metadata={"PARQUET:field_id": "1"})}
    if content is DataFileContent.POSITION_DELETES:
        ids = {
            "file_path": pa.field("file_path", pa.string(), metadata={"PARQUET:field_id": "2147483546"}),
            "pos": pa.field("pos", pa.int64(), metadata={"PARQUET:field_id": "2147483545"}),
        }
    values = {"id": rows, "pos": rows, "file_path": [data] * len(rows)}
    deletes = pa.table([values[name] for name in ids], schema=pa.schema(list(ids.values())))
    pq.write_table(deletes, path.removeprefix("file://"))
    file = DataFile.from_args(
        content=content,
        file_path=path,
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(rows),
        file_size_in_bytes=Path(path.removeprefix("file://")).stat().st_size,
        equality_ids=[1] if content is DataFileContent.EQUALITY_DELETES else None,
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ManifestWriterV2, "content", lambda writer: ManifestContent.DELETES)
        with table.transaction() as change, change.update_snapshot().fast_append() as append:
            append.append_data_file(file)
