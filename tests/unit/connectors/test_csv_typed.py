"""csv parsed straight to the contract's types: the rows, and what is said of refused ones, are those of the
texts; and files cut into pieces hold the records of the whole."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.connectors.files import Files
from manta.connectors.formats import csv as csv_format
from manta.data.contract import check
from manta.data.landing import _land_piece
from manta.data.values import as_type
from manta.definitions import Column, Contract, Ingest
from manta.definitions.sources import Ask, Rows

INTEGERS = [
    *(
        "1",
        "+1",
        "-1",
        " 1",
        "1 ",
        "\t1",
        "007",
        "-0",
        "0x1F",
        "0X1f",
        "1_000",
        "1.0",
        "1.50",
        "1e3",
        "--1",
        "-",
    ),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "128",
        "-129",
        "\u00a01",
        "1\u00a0",
    ),
]
FLOATS = [
    *(
        "1.",
        " .5",
        "-.5",
        "1e5",
        "1E+5",
        "1e400",
        "-1e400",
        "1e-400",
        "nan",
        "NaN",
        "-nan",
        "inf",
        "-inf",
        "Infinity",
    ),
    *(
        "0x1p3",
        "1d5",
        "1.5.2",
        "e5",
        "1e",
        "9007199254740993",
        "4.9e-324",
        "2.2250738585072011e-308",
        "- 1",
        "∞",
    ),
]
OTHERS = [
    "true",
    "True",
    "TRUE",
    "tRUE",
    " true",
    "false",
    "f",
    "yes",
    "0",
    "",
    " ",
    "NA",
    " NA",
    "é",
    '"',
    "\n",
]
MOMENTS = [
    *("2013-01-01", "2013-01-01 05", "2013-01-01T05:00", "2013-01-01T05:00Z", "2013-01-01T05:00:00"),
    *("2013-01-01 05:00:00.123456", "2013-01-01 05:00:00.1234567", "2013-01-01T05:00:00+05:30"),
    *("2013-01-01T05:00:00+0530", "2013-01-01T05:00:00+05", "2013-01-01T05:00+05", "2013-01-01T05+05:30"),
    *("2013-01-01T05:00:00+99:99", "2013-01-01T05:00:00+24:00", "2013-01-01T05:00:60", "2013-01-01T24:00:00"),
    *(
        "0000-01-01T00:00:00",
        "0000-01-01",
        "0001-01-01",
        "9999-12-31T23:59:59.999999",
        "2013-02-29",
        "2012-02-29",
    ),
    *("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00", "2013-1-1", "+2013-01-01", "20130101"),
    *(
        "2013-01-01t05:00:00z",
        "2013-01-01T05:00:00.",
        "2013-01-01T05:00:00.1Z",
        "2013-01-01  05:00",
        "12013-01-01",
    ),
]
COLUMNS = {
    "whole": Column(type="int64", min=-5, max=2**53, nullable=True),
    "byte": Column(type="int8", nullable=True),
    "real": Column(type="float64", max=1e6),
    "yes": Column(type="bool", nullable=True),
    "name": Column(type="string", nullable=True, pattern=r"[^x]*"),
    "at": Column(type="timestamp", nullable=True),
}
JOB = Ingest(
    dataset="d",
    source=Files(path="a.csv", null_values=("", "NA")),
    contract=Contract(columns=COLUMNS, max_refused=1.0),
)

cells = st.one_of(
    st.sampled_from(INTEGERS + FLOATS + OTHERS + MOMENTS),
    st.integers().map(str),
    st.floats().map(repr),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=4),
)


def landed(folder: Path, ask: Ask) -> tuple[list[Any], list[Any]]:
    """Good rows and refused ones."""
    good, refused = [], []
    for piece in enumerate(_pieces(ask)):
        done = _land_piece(JOB, ask, str(folder), piece)
        good += [row for part in done.parts for row in pl.read_parquet(part.path, glob=False).rows()]
        refused += [row for rows in done.refused for row in rows.rows()]
    return good, refused


def _pieces(ask: Ask) -> list[Any]:
    with JOB.source.opened(ask) as reading:
        return list(reading.pieces)


def both(text: str, folder: Path) -> None:
    (folder / "a.csv").write_text(text, newline="")
    types = {name: column.type for name, column in COLUMNS.items()}
    typed = landed(folder, Ask(folder, tuple(COLUMNS), types=types))
    assert repr(typed) == repr(landed(folder, Ask(folder, tuple(COLUMNS))))


@settings(deadline=None, max_examples=50)
@given(
    rows=st.lists(st.tuples(*[cells] * len(COLUMNS)), max_size=6),
    broken=st.lists(st.integers(0, 6), max_size=2),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_typed_rows_are_those_of_the_texts(
    rows: list[tuple[str, ...]], broken: list[int], quoting: Any, tmp_path_factory: Any
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, row in enumerate(rows):
        writer.writerow(row[: 3 if number in broken else None])
    both(text.getvalue(), tmp_path_factory.mktemp("csv"))


@pytest.mark.parametrize(
    ("name", "odd"), [("whole", INTEGERS), ("byte", INTEGERS[::3]), ("real", FLOATS), ("yes", OTHERS)]
)
def test_each_odd_cell_alone(name: str, odd: list[str], tmp_path: Path) -> None:
    """Alone in its column, so that nothing else keeps the column from being typed."""
    fine = {"whole": "1", "byte": "1", "real": "1.5", "yes": "true", "name": "n", "at": "2013-01-01"}
    for cell in odd:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [COLUMNS, fine.values(), (fine | {name: cell}).values(), fine.values()]
        )
        both(text.getvalue(), tmp_path)


def test_what_can_be_typed_is(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("whole,byte,real,yes,name,at\n1,2,.5,true,n,2013-01-01\n,,1,,,\n")
    types = {name: column.type for name, column in COLUMNS.items()}
    ask = Ask(tmp_path, tuple(COLUMNS), types=types)
    (batch,) = JOB.source.read(_pieces(ask)[0], ask)
    kinds = {"whole": pl.Int64, "byte": pl.Int8, "real": pl.Float64, "yes": pl.Boolean}
    assert dict(batch.values.schema) == kinds | {"name": pl.String, "at": pl.String}
    assert batch.texts is not None
    assert batch.texts().rows()[0] == ("1", "2", ".5", "true", "n", "2013-01-01")


@pytest.mark.parametrize("cell", MOMENTS)
@pytest.mark.parametrize("kind", ["timestamp", "datetime", "date"])
def test_moments_by_either_parser(cell: str, kind: Any) -> None:
    """One odd value beside them sends all to the careful parser."""
    alone = as_type(pl.Series([cell, None]), kind)
    beside = as_type(pl.Series([cell, None, "odd"]), kind)
    assert alone is not None
    assert beside is not None
    assert alone.to_list() == beside.to_list()[:2]
    assert alone.dtype == beside.dtype


# --- records in pieces --------------------------------------------------------------------------------

texts = st.text(st.sampled_from('a",\n\r;x '), max_size=60)


def read(root: Path, source: Files, size: int) -> tuple[list[Any], list[Any], int]:
    """Values, broken rows and the number of pieces, when pieces have so many bytes."""
    ask = Ask(root, ("n", "m"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_format, "PIECE_BYTES", size)
        with source.opened(ask) as reading:
            batches: list[Rows] = []
            start = 0
            broken = []
            for piece in reading.pieces:
                for rows in source.read(piece, ask):
                    batches.append(rows)
                    broken += [(start + row.row, row.reason, row.text) for row in rows.broken]
                    start += rows.height
    return [row for rows in batches for row in rows.values.rows()], broken, len(reading.pieces)


@settings(deadline=None, max_examples=150)
@given(text=texts, size=st.integers(1, 12))
@example(text='5",x\n"a\nb",y\n6",z\n', size=3)
@example(text='a,"b\n""c""\n",\n"",x\n', size=2)
def test_any_text_in_pieces_is_that_in_one(text: str, size: int, tmp_path_factory: Any) -> None:
    root = tmp_path_factory.mktemp("cut")
    (root / "a.csv").write_bytes(b"n,m\n" + text.encode())
    source = Files(path="a.csv")
    try:
        whole = read(root, source, 10_000)
    except Exception as error:
        with pytest.raises(type(error)):
            read(root, source, size)
        return
    assert read(root, source, size)[:2] == whole[:2]


def test_files_with_quotes_are_cut(tmp_path: Path) -> None:
    rows = [(str(row), 'say "x",\nor\n' if row % 3 else "") for row in range(300)]
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("n", "m"), *rows])
    values, broken, pieces = read(tmp_path, Files(path="a.csv", null_values=()), 500)
    assert values == rows
    assert not broken
    assert pieces > 5


def test_without_line_ends_in_texts_nothing_is_read_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.csv").write_text("n,m\n" + "".join(f'{row},"x"\n' for row in range(300)))
    monkeypatch.setattr(csv_format, "_look_at", None)
    values, _, pieces = read(tmp_path, Files(path="a.csv", multiline=False), 500)
    assert values == [(str(row), "x") for row in range(300)]
    assert pieces > 3


def test_other_delimiters_quotes_headers_and_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("1;'é;\n'\n2;ü\n".encode("latin-1"))
    source = Files(path="a.csv", delimiter=";", quote="'", columns=("n", "m"), encoding="latin-1")
    assert read(tmp_path, source, 10_000)[0] == [("1", "é;\n"), ("2", "ü")]
    assert read(tmp_path, source, 3)[0] == [("1", "é;\n"), ("2", "ü")]
    # A stray quote: to be read from the beginning, as a stream.
    (tmp_path / "a.csv").write_bytes("1;5' é\n2;ü\n".encode("latin-1"))
    assert read(tmp_path, source, 3)[0] == [("1", "5' é"), ("2", "ü")]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf1,x\n2,y\n")
    assert read(tmp_path, Files(path="a.csv", columns=("n", "m")), 10_000)[0] == [("1", "x"), ("2", "y")]


def test_checked_texts_are_those_of_the_refused_rows() -> None:
    values = pl.DataFrame({"n": ["007", "-6"]})
    contract = Contract(columns={"n": Column(type="int64", min=100)})
    told = check(values, contract, pl.DataFrame({"file": ["f", "f"], "row": [1, 2]})).refused
    assert told["reason"].to_list() == ["n: 007 is below 100", "n: -6 is below 100"]
