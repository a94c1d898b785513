"""Delta tables as a source, against what deltalake itself reads from them."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import deltalake
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import write_deltalake

from manta.connectors.delta import DeltaTable
from manta.definitions.sources import Ask, Reading
from manta.errors import SourceUnreadable


def put(path: Path, frame: pl.DataFrame, **more: Any) -> None:
    write_deltalake(path, frame.to_arrow(), **{"mode": "append", **more})


def ids(*numbers: int) -> pl.DataFrame:
    return pl.DataFrame({"id": numbers}, schema={"id": pl.Int64})


def read(source: DeltaTable, root: Path, *columns: str, cursor: Any = None) -> tuple[pl.DataFrame, Reading]:
    ask = Ask(root, columns, cursor)
    with source.opened(ask) as reading:
        found = [batch.values for piece in reading.pieces for batch in source.read(piece, ask)]
        return pl.concat(found) if found else pl.DataFrame(), reading


def oracle(path: Path, *columns: str) -> pl.DataFrame:
    """By deltalake's own engine."""
    table = pa.table(deltalake.DeltaTable(path).scan(columns=list(columns)))
    return pl.DataFrame(pl.from_arrow(table))


def test_types_and_partition_values_are_those_that_deltalake_reads(tmp_path: Path) -> None:
    at = datetime(2024, 2, 29, 23, 59, 59, 999999)
    columns = {
        "id": pa.array([1, 2, 3, 4]),
        "word": pa.array(["a b", "x/y%20", None, "ü=1"]),
        "day": pa.array([date(2024, 2, 29), None, date(1, 1, 1), date(9999, 12, 31)]),
        "cost": pa.array([Decimal("1.10"), Decimal("9999.99"), None, Decimal("0.00")], pa.decimal128(10, 2)),
        "when": pa.array([at + timedelta(hours=n) for n in range(4)], pa.timestamp("us", "UTC")),
        "wall": pa.array([at] * 4, pa.timestamp("us")),
        "raw": pa.array([b"\x00\xff", b"", None, b"x"]),
        "list": pa.array([[1, None], [], None, [3]]),
        "pair": pa.array([{"a": 1, "b": "x"}, None, {"a": None, "b": None}, {"a": 2, "b": "ü"}]),
        "small": pa.array([1, -1, None, 127], pa.int8()),
        "real": pa.array([0.1, None, float("inf"), -0.0], pa.float32()),
    }
    rows = pa.table(columns)
    write_deltalake(tmp_path / "t", rows, partition_by=["word", "day", "cost"])
    source = DeltaTable(path="t")
    found, _ = read(source, tmp_path, *columns)
    assert found.sort("id").rows() == pl.DataFrame(pl.from_arrow(rows)).rows()
    assert found.sort("id").equals(oracle(tmp_path / "t", *columns).sort("id"))
    # Whatever is asked for: partition columns alone have as many rows.
    assert sorted(read(source, tmp_path, "cost")[0]["cost"].to_list(), key=str) == sorted(
        rows["cost"].to_pylist(), key=str
    )


def test_mapped_columns_and_deleted_rows(tmp_path: Path) -> None:
    """As Databricks writes them: written by hand here, to the letter of Delta's protocol."""
    mapped_table(tmp_path / "t")
    found, _ = read(DeltaTable(path="t"), tmp_path, "the id", "day", "pair", "kinds")
    wanted = oracle(tmp_path / "t", "the id", "day", "pair", "kinds")
    assert found.height == 17
    assert found.sort("the id").to_dicts() == wanted.sort("the id").to_dicts()
    assert not set(found["the id"]) & {0, 5, 9}
    assert found["pair"][0] == {"left": 1, "right side": "r1"}
    assert found["kinds"].to_list()[0] == [{"kind": 1}]


def test_a_column_that_old_files_lack_and_one_that_was_widened(tmp_path: Path) -> None:
    put(tmp_path / "t", ids(1))
    put(tmp_path / "t", ids(2).with_columns(pair=pl.struct(a=pl.lit(1))), schema_mode="merge")
    put(tmp_path / "t", ids(3).with_columns(pair=pl.struct(a=pl.lit(1), b=pl.lit("x"))), schema_mode="merge")
    found, _ = read(DeltaTable(path="t"), tmp_path, "id", "pair")
    assert found.sort("id").to_dicts() == [
        {"id": 1, "pair": None},
        {"id": 2, "pair": {"a": 1, "b": None}},
        {"id": 3, "pair": {"a": 1, "b": "x"}},
    ]


def test_a_version(tmp_path: Path) -> None:
    put(tmp_path / "t", ids(1))
    put(tmp_path / "t", ids(2), mode="overwrite")
    source = DeltaTable(path="t", version=0)
    assert read(source, tmp_path, "id")[0]["id"].to_list() == [1]
    assert source.observe(tmp_path) == "0"
    newest = DeltaTable(path=str(tmp_path / "t"))
    before = newest.observe(tmp_path)
    found, reading = read(newest, tmp_path, "id")
    assert found["id"].to_list() == [2]
    assert reading.token.endswith("@1")
    put(tmp_path / "t", ids(3))
    assert newest.observe(tmp_path) != before
    with pytest.raises(SourceUnreadable, match="at version 9 cannot be opened"):
        read(source.replace(version=9), tmp_path, "id")


def test_only_what_was_appended(tmp_path: Path) -> None:
    table = tmp_path / "t"
    source = DeltaTable(path="t", new_only=True)
    put(table, ids(1, 2))
    found, reading = read(source, tmp_path, "id")
    assert sorted(found["id"]) == [1, 2]
    for more in ([3], [4, 5]):
        put(table, ids(*more))
    # The same rows in other files: nothing new, and what is new is not counted twice.
    deltalake.DeltaTable(table).optimize.compact()
    put(table, ids(6))
    found, after = read(source, tmp_path, "id", cursor=json.loads(json.dumps(reading.cursor)))
    assert found["id"].to_list() == [3, 4, 5, 6], "in the order of the commits"
    assert after.cursor["version"] == 4
    assert list(read(source, tmp_path, "id", cursor=after.cursor)[1].pieces) == []


def _delete(table: Path) -> None:
    deltalake.DeltaTable(table).delete("id = 1")


def _overwrite(table: Path) -> None:
    put(table, ids(7), mode="overwrite")


def _other(table: Path) -> None:
    for file in sorted(table.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    for _ in range(3):
        put(table, ids(1))


def _restore(table: Path) -> None:
    put(table, ids(8))
    deltalake.DeltaTable(table).restore(0)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_delete, r"version 1 \(DELETE\) changed or deleted rows"),
        (_overwrite, r"version 1 \(WRITE\) changed or deleted rows"),
        (_restore, r"version 2 \(RESTORE\) changed or deleted rows"),
        (_other, "it is another table"),
    ],
)
def test_what_was_not_appended_is_refused(tmp_path: Path, change: Any, told: str) -> None:
    source = DeltaTable(path="t", new_only=True)
    put(tmp_path / "t", ids(1, 2))
    _, reading = read(source, tmp_path, "id")
    change(tmp_path / "t")
    with pytest.raises(SourceUnreadable, match=told) as failed:
        read(source, tmp_path, "id", cursor=reading.cursor)
    assert "read it whole" in failed.value.hint


def test_a_log_that_is_no_longer_kept(tmp_path: Path) -> None:
    source, table = DeltaTable(path="t", new_only=True), tmp_path / "t"
    put(table, ids(1))
    _, reading = read(source, tmp_path, "id")
    put(table, ids(2))
    put(table, ids(3))
    deltalake.DeltaTable(table).create_checkpoint()
    (table / "_delta_log" / f"{1:020d}.json").unlink()
    with pytest.raises(SourceUnreadable, match="the log of version 1 is no longer kept"):
        read(source, tmp_path, "id", cursor=reading.cursor)


def test_files_that_were_vacuumed_while_they_were_to_be_read(tmp_path: Path) -> None:
    put(tmp_path / "t", ids(1))
    source, ask = DeltaTable(path="t"), Ask(tmp_path, ("id",))
    with source.opened(ask) as reading:
        for file in (tmp_path / "t").glob("*.parquet"):
            file.unlink()
        with pytest.raises(SourceUnreadable, match=r"part-.*cannot be read: Object at location .* not found"):
            list(source.read(reading.pieces[0], ask))


@pytest.mark.parametrize(
    ("feature", "told"),
    [("columnMapping", "mapped by id"), ("domainMetadata-x", "domainMetadata-x|cannot be opened")],
)
def test_what_is_not_known_is_refused(tmp_path: Path, feature: str, told: str) -> None:
    mapped_table(tmp_path / "t", features=[feature], mode="id")
    with pytest.raises(SourceUnreadable, match=told):
        read(DeltaTable(path="t"), tmp_path, "the id")


def test_a_shallow_clone_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "t", ids(1))
    log = tmp_path / "t" / "_delta_log" / f"{0:020d}.json"
    log.write_text(log.read_text().replace('"path":"part', f'"path":"file://{tmp_path}/other/part'))
    with pytest.raises(SourceUnreadable, match="shallow clone"):
        read(DeltaTable(path="t"), tmp_path, "id")


def test_nobody_listens_and_the_key_stays_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "correct-horse")
    source = DeltaTable(
        path="s3://bucket/table",
        storage={
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "me",
            "AWS_SECRET_ACCESS_KEY": "${env:THE_KEY}",
        },
    )
    with pytest.raises(SourceUnreadable, match="s3://bucket/table cannot be opened") as failed:
        read(source, tmp_path, "id")
    assert "correct-horse" not in f"{failed.value!r} {failed.value.hint} {source}"
    assert failed.value.hint


# --- a table with mapped columns and a deletion vector, by hand -------------------------------------------

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def mapped_table(
    path: Path,
    features: tuple[str, ...] | list[str] = ("columnMapping", "deletionVectors"),
    mode: str = "name",
) -> None:
    (path / "_delta_log").mkdir(parents=True)

    def field(name: str, kind: Any, number: int) -> dict[str, Any]:
        mapping = {"delta.columnMapping.id": number, "delta.columnMapping.physicalName": f"col-{number}"}
        return {"name": name, "type": kind, "nullable": True, "metadata": mapping}

    pair = {"type": "struct", "fields": [field("left", "long", 4), field("right side", "string", 5)]}
    kinds = {
        "type": "array",
        "containsNull": True,
        "elementType": {"type": "struct", "fields": [field("kind", "long", 7)]},
    }
    fields = [
        field("the id", "long", 1),
        field("day", "date", 2),
        field("pair", pair, 3),
        field("kinds", kinds, 6),
    ]
    configuration = {"delta.columnMapping.mode": mode, "delta.columnMapping.maxColumnId": "7"}
    actions: list[dict[str, Any]] = [
        {
            "protocol": {
                "minReaderVersion": 3,
                "minWriterVersion": 7,
                "readerFeatures": list(features),
                "writerFeatures": list(features),
            }
        },
        {
            "metaData": {
                "id": "11111111-1111-1111-1111-111111111111",
                "format": {"provider": "parquet", "options": {}},
                "schemaString": json.dumps({"type": "struct", "fields": fields}),
                "partitionColumns": ["day"],
                "configuration": configuration,
                "createdTime": 0,
            }
        },
    ]
    actions += [{"add": add} for add in _adds(path)]
    (path / "_delta_log" / f"{0:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def _adds(path: Path) -> Iterator[dict[str, Any]]:
    for number, day in enumerate(["2024-02-29", None]):
        name = f"part-{number}.parquet"
        rows = pa.table(
            {
                "col-1": pa.array(range(number * 10, number * 10 + 10), pa.int64()),
                "col-3": pa.array([{"col-4": n, "col-5": f"r{n}"} if n % 3 else None for n in range(10)]),
                "col-6": pa.array([[{"col-7": n}] for n in range(10)]),
            }
        )
        pq.write_table(rows, path / name, row_group_size=4)
        add: dict[str, Any] = {
            "path": name,
            "partitionValues": {"col-2": day},
            "size": os.path.getsize(path / name),
            "modificationTime": number,
            "dataChange": True,
            "stats": json.dumps({"numRecords": 10}),
        }
        if number == 0:
            vector = _vector([0, 5, 9])
            add["deletionVector"] = {
                "storageType": "i",
                "pathOrInlineDv": _z85(vector),
                "sizeInBytes": len(vector),
                "cardinality": 3,
            }
        yield add


def _vector(rows: list[int]) -> bytes:
    """A RoaringBitmapArray with one bitmap, which has one container, an array of 16-bit values."""
    bitmap = struct.pack("<IIHHI", 12346, 1, 0, len(rows) - 1, 16) + struct.pack(f"<{len(rows)}H", *rows)
    return struct.pack("<iqi", 1681511377, 1, 0) + bitmap


def _z85(data: bytes) -> str:
    text = ""
    for at in range(0, len(data), 4):
        value = int.from_bytes(data[at : at + 4].ljust(4, b"\0"), "big")
        text += "".join(Z85[value // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return text
