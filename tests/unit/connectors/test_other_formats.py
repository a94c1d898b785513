"""Avro, ORC and images; and which files are new."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import re
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import polars as pl
import pytest
from PIL import Image
from pyarrow import orc

from manta.connectors import formats
from manta.connectors.files import Files
from manta.connectors.formats import avro as avro_format
from manta.connectors.formats import image as image_format
from manta.connectors.formats import orc as orc_format
from manta.definitions import Column, Contract, Ingest
from manta.definitions.sources import Ask, Rows
from manta.errors import DefinitionInvalid, SourceUnreadable


def read(root: Path, source: Files, wanted: list[str], cursor: Any = None) -> tuple[list[Rows], Any, int]:
    ask = Ask(root, tuple(wanted), cursor)
    with source.opened(ask) as reading:
        batches = [rows for piece in reading.pieces for rows in source.read(piece, ask)]
        reading.verify()
    return batches, json.loads(json.dumps(reading.cursor)), len(reading.pieces)


def values(batches: list[Rows]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.values.to_dicts()]


AVRO = {
    "type": "record",
    "name": "r",
    "fields": [
        {"name": "n", "type": "long"},
        {"name": "small", "type": ["null", "int"]},
        {"name": "d", "type": {"type": "bytes", "logicalType": "decimal", "precision": 6, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "local", "type": ["null", {"type": "long", "logicalType": "local-timestamp-micros"}]},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "raw", "type": "bytes"},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "in", "type": {"type": "record", "name": "i", "fields": [{"name": "x", "type": "double"}]}},
        {"name": "one", "type": {"type": "enum", "name": "e", "symbols": ["A", "B"]}},
    ],
}


def avro_row(number: int) -> dict[str, Any]:
    return {
        "n": number,
        "small": None if number % 2 else number,
        "d": Decimal("-1.25"),
        "at": datetime(2024, 1, 1, 5, tzinfo=UTC),
        "local": datetime(2024, 1, 1, 5, 0, 0, 7),
        "day": date(2024, 2, 29),
        "raw": b"\x00\xff",
        "tags": ["é"] * (number % 3),
        "in": {"x": 0.5},
        "one": "B",
    }


def test_avro_types_and_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(avro_format, "PIECE_BYTES", 4_000)
    monkeypatch.setattr(avro_format, "BATCH_ROWS", 100)
    rows = [avro_row(number) for number in range(2_000)]
    with (tmp_path / "a.avro").open("wb") as stream:
        fastavro.writer(stream, fastavro.parse_schema(AVRO), rows, codec="deflate", sync_interval=500)
    source = Files(path="a.avro", format="avro")
    batches, _, pieces = read(tmp_path, source, [each["name"] for each in AVRO["fields"]])  # type: ignore[index]
    assert pieces > 5
    assert values(batches) == rows
    kinds = batches[-1].values.schema
    assert kinds["d"] == pl.Decimal(6, 2)
    assert kinds["at"] == pl.Datetime("us", "UTC")
    assert kinds["local"] == pl.Datetime("us")
    (tmp_path / "a.avro.gz").write_bytes(gzip.compress((tmp_path / "a.avro").read_bytes()))
    assert values(read(tmp_path, Files(path="a.avro.gz", format="avro"), ["n"])[0]) == [
        {"n": row["n"]} for row in rows
    ]


def test_orc_in_stripes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orc_format, "PIECE_BYTES", 20_000)
    frame = pl.DataFrame({"n": range(100_000), "m": [str(row * 7919) for row in range(100_000)]})
    orc.write_table(frame.to_arrow(), str(tmp_path / "a.orc"), stripe_size=20_000, batch_size=1_000)
    batches, _, pieces = read(tmp_path, Files(path="a.orc", format="orc"), ["m", "absent"])
    assert pieces > 2
    assert [row["m"] for row in values(batches)] == frame["m"].to_list()
    assert batches[0].columns == ["n", "m"]


@pytest.mark.parametrize("form", ["avro", "orc", "parquet", "jsonl", "csv"])
def test_damage_and_other_formats_are_named(form: Any, tmp_path: Path) -> None:
    for number, content in enumerate([b"", os.urandom(3_000), b"Obj\x01nonsense", b"\x89PNG\r\n" * 9]):
        name = f"{number}.{form}"
        (tmp_path / name).write_bytes(content)
        source = Files(path=name, format=form)
        if form == "jsonl" or (form == "csv" and number > 1):  # lines that are no rows
            with contextlib.suppress(SourceUnreadable):
                assert values(read(tmp_path, source, ["n"])[0]) == []
        elif form != "csv" or number == 0:
            with pytest.raises(SourceUnreadable, match=re.escape(name)) as failed:
                read(tmp_path, source, ["n"])
            assert failed.value.hint


# --- images -------------------------------------------------------------------------------------------


def picture(path: Path, size: tuple[int, int], mode: str = "RGB", form: str = "PNG") -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.new(mode, size, 1).save(content, form)
    path.write_bytes(content.getvalue())
    return content.getvalue()


def test_images_with_labels_and_broken_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_format, "PIECE_FILES", 2)
    cat = picture(tmp_path / "in/cat/1.png", (3, 2))
    dog = picture(tmp_path / "in/dog/2_7.jpg", (4, 5), "L", "JPEG")
    large = picture(tmp_path / "in/dog/3.png", (200, 200))
    (tmp_path / "in/dog/3.png").write_bytes(large[: len(large) // 2])
    (tmp_path / "in/dog/4.png").write_bytes(b"")
    source = Files(path="in/*/*", format="image")
    batches, _, pieces = read(tmp_path, source, list(image_format.COLUMNS))
    assert pieces == 2
    assert values(batches) == [
        {"path": "cat/1.png", "label": "cat", "bytes": cat, "width": 3, "height": 2, "mode": "RGB"},
        {"path": "dog/2_7.jpg", "label": "dog", "bytes": dog, "width": 4, "height": 5, "mode": "L"},
    ]
    broken = [row for batch in batches for row in batch.broken]
    assert [(row.row, row.rule, row.text) for row in broken] == [
        (0, "not an image", "dog/3.png"),
        (1, "not an image", "dog/4.png"),
    ]
    assert "0x" not in broken[1].reason
    by_name = source.replace(label=r"_(\d)\.")
    assert [row["label"] for row in values(read(tmp_path, by_name, ["label"])[0])] == [None, "7"]


def test_an_image_that_would_fill_the_memory_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "x/a.png", (100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5_000)
    ((batch,), _, _) = read(tmp_path, Files(path="x/*.png", format="image"), ["width"])
    assert "decompression bomb" in batch.broken[0].reason


# --- bombs and rights ---------------------------------------------------------------------------------


def test_a_file_that_unpacks_to_far_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BOMB_BYTES", 2**20)
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"n\n" + b"1\n" * 2**21))
    with pytest.raises(SourceUnreadable, match=r"a.csv.gz unpacks to more than 200 times its size"):
        read(tmp_path, Files(path="a.csv.gz"), ["n"])


# --- new files only -----------------------------------------------------------------------------------

NEW = Files(path="in/*.csv", new_only=True)


def write(root: Path, name: str, *numbers: int) -> None:
    (root / "in").mkdir(exist_ok=True)
    (root / "in" / name).write_text("n\n" + "".join(f"{number}\n" for number in numbers))


def test_only_new_files_are_read(tmp_path: Path) -> None:
    write(tmp_path, "b.csv", 1)
    batches, cursor, _ = read(tmp_path, NEW, ["n"])
    assert values(batches) == [{"n": "1"}]
    write(tmp_path, "a.csv", 2)  # an earlier name: order is no matter
    batches, cursor, _ = read(tmp_path, NEW, ["n"], cursor)
    assert values(batches) == [{"n": "2"}]
    batches, again, pieces = read(tmp_path, NEW, ["n"], cursor)
    assert (batches, pieces, again) == ([], 0, cursor)
    (tmp_path / "in/b.csv").unlink()
    assert read(tmp_path, NEW, ["n"], cursor)[1]["files"] == 1


def test_a_file_that_has_changed_since(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", 1)
    write(tmp_path, "b.csv", 2)
    _, cursor, _ = read(tmp_path, NEW, ["n"])
    write(tmp_path, "a.csv", 1, 3)
    with pytest.raises(SourceUnreadable, match=r"1 files of 'in/\*.csv' have changed .*a.csv"):
        read(tmp_path, NEW, ["n"], cursor)
    batches, _, _ = read(tmp_path, NEW.replace(changed="read"), ["n"], cursor)
    assert values(batches) == [{"n": "1"}, {"n": "3"}]
    contract = Contract(columns={"n": Column(type="int64")}, key=("n",))
    assert Ingest(dataset="d", source=NEW.replace(changed="read"), contract=contract).mode == "upsert"
    with pytest.raises(DefinitionInvalid, match="upsert"):
        Ingest(dataset="d", source=NEW.replace(changed="read"), contract=contract, mode="append")


def test_files_that_come_while_others_are_read_are_left_for_the_next_time(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", 1)
    with NEW.opened(Ask(tmp_path, ("n",))) as reading:
        write(tmp_path, "b.csv", 2)
        reading.verify()
        write(tmp_path, "a.csv", 1, 3)
        with pytest.raises(SourceUnreadable, match="changed while they were read"):
            reading.verify()
    assert [piece.file for piece in reading.pieces] == ["a.csv"]
    write(tmp_path, "a.csv", 1)


def test_a_hundred_thousand_files_are_less_than_a_megabyte() -> None:
    from manta.connectors._seen import only_new
    from manta.connectors._stores import Found

    files = [Found(f"s3://b/{number // 100}/{number}.csv", number, f"e{number}") for number in range(100_000)]
    cursor, wanted = only_new("x", files, None, changed=False)
    assert len(wanted) == 100_000
    assert len(json.dumps(cursor)) < 800_000
    more = [*files, Found("s3://b/more.csv", 1, "e")]
    assert only_new("x", more, cursor, changed=False)[1] == more[-1:]


def test_the_page_about_files() -> None:
    page = (Path(__file__).parents[3] / "docs/files.md").read_text()
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    made: dict[str, Any] = {}
    exec(block, made)
    assert made["orders"].mode == "append"
    assert {field for field in Files.model_fields if field in page} >= {
        "storage",
        "new_only",
        "changed",
        "format",
    }
