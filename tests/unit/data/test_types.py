"""Every type of a contract: against Python as the oracle, and through the lake to whoever reads it."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest
from deltalake import DeltaTable
from hypothesis import example, given, settings
from hypothesis import strategies as st

from manta.connectors.files import Files
from manta.data import evolution
from manta.data.contract import check
from manta.data.lake import Change, Lake, write_part
from manta.data.values import arrow_schema, as_type, polars_type
from manta.definitions.datasets import Column, Contract, Ingest
from manta.definitions.types import parse
from manta.errors import ContractBroken
from tests.unit.data.test_contract import checked, outcome

BAD = object()


def converted(values: list[Any], kind: str, dtype: Any = pl.String) -> list[Any]:
    """By value: what it became, or BAD."""
    found = outcome(checked(Column(type=kind, nullable=True), values, dtype), len(values))
    return [BAD if isinstance(value, tuple) else value for value in found]


# --- the grammar --------------------------------------------------------------------------------------


def kinds(deep: int = 2) -> st.SearchStrategy[str]:
    plain = st.sampled_from(
        ["string", "bool", "binary", "date", "timestamp", "datetime", "int8", "int16", "int32", "int64",
         "float32", "float64", "decimal(5,2)", "decimal(38,0)", "decimal(38,38)", "decimal(1,1)"]
    )  # fmt: skip
    if not deep:
        return plain
    names = st.sampled_from(["a", "b_1", '"größe"', '"two words"', '"q\\"t"', "list", "struct", "int64"])
    inner = st.deferred(lambda: kinds(deep - 1))
    fields = st.dictionaries(names, inner, min_size=1, max_size=3)
    structs = fields.map(
        lambda held: f"struct{{{', '.join(f'{name}: {kind}' for name, kind in held.items())}}}"
    )
    return st.one_of(plain, inner.map("list[{}]".format), structs)


@given(kind=kinds(), space=st.sampled_from([" ", "", "  ", "\n"]))
def test_a_type_has_one_spelling(kind: str, space: str) -> None:
    assert str(parse(kind)) == kind
    if '"' not in kind:
        assert (
            str(parse(kind.replace(" ", "").replace(",", f"{space},{space}").replace("[", f"{space}[")))
            == kind
        )
    assert Column(type=kind).type == kind


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("int", r"one of string, bool, .* is expected at 'int'"),
        ("", "a type is expected at ''"),
        ("list[int64", r"'\]' is expected at ''"),
        ("list int64", r"'\[' is expected"),
        ("int64]", r"nothing more is expected at '\]'"),
        ("struct{}", "the name of a field is expected"),
        ("struct{a: int64, a: int8}", "has field 'a' twice"),
        ("struct{a: int64, A: int8}", "has field 'A' twice"),
        ("struct{a int64}", "':' is expected"),
        ("decimal", r"'\(' is expected"),
        ("decimal(39,0)", "1 to 38 digits"),
        ("decimal(0,0)", "1 to 38 digits"),
        ("decimal(2,3)", "1 to 38 digits"),
        ("decimal(2,-1)", "a type is expected at '-1"),
        ("list[" * 40 + "int64" + "]" * 40, "more than 16 levels"),
    ],
)
def test_what_is_no_type_is_told_where(kind: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Column(type=kind)


# --- plain types from text ----------------------------------------------------------------------------

BITS = {"int8": 8, "int16": 16, "int32": 32}


@pytest.mark.parametrize("kind", BITS)
@settings(deadline=None)
@given(data=st.data())
def test_small_integers(kind: str, data: st.DataObject) -> None:
    least, most = -(2 ** (BITS[kind] - 1)), 2 ** (BITS[kind] - 1) - 1
    near = st.one_of(
        st.integers(least - 2, least + 2), st.integers(most - 2, most + 2), st.integers(-(2**64), 2**64)
    )
    numbers = data.draw(st.lists(near, max_size=8))
    wanted = [number if least <= number <= most else BAD for number in numbers]
    assert converted([str(number) for number in numbers], kind) == wanted
    assert converted([f" {number}.0 " for number in numbers], kind) == wanted
    assert converted(numbers, kind, pl.Int128) == wanted
    exact = [number for number in numbers if int(float(number)) == number]
    assert converted([float(number) for number in exact], kind, pl.Float64) == [
        number if least <= number <= most else BAD for number in exact
    ]


def to_float32(text: str) -> Any:
    value = float(text)
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return BAD


@settings(deadline=None)
@given(values=st.lists(st.floats(allow_nan=False) | st.floats(width=32, allow_nan=False), max_size=8))
@example(values=[3.4028235e38, 3.4028236e38, 1e39, -1e39, 1e-50, math.inf, -math.inf])
def test_float32_holds_the_closest_and_never_an_infinity_for_a_number(values: list[float]) -> None:
    wanted = [to_float32(repr(value)) for value in values]
    assert converted(values, "float32", pl.Float64) == wanted
    assert converted([repr(value) for value in values], "float32") == wanted


def test_a_number_beyond_float64_is_refused() -> None:
    texts = ["1e308", "1e309", "-1e400", "inf", "-Infinity", "1" * 400]
    assert converted(texts, "float64") == [1e308, BAD, BAD, math.inf, -math.inf, BAD]


def fits(value: Decimal, precision: int, scale: int) -> bool:
    with localcontext(prec=200):
        shifted = value.scaleb(scale)
        return shifted == shifted.to_integral_value() and abs(shifted) < 10**precision


digits = st.text("0123456789", max_size=24)
decimal_texts = st.one_of(
    st.builds(lambda sign, whole, point, behind, power: f"{sign}{whole}{point}{behind}{power}",
        st.sampled_from(["", "-", "+"]), digits, st.sampled_from(["", "."]), digits,
        st.sampled_from(["", "", "", "e3", "E-4", "e+10", "e-40", "e"])),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.sampled_from(["", ".", "1_000", "1,5", "NaN", "Infinity", "١٢", "１２", "0x1",
                     "1e999999999999999999999", "0e999999999999", "-0.00", "1e99999999", "½", "1 2", "−1"]),
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(decimal_texts, max_size=8),
    shape=st.sampled_from([(9, 2), (38, 0), (38, 38), (38, 10), (1, 1), (1, 0), (18, 18), (5, 4)]),
)
@example(values=["1.105", "0.995", "9999999.99", "9999999.995", "12345678.9"], shape=(9, 2))
def test_decimals_are_exact_or_refused(values: list[str], shape: tuple[int, int]) -> None:
    for text, got in zip(values, converted(values, f"decimal({shape[0]},{shape[1]})"), strict=True):
        ascii_number = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text)
        if ascii_number and fits(Decimal(text), *shape):
            assert got == Decimal(text), text
            assert got.as_tuple().exponent == -shape[1]
        elif text in ("0e999999999999", "-0.00"):
            assert got == 0
        else:
            assert got is BAD, text


@settings(deadline=None)
@given(values=st.lists(st.floats() | st.decimals(-999, 999, places=3).map(float), max_size=8))
def test_a_float_is_the_decimal_that_its_shortest_text_names(values: list[float]) -> None:
    wanted = [
        Decimal(repr(value)) if math.isfinite(value) and fits(Decimal(repr(value)), 12, 3) else BAD
        for value in values
    ]
    assert converted(values, "decimal(12,3)", pl.Float64) == wanted


@settings(deadline=None)
@given(values=st.lists(st.decimals(-(10**9), 10**9, places=4), max_size=8))
def test_decimals_of_another_shape(values: list[Decimal]) -> None:
    for precision, scale in [(38, 10), (15, 4), (38, 2), (9, 2), (4, 4)]:
        wanted = [value if fits(value, precision, scale) else BAD for value in values]
        assert converted(values, f"decimal({precision},{scale})", pl.Decimal(14, 4)) == wanted
    whole = [int(value) if value == int(value) else BAD for value in values]
    assert converted(values, "int64", pl.Decimal(14, 4)) == whole


@settings(deadline=None)
@given(values=st.lists(st.integers(-(2**64), 2**64), max_size=8))
def test_integers_as_decimals(values: list[int]) -> None:
    wanted = [Decimal(value) if abs(value) < 10**10 else BAD for value in values]
    assert converted(values, "decimal(12,2)", pl.Int128) == wanted


@settings(deadline=None)
@given(
    values=st.lists(
        st.binary(max_size=9).map(lambda held: base64.b64encode(held).decode())
        | st.binary(max_size=5).map(lambda held: "\\x" + held.hex())
        | st.text("ABab09+/=\\x-_", max_size=8),
        max_size=8,
    )
)
def test_bytes_from_text(values: list[str]) -> None:
    for text, got in zip(values, converted(values, "binary"), strict=True):
        if text.startswith("\\x"):
            try:
                assert got == bytes.fromhex(text[2:])
            except ValueError:
                assert got is BAD
            continue
        try:
            wanted = base64.b64decode(text, validate=True)
        except ValueError:
            assert got is BAD, text
            continue
        assert got == (wanted if base64.b64encode(wanted).decode() == text else BAD)


@pytest.mark.parametrize(
    ("text", "timestamp", "reading"),
    [
        ("2024-02-29T10:00:00.123456", datetime(2024, 2, 29, 10, 0, 0, 123456), ...),
        ("2024-02-29 10:00", datetime(2024, 2, 29, 10), ...),
        ("2024-02-29", datetime(2024, 2, 29), ...),
        ("2024-02-29T10:00:00Z", datetime(2024, 2, 29, 10), BAD),
        ("2024-02-29T10:00:00+05:30", datetime(2024, 2, 29, 4, 30), BAD),
        ("2023-02-29T10:00:00", BAD, BAD),
        ("2024-02-29T24:00:00", BAD, BAD),
        ("0000-01-01T00:00:00", BAD, BAD),
        ("0001-01-01T00:00:00+01:00", BAD, BAD),
        ("9999-12-31T23:59:59.999999", datetime(9999, 12, 31, 23, 59, 59, 999999), ...),
        ("9999-12-31T23:59:59-01:00", BAD, BAD),
        ("２０２４-02-29", BAD, BAD),
        ("1709200800", BAD, BAD),
        ("", BAD, BAD),
    ],
)
def test_moments_with_and_without_an_offset(text: str, timestamp: Any, reading: Any) -> None:
    zoned = timestamp if timestamp is BAD else timestamp.replace(tzinfo=UTC)
    assert converted([text], "timestamp") == [zoned]
    assert converted([text], "datetime") == [timestamp if reading is ... else reading]


@settings(deadline=None)
@given(
    values=st.lists(
        st.sampled_from(
            ["2024-02-29T10:00:00Z", "2024-02-29 10:00:00", "2023-02-29T10:00:00Z", "2024-02-29T10:00:00",
             "2024-02-29T24:00:00Z", "2024-02-29T10:00:00+00:00", " 2024-02-29T10:00:00Z ", "bad"]
        )
        | st.none(),
        max_size=6,
    )
)  # fmt: skip
def test_a_moment_is_read_alike_whatever_stands_around_it(values: list[str | None]) -> None:
    for kind in ("timestamp", "datetime"):
        assert converted(values, kind) == [converted([value], kind)[0] for value in values]


@pytest.mark.parametrize(
    "kind", ["int8", "float32", "decimal(9,2)", "datetime", "list[int8]", "struct{a: int8}"]
)
def test_an_empty_string_is_no_value_of_it(kind: str) -> None:
    assert converted(["", "  ", None], kind) == [BAD, BAD, None]


def test_there_is_no_year_0() -> None:
    assert converted(["0000-12-31", "0001-01-01"], "date") == [BAD, date(1, 1, 1)]


def test_look_alikes_are_no_numbers() -> None:
    for kind in ("int8", "int32", "int64", "float32", "float64", "decimal(9,2)", "bool", "date"):
        assert converted(["１", "١", "²", "Ⅷ", "−1", "1\u066b5", "O", "l"], kind) == [BAD] * 8


# --- typed sources ------------------------------------------------------------------------------------

NEW_YORK = timezone(timedelta(hours=-5))


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "wanted"),
    [
        ([b"\x00\xff", None], pl.Binary, "binary", [b"\x00\xff", None]),
        ([datetime(2024, 1, 1, 5)], pl.Datetime("ns"), "datetime", [datetime(2024, 1, 1, 5)]),
        ([date(2024, 1, 1)], pl.Date, "datetime", [datetime(2024, 1, 1)]),
        ([[1, None], None, [], [300]], pl.List(pl.Int64), "list[int8]", [[1, None], None, [], BAD]),
        ([["1", " 2 "], ["x"], [None]], pl.List(pl.String), "list[int64]", [[1, 2], BAD, [None]]),
        ([[1, 2], None], pl.Array(pl.Int64, 2), "list[int64]", [[1, 2], None]),
        (
            [{"a": 1, "b": "2", "c": 0}, None, {"a": None, "b": None, "c": 1}, {"a": 1, "b": "y", "c": 2}],
            pl.Struct({"a": pl.Int64, "b": pl.String, "c": pl.Int64}),
            "struct{b: int8, a: float64}",
            [{"b": 2, "a": 1.0}, None, {"b": None, "a": None}, BAD],
        ),
        (
            [[{"a": [1]}, None], [{"a": [1, 999]}], [{"a": None}]],
            pl.List(pl.Struct({"a": pl.List(pl.Int64)})),
            "list[struct{a: list[int8]}]",
            [[{"a": [1]}, None], BAD, [{"a": None}]],
        ),
        (
            [[datetime(2024, 1, 1, tzinfo=NEW_YORK)]],
            pl.List(pl.Datetime("ms", "America/New_York")),
            "list[timestamp]",
            [[datetime(2024, 1, 1, 5, tzinfo=UTC)]],
        ),
        ([[], None], pl.List(pl.Null), "list[decimal(5,2)]", [[], None]),
        ([True], pl.Boolean, "int8", None),
        ([datetime(2024, 1, 1, tzinfo=UTC)], pl.Datetime("us", "UTC"), "datetime", None),
        ([{"a": 1}], pl.Struct({"a": pl.Int64}), "struct{a: int64, b: int64}", None),
        ([[1]], pl.List(pl.Int64), "list[date]", None),
        ([[1]], pl.List(pl.Int64), "struct{a: int64}", None),
        ([1], pl.Int64, "binary", None),
    ],
)
def test_typed_values(values: list[Any], dtype: Any, kind: str, wanted: list[Any] | None) -> None:
    if wanted is None:
        with pytest.raises(ContractBroken, match=r"cannot be the contract's"):
            converted(values, kind, dtype)
    else:
        assert converted(values, kind, dtype) == wanted


def test_milliseconds_that_no_microseconds_hold_are_refused() -> None:
    moments = pl.Series("x", [2**62, 1000], dtype=pl.Int64).cast(pl.Datetime("ms"))
    for kind in ("timestamp", "datetime"):
        found = as_type(moments, kind)
        assert found is not None
        assert found.to_physical().to_list() == [None, 1_000_000]


def test_a_part_of_a_column_is_converted_as_the_whole_is() -> None:
    whole = pl.Series("x", [["7"], None, ["1", "2"], [], ["bad"], ["3"]])
    for start in range(6):
        found = as_type(whole[start:], "list[int16]")
        assert found is not None
        assert found.to_list() == [[7], None, [1, 2], [], None, [3]][start:]


# --- values of any type -------------------------------------------------------------------------------


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Values that Python holds exactly as the type does; None is one of them inside a list or a struct."""
    if kind.name == "list":
        return st.lists(st.none() | values_of(kind.item), max_size=3)
    if kind.name == "struct":
        return st.fixed_dictionaries({name: st.none() | values_of(field) for name, field in kind.fields})
    if kind.name == "decimal":
        most = 10**kind.precision - 1
        with localcontext(prec=100):
            return st.integers(-most, most).map(
                lambda held: Decimal((int(held < 0), tuple(map(int, str(abs(held)))), -kind.scale))
            )
    if kind.name.startswith("int"):
        bits = int(kind.name[3:])
        return st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {
        "string": st.text(max_size=5),
        "bool": st.booleans(),
        "binary": st.binary(max_size=5),
        "date": st.dates(),
        "timestamp": st.datetimes(timezones=st.just(UTC)),
        "datetime": st.datetimes(),
        "float32": st.floats(width=32, allow_nan=False),
        "float64": st.floats(allow_nan=False),
    }[kind.name]


def to_json(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: to_json(held) for name, held in value.items()}
    if isinstance(value, list):
        return [to_json(held) for held in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (Decimal, date, datetime)):
        return str(value)
    if isinstance(value, float) and math.isinf(value):
        return str(value)
    return value


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_json_gives_the_values_it_was_made_of(data: st.DataObject) -> None:
    text = data.draw(kinds().filter(lambda held: held[-1] in "]}"))
    kind = parse(text)
    values = data.draw(st.lists(st.none() | values_of(kind), max_size=4))
    found = as_type(
        pl.Series([None if v is None else json.dumps(to_json(v)) for v in values], dtype=pl.String), text
    )
    assert found is not None
    assert found.dtype == polars_type(kind)
    assert found.to_list() == values


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("[12345678901234567890.125]", "list[decimal(38,3)]", [Decimal("12345678901234567890.125")]),
        ('{"a": 1, "more": [1]}', "struct{a: int8, b: string}", {"a": 1, "b": None}),
        ('{"a": 1, "a": 2}', "struct{a: int8}", BAD),
        ('{"a": NaN}', "struct{a: float64}", BAD),
        ("[1, 2", "list[int8]", BAD),
        ("[1] [2]", "list[int8]", BAD),
        ("[1, 128]", "list[int8]", BAD),
        ("[1, [2]]", "list[int8]", BAD),
        ('["a", {"b": 1}]', "list[string]", BAD),
        ("[true, 1.50]", "list[string]", ["true", "1.50"]),
        ('["\\ud800"]', "list[string]", BAD),
        ("[" * 100_000, "list[int8]", BAD),
        ("null", "list[int8]", BAD),
        ("{}", "list[int8]", BAD),
        ("[]", "struct{a: int8}", BAD),
        ('"x"', "list[string]", BAD),
    ],
)  # fmt: skip
def test_json_that_fits_and_that_does_not(text: str, kind: str, wanted: Any) -> None:
    assert converted([text], kind) == [wanted]


def test_a_refused_row_of_nested_values_can_be_read() -> None:
    frame = pl.DataFrame(
        {"x": [[1, 300]], "b": [b"\xff\x00"], "t": [{"at": datetime(2024, 1, 1), "raw": b"\xff"}]}
    )
    contract = Contract(
        columns={
            "x": Column(type="list[int8]"),
            "b": Column(type="binary"),
            "t": Column(type="struct{at: datetime, raw: binary}"),
        }
    )
    at = pl.DataFrame({"file": ["f"], "row": [1]})
    refused = check(frame, contract, at).refused
    assert refused["reason"].to_list() == ["x: '[1, 300]' is not list[int8]"]
    assert json.loads(refused["source"][0]) == {
        "x": "[1, 300]", "b": "/wA=", "t": '{"at": "2024-01-01 00:00:00", "raw": "/w=="}'
    }  # fmt: skip


# --- through the lake ---------------------------------------------------------------------------------

WHOLE = {f"c{at}": Column(type=kind, nullable=True) for at, kind in enumerate(
    ["string", "bool", "binary", "date", "timestamp", "datetime", "int8", "int16", "int32", "int64",
     "float32", "float64", "decimal(9,2)", "decimal(38,38)", "list[int32]", "list[list[string]]",
     "struct{a: int8, b: struct{c: decimal(20,4), d: list[timestamp]}}",
     "list[struct{at: datetime, raw: binary}]"]
)}  # fmt: skip


@settings(deadline=None, max_examples=8)
@given(data=st.data())
def test_the_lake_keeps_every_type_for_every_reader(data: st.DataObject, tmp_path_factory: Any) -> None:
    contract = Contract(columns=WHOLE)
    row = st.fixed_dictionaries(
        {name: st.none() | values_of(parse(column.type)) for name, column in WHOLE.items()}
    )
    rows = data.draw(st.lists(row, min_size=1, max_size=4))
    folder: Path = tmp_path_factory.mktemp("lake")
    lake = Lake(folder)
    frame = pl.DataFrame(
        {name: pl.Series([held[name] for held in rows], dtype=polars_type(parse(column.type)))
         for name, column in WHOLE.items()}
    )  # fmt: skip
    positions = pl.DataFrame({"file": ["f"] * len(rows), "row": range(1, len(rows) + 1)})
    good, refused = check(frame, contract, positions)
    assert refused.is_empty()
    path = f"{lake.stage('all', 'r1')}/0.parquet"
    write_part(good, path)
    lake.commit("all", [path], run_key="r1", schema=arrow_schema(contract))
    assert lake.read("all").to_dicts() == rows
    assert lake.read("all").schema == good.schema
    same = Ingest(dataset="all", source=Files(path="x", format="csv"), contract=contract, evolve="refuse")
    evolution.require(same, lake.schema("all"))
    table = DeltaTable(lake.path("all"))
    assert table.to_pyarrow_table().cast(arrow_schema(contract)).to_pylist() == rows
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        names = ", ".join(f'"{name}"' for name in WHOLE)
        found = connection.execute(f"select {names} from read_parquet('{path}')").fetchall()
    # DuckDB's Python values end where Python's do, and a struct's in its own order.
    assert [list(held) for held in found] == [[held[name] for name in WHOLE] for held in rows]


def test_columns_of_any_type_can_be_added(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    first = Contract(columns={"id": Column(type="int64")})
    path = f"{lake.stage('d', 'r1')}/0.parquet"
    write_part(pl.DataFrame({"id": [1]}), path)
    lake.commit("d", [path], run_key="r1", schema=arrow_schema(first))
    whole = Contract(columns={"id": Column(type="int64"), **WHOLE})
    path = f"{lake.stage('d', 'r2')}/0.parquet"
    added = pl.DataFrame({"id": [2]}).with_columns(
        pl.lit(None, dtype=polars_type(parse(column.type))).alias(name) for name, column in WHOLE.items()
    )
    write_part(added, path)
    change = Change([path], (), {})
    lake.change("d", lambda _: change, run_key="r2", schema=arrow_schema(whole))
    assert lake.read("d")["id"].sort().to_list() == [1, 2]
    assert lake.read("d").schema == added.schema
