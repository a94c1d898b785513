"""Reading files: every row once, in order and with its number, whatever the file looks like."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.connectors.files import Files
from manta.connectors.formats import FilePiece
from manta.connectors.formats import csv as csv_format
from manta.connectors.formats.jsonl import json_rows
from manta.definitions.sources import Ask, Rows, source_type
from manta.errors import SourceUnreadable


def pieces(root: Path, source: Files) -> list[Any]:
    with source.opened(Ask(root)) as reading:
        return list(reading.pieces)


def read(root: Path, source: Files, wanted: list[str]) -> list[Rows]:
    ask = Ask(root, tuple(wanted))
    return [rows for piece in pieces(root, source) for rows in source.read(piece, ask)]


def values(batches: list[Rows]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.values.to_dicts()]


def numbers(batches: list[Rows]) -> Iterator[tuple[int, str]]:
    """Every row's number from 1, with its value of `n`, or with why it is broken."""
    start = 0
    for batch in batches:
        broken = {row.row: row.reason for row in batch.broken}
        good = iter(batch.values["n"])
        for row in range(batch.height):
            yield start + row + 1, broken.get(row) or next(good)
        start += batch.height


cells = st.text(
    st.characters(codec="utf-8", exclude_characters="\r\0", exclude_categories=["Cs"]), max_size=6
)


@settings(deadline=None)
@given(rows=st.lists(st.tuples(cells, cells), max_size=12))
def test_csv_as_the_standard_library_reads_it(rows: list[tuple[str, str]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    text = io.StringIO()
    csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows([("n", 'odd "name"'), *rows])
    path.write_text(text.getvalue(), newline="")
    found = values(read(path.parent, Files(path="a.csv", null_values=()), ["n", 'odd "name"']))
    assert [tuple(row.values()) for row in found] == rows


def test_csv_null_values_bom_and_columns_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\ufeffn,m,unused\n1,NA,x\n,2,y\n")
    source = Files(path="a.csv", null_values=("", "NA"))
    assert values(read(tmp_path, source, ["m", "n", "absent"])) == [
        {"m": None, "n": "1"},
        {"m": "2", "n": None},
    ]
    assert read(tmp_path, source, ["m"])[0].columns == ("n", "m", "unused")


@pytest.mark.parametrize("block", [64, 200, 10_000])
def test_csv_rows_of_wrong_length_keep_their_numbers(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_format, "PIECE_BYTES", block)
    lines = [f'{row},"a\nb"' if row % 3 else f"{row}" if row % 2 else f"{row},x,y" for row in range(1, 60)]
    lines += ["60", "61"]  # broken ones at the very end too
    (tmp_path / "a.csv").write_text("\n".join(["n,m", *lines]))
    batches = list(
        Files(path="a.csv").read(FilePiece(str(tmp_path / "a.csv"), "a.csv", 1), Ask(tmp_path, ("n",)))
    )
    found = dict(numbers(batches))
    assert len(batches) > 1 or block == 10_000
    for row in range(1, 62):
        if row % 3 and row < 60:
            assert found[row] == str(row)
        else:
            fields = 1 if row % 2 or row >= 60 else 3
            assert found[row] == f"the row has {fields} fields, the header 2"
    assert len(found) == 61


@pytest.mark.parametrize("text", ["n,m\n", "n,m"])
def test_csv_of_a_header_only_has_no_rows(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert [batch.height for batch in read(tmp_path, Files(path="a.csv"), ["n"])] == [0]


def test_compressed_text(tmp_path: Path) -> None:
    text = b"n\n1\n2\n"
    (tmp_path / "1.csv.gz").write_bytes(gzip.compress(text, mtime=0))
    (tmp_path / "2.csv.bz2").write_bytes(bz2.compress(text))
    with zipfile.ZipFile(tmp_path / "3.csv.zip", "w") as archive:
        archive.writestr("inner.csv", text)
    found = read(tmp_path, Files(path="*.csv.*"), ["n"])
    assert [row["n"] for row in values(found)] == ["1", "2"] * 3


def test_files_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for folder in ("2012", "2013"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "a.csv").write_text("n\n1\n")
    found = pieces(tmp_path, Files(path="data/*/a.csv"))
    assert [piece.file for piece in found] == ["2012/a.csv", "2013/a.csv"]


@pytest.mark.parametrize(
    ("name", "content", "form", "message"),
    [
        ("a.csv", b"", "csv", "a.csv is empty: its first line must name the columns"),
        ("a.csv", b"n\n\xff\xfe\n", "csv", "a.csv cannot be read as csv: .*invalid UTF8"),
        ("a.csv", b"n,n\n1,2\n", "csv", "a.csv has column 'n' 2 times"),
        ("a.csv.gz", b"n\n1\n", "csv", "a.csv.gz cannot be read as csv"),
        (
            "a.csv.gz",
            gzip.compress(b"n\n" + b"1\n" * 99, mtime=0)[:-12],
            "csv",
            "a.csv.gz cannot be read as csv",
        ),
        ("a.csv.zip", b"PK nonsense", "csv", "a.csv.zip cannot be read as csv: File is not a zip"),
        ("a.parquet", b"PAR1 nonsense", "parquet", "a.parquet cannot be read as parquet"),
        ("a.parquet", b"", "parquet", "a.parquet cannot be read as parquet"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes, form: Any, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceUnreadable, match=message):
        read(tmp_path, Files(path=name, format=form), ["n"])


def test_a_parquet_file_cut_short_is_named(tmp_path: Path) -> None:
    whole = io.BytesIO()
    pl.DataFrame({"n": range(10_000)}).write_parquet(whole)
    (tmp_path / "a.parquet").write_bytes(whole.getvalue()[:4000] + b"\0" * 4000 + whole.getvalue()[8000:])
    with pytest.raises(SourceUnreadable, match=r"a.parquet cannot be read as parquet"):
        read(tmp_path, Files(path="a.parquet", format="parquet"), ["n"])


def test_a_zip_of_two_files_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("1.csv", "n\n")
        archive.writestr("2.csv", "n\n")
    with pytest.raises(SourceUnreadable, match=r"a.zip holds 2 files"):
        read(tmp_path, Files(path="a.zip"), ["n"])


# --- jsonl --------------------------------------------------------------------------------------------

JSON = Files(path="a.jsonl", format="jsonl")


def test_jsonl_values_arrive_as_text(tmp_path: Path) -> None:
    lines = [
        '{"n": 1, "m": true}',
        "",
        '{"m": "x", "more": 1}',
        '{"n": 2.0, "m": {"k": [1]}}',
        '{"n": null}\r',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines), newline="")
    batches = read(tmp_path, JSON, ["n", "m"])
    assert values(batches) == [
        {"n": "1", "m": "true"},
        {"n": None, "m": "x"},
        {"n": "2", "m": '{"k": [1]}'},
        {"n": None, "m": None},
    ]


def test_jsonl_keeps_what_is_escaped_in_nested_values(tmp_path: Path) -> None:
    rows = [{"n": ["back\\slash", 'quo"ted', "new\nline"]}, {"n": "[not a list"}, {"n": {"k": "\u0000é"}}, {}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = [row["n"] for row in values(read(tmp_path, JSON, ["n"]))]
    assert json.loads(found[0]) == rows[0]["n"]
    assert found[1] == "[not a list"
    assert json.loads(found[2]) == rows[2]["n"]
    assert found[3] is None


def test_jsonl_lines_that_are_no_objects_are_broken(tmp_path: Path) -> None:
    lines = ['{"n": 1}', "{oops", "[1]", '{"n": 2}{"n": 3}', '{"n": 4}', '"\xff"', '{"n": 5}']
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode("latin-1"))
    found = dict(numbers(read(tmp_path, JSON, ["n"])))
    assert [found[row] for row in (1, 5, 7)] == ["1", "4", "5"]
    assert "not JSON" in found[2]
    assert "not a JSON object" in found[3]
    assert "not JSON" in found[4]
    assert len(found) == 7


def test_jsonl_tells_a_missing_name_from_one_that_is_always_null(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n{"m": null, "other": 2}\n')
    (batch,) = read(tmp_path, JSON, ["n", "m", "gone"])
    assert set(batch.columns) == {"n", "m", "other"}


@settings(deadline=None)
@given(cut=st.integers(20, 200), rows=st.integers(0, 40))
def test_jsonl_in_ranges_gives_every_line_once(cut: int, rows: int, tmp_path_factory: Any) -> None:
    from manta.connectors.formats import jsonl

    root = tmp_path_factory.mktemp("jsonl")
    (root / "a.jsonl").write_text(
        "".join(json.dumps({"n": row, "pad": "x" * (row % 50)}) + "\n" for row in range(rows))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonl, "PIECE_BYTES", cut)
        found = values(read(root, JSON, ["n"]))
    assert [row["n"] for row in found] == [str(row) for row in range(rows)]


# --- parquet ------------------------------------------------------------------------------------------


def test_parquet_by_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from manta.connectors.formats import parquet

    monkeypatch.setattr(parquet, "PIECE_BYTES", 1_000)
    frame = pl.DataFrame({"n": range(10_000), "unused": ["x"] * 10_000})
    frame.write_parquet(tmp_path / "a.parquet", row_group_size=700)
    source = Files(path="a.parquet", format="parquet")
    assert len(pieces(tmp_path, source)) > 3
    batches = read(tmp_path, source, ["n", "absent"])
    assert [row["n"] for row in values(batches)] == list(range(10_000))
    assert batches[0].columns == ["n", "unused"]


def test_parquet_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    pl.DataFrame(schema={"n": pl.Int64}).write_parquet(tmp_path / "a.parquet")
    (batch, *_) = read(tmp_path, Files(path="a.parquet", format="parquet"), ["n"])
    assert batch.values.columns == ["n"]


def test_an_unknown_kind_of_source_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"no connector 'carrier-pigeon'; there are .*files"):
        source_type("carrier-pigeon")


def test_json_numbers_keep_all_their_digits() -> None:
    lines = [
        b'{"x": 12345678901234567890.125, "y": 1.5, "z": "0.123456789012"}',
        b'{"x": -0.12345678901234567890, "y": 0.1000000000000000055}',
        b'{"x": 12345678901234567e-3, "y": null}',
        b'{"x": 99999999999999999999999999999999999999, "y": "\\u00e9 1.234567890123"}',
        b'{"x": 1.5}',
    ]
    values = json_rows(lines, ["x", "y", "z"]).values
    assert values["x"].to_list() == [
        "12345678901234567890.125",
        "-0.12345678901234567890",
        "12345678901234567e-3",
        "99999999999999999999999999999999999999",
        "1.5",
    ]
    assert values["y"].to_list() == ["1.5", "0.1000000000000000055", None, "é 1.234567890123", None]
    assert values["z"].to_list() == ["0.123456789012", None, None, None, None]
