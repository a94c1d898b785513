"""Contracts against a plain-Python oracle, value by value; and what is said of refused rows."""

from __future__ import annotations

import json
import math
import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from manta.data.contract import Checked, check
from manta.definitions.datasets import Column, Contract
from manta.errors import ContractBroken, DefinitionInvalid


def checked(column: Column, values: list[Any], dtype: Any = pl.String) -> Checked:
    frame = pl.DataFrame({"x": pl.Series(values, dtype=dtype)})
    return check(frame, Contract(columns={"x": column}), positions(len(values)))


def positions(count: int) -> pl.DataFrame:
    rows = {"file": ["f.csv"] * count, "row": range(1, count + 1)}
    return pl.DataFrame(rows, schema={"file": pl.String, "row": pl.Int64})


def outcome(result: Checked, count: int) -> list[Any]:
    """By row: the value, or the rules that it breaks."""
    refused = dict(result.refused.select("row", "rules").iter_rows())
    good = iter(result.good["x"].to_list())
    return [tuple(refused[row]) if row in refused else next(good) for row in range(1, count + 1)]


# --- parsing ------------------------------------------------------------------------------------------


def parse_int(text: str) -> int | None:
    found = re.fullmatch(r"([+-]?[0-9]+)(\.0*)?", text.strip(" "))
    value = int(found[1]) if found else None
    return value if value is not None and -(2**63) <= value < 2**63 else None


def parse_float(text: str) -> float | None:
    if not re.fullmatch(
        r"(?i)[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(inf|infinity|nan)", text.strip(" ")
    ):
        return None
    value = float(text)
    # A number beyond all floats is no infinity.
    return None if math.isinf(value) and re.search("[0-9]", text) else value


def parse_bool(text: str) -> bool | None:
    return {"true": True, "1": True, "false": False, "0": False}.get(text.strip(" ").lower())


def parse_date(text: str) -> date | None:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text.strip(" ")):
        return None
    try:
        return date.fromisoformat(text.strip(" "))
    except ValueError:
        return None


def parse_timestamp(text: str) -> datetime | None:
    shape = (
        r"(\d{4})-(\d\d)-(\d\d)(?:[ Tt](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?(Z|z|[+-]\d\d(?::?\d\d)?)?)?"
    )
    found = re.fullmatch(shape, text.strip(" "), re.ASCII)
    if not found:
        return None
    year, month, day, hour, minute, second = (int(part or 0) for part in found.groups()[:6])
    micros = int((found[7] or "0").ljust(9, "0")[:6])
    offset = found[8] or "Z"
    try:
        shift = timedelta()
        if offset not in "Zz":
            hours, minutes = int(offset[1:3]), int(offset[3:].strip(":") or 0)
            if hours > 23 or minutes > 59:
                return None
            shift = (1 if offset[0] == "+" else -1) * timedelta(hours=hours, minutes=minutes)
        moment = datetime(year, month, day, hour, minute, second, micros, tzinfo=timezone(shift))
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


PARSERS: dict[str, Any] = {
    "string": lambda text: text,
    "int64": parse_int,
    "float64": parse_float,
    "bool": parse_bool,
    "date": parse_date,
    "timestamp": parse_timestamp,
}
dates = st.dates(min_value=date(1900, 1, 1)).map(str)
near_dates = st.builds(
    "{:04d}-{:02d}-{:02d}".format, st.integers(1, 9999), st.integers(0, 14), st.integers(0, 33)
)
clocks = st.builds("{:02d}:{:02d}".format, st.integers(0, 25), st.integers(0, 61))
seconds = st.one_of(
    st.just(""),
    st.integers(0, 61).map(":{:02d}".format),
    st.from_regex(r":[0-5][0-9]\.[0-9]{0,10}", fullmatch=True),
)
offsets = st.sampled_from(["", "Z", "z", "+01:00", "-0330", "+09", "+24:00", "-00:61", "+1", "UTC", "+0"])
moments = st.builds(
    lambda d, sep, c, s, o: f"{d}{sep}{c}{s}{o}",
    st.one_of(dates, near_dates), st.sampled_from(["T", " ", "t", "", "  "]), clocks, seconds, offsets,
)  # fmt: skip
good_moments = st.builds(
    "{}{}{:%H:%M:%S}.{}{}".format,
    dates,
    st.sampled_from("T t"),
    st.times(),
    st.text("0123456789", min_size=1, max_size=10),
    offsets,
)
TEXTS = {
    "string": st.text(),
    "int64": st.one_of(
        st.integers(-(2**64), 2**64).map(str),
        st.builds("{}.{}".format, st.integers(-99, 99), st.text("05", max_size=3)),
        st.text("0123456789+-.e _x", max_size=6),
    ),
    "float64": st.one_of(
        st.floats().map(repr),
        st.text("0123456789+-.eE _", max_size=8),
        st.sampled_from(["nan", "NaN", "inf", "-inf", "x", "1e400", "-1E309"]),
    ),
    "bool": st.sampled_from(["true", "TRUE", "False", "0", "1", " 1 ", "yes", "2", "", "t", "None"]),
    "date": st.one_of(dates, near_dates, moments, st.just("20130101")),
    "timestamp": st.one_of(moments, good_moments, dates, near_dates),
}


@pytest.mark.parametrize("kind", PARSERS)
@settings(deadline=None)
@given(data=st.data())
def test_text_is_parsed_as_the_oracle_does(kind: str, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.none() | TEXTS[kind], max_size=8))
    nullable = data.draw(st.booleans())
    found = outcome(checked(Column(type=kind, nullable=nullable), values), len(values))
    for text, got in zip(values, found, strict=True):
        value = None if text is None else PARSERS[kind](text)
        if text is not None and value is None:
            assert got == (f"x is not {kind}",), text
        elif value is None or (isinstance(value, float) and math.isnan(value)):
            assert got == (None if nullable else ("x is missing",)), text
        else:
            assert got == value, text
            assert type(got) is type(value)


@settings(deadline=None)
@given(
    values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1), max_size=8),
    low=st.none() | st.integers(-(2**60), 2**60) | st.floats(-100, 100),
    high=st.none() | st.integers(-(2**60), 2**60) | st.floats(-100, 100),
)
@example(values=[2**53, 2**53 + 1], low=None, high=2**53)
@example(values=[0, 1, 2], low=0.5, high=1.5)
def test_bounds_of_integers(values: list[int | None], low: float | None, high: float | None) -> None:
    assume(low is None or high is None or low <= high)
    column = Column(type="int64", nullable=True, min=low, max=high)
    found = outcome(checked(column, values, pl.Int64), len(values))
    for value, got in zip(values, found, strict=True):
        below = value is not None and column.min is not None and value < column.min
        above = value is not None and column.max is not None and value > column.max
        assert (isinstance(got, tuple) and len(got) == below + above) if below or above else got == value


@settings(deadline=None)
@given(values=st.lists(st.none() | st.floats(), max_size=8), low=st.floats(-10, 10), high=st.floats(-10, 10))
def test_bounds_of_floats(values: list[float | None], low: float, high: float) -> None:
    low, high = sorted((low, high))
    found = outcome(
        checked(Column(type="float64", nullable=True, min=low, max=high), values, pl.Float64), len(values)
    )
    for value, got in zip(values, found, strict=True):
        if value is None or math.isnan(value):
            assert got is None
        else:
            broken = (value < low) + (value > high)
            assert len(got) == broken if broken else got == value


@settings(deadline=None)
@given(
    values=st.lists(
        st.none() | st.sampled_from(["a", "b", "c", "A", "", "a\n", "ab", "É1", "N1", "N12"]), max_size=8
    )
)
def test_choices_and_patterns(values: list[str | None]) -> None:
    column = Column(type="string", nullable=True, one_of=("a", "b", "N1"), pattern=r"[a-z]|N\d|É")
    found = outcome(checked(column, values), len(values))
    for value, got in zip(values, found, strict=True):
        broken = value is not None and [
            value not in ("a", "b", "N1"),
            not re.fullmatch(column.pattern or "", value),
        ]
        assert len(got) == sum(broken) if broken and any(broken) else got == value


# --- typed sources ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "wanted"),
    [
        ([1, None], pl.Int16, "int64", [1, None]),
        ([1], pl.UInt64, "float64", [1.0]),
        ([2**64 - 1], pl.UInt64, "int64", [("x is not int64",)]),
        ([1, 0, 2], pl.Int64, "bool", [True, False, ("x is not bool",)]),
        ([1.0, 1.5, math.nan, math.inf, 1e300], pl.Float64, "int64", [1, *[("x is not int64",)] * 4]),
        ([1.5], pl.Float32, "float64", [1.5]),
        ([Decimal("1.00"), Decimal("1.50")], pl.Decimal(9, 2), "int64", [1, ("x is not int64",)]),
        (["a"], pl.Categorical, "string", ["a"]),
        ([True], pl.Boolean, "string", ["true"]),
        ([7], pl.Int64, "string", ["7"]),
        ([None], pl.Null, "date", [None]),
        ([date(2013, 1, 1)], pl.Date, "timestamp", [datetime(2013, 1, 1, tzinfo=UTC)]),
        ([datetime(2013, 1, 1)], pl.Datetime("ns"), "timestamp", [datetime(2013, 1, 1, tzinfo=UTC)]),
        (
            [datetime(2013, 1, 1, tzinfo=timezone(timedelta(hours=-5)))],
            pl.Datetime("ms", "America/New_York"),
            "timestamp",
            [datetime(2013, 1, 1, 5, tzinfo=UTC)],
        ),
    ],
)
def test_typed_values(values: list[Any], dtype: Any, kind: Any, wanted: list[Any]) -> None:
    assert outcome(checked(Column(type=kind, nullable=True), values, dtype), len(values)) == wanted


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        ([[1]], pl.List(pl.Int64), "int64"),
        ([1], pl.Int64, "timestamp"),
        ([1.5], pl.Float64, "string"),
        ([datetime(2013, 1, 1)], pl.Datetime("us"), "date"),
        ([b"x"], pl.Binary, "string"),
    ],
)
def test_a_type_that_can_never_fit_breaks_the_contract(values: list[Any], dtype: Any, kind: Any) -> None:
    with pytest.raises(ContractBroken, match=r"column 'x' of f.csv holds .*cannot be the contract's"):
        checked(Column(type=kind), values, dtype)


# --- rows ---------------------------------------------------------------------------------------------

CONTRACT = Contract(
    columns={
        "dep_time": Column(type="int64", min=0, max=2400),
        "carrier": Column(type="string", one_of=("UA", "AA")),
        "delay": Column(type="float64", nullable=True),
    }
)


def test_refused_rows_say_what_is_wrong_where_and_keep_the_row() -> None:
    source = pl.DataFrame(
        {
            "delay": ["1.5", "late", None, "2"],
            "extra": ["", "", "", ""],
            "carrier": ["UA", "ZZ", "AA", None],
            "dep_time": ["517", "abc", "2401", "-1"],
        }
    )
    good, refused = check(source, CONTRACT, positions(4))
    assert good.to_dicts() == [{"dep_time": 517, "carrier": "UA", "delay": 1.5}]
    assert good.schema == {"dep_time": pl.Int64, "carrier": pl.String, "delay": pl.Float64}
    assert refused["reason"].to_list() == [
        "dep_time: 'abc' is not int64; carrier: 'ZZ' is not one of UA, AA; delay: 'late' is not float64",
        "dep_time: 2401 is above 2400",
        "dep_time: -1 is below 0; carrier: is missing",
    ]
    assert refused["row"].to_list() == [2, 3, 4]
    assert set(refused["file"]) == {"f.csv"}
    assert refused["rules"].to_list()[2] == ["dep_time is below 0", "carrier is missing"]
    assert json.loads(refused["source"][0]) == {"dep_time": "abc", "carrier": "ZZ", "delay": "late"}


def test_a_renamed_column_is_named_with_the_closest() -> None:
    source = pl.DataFrame({"departure_time": ["1"], "carrier": ["UA"], "delay": ["1"]})
    with pytest.raises(
        ContractBroken, match=r"f.csv has no column 'dep_time' \(the closest is 'departure_time'"
    ):
        check(source, CONTRACT, positions(1))


def test_no_rows() -> None:
    good, refused = check(
        pl.DataFrame(schema=dict.fromkeys(CONTRACT.columns, pl.String)), CONTRACT, positions(0)
    )
    assert good.is_empty()
    assert refused.is_empty()
    assert list(good.columns) == list(CONTRACT.columns)


def test_long_values_are_cut() -> None:
    refused = checked(Column(type="int64"), ["9" * 500]).refused
    assert len(refused["reason"][0]) < 100
    assert "9" * 500 in refused["source"][0]


def test_a_pattern_that_the_engine_cannot_use() -> None:
    with pytest.raises(DefinitionInvalid, match="pattern of column 'x' cannot be used"):
        checked(Column(type="string", pattern=r"(a)\1"), ["1"])


def test_rows_are_refused_from_frames_of_several_chunks() -> None:
    lat = Column(type="float64", max=72)
    contract = Contract(columns={"lat": lat, "tz": Column(type="int64", max=-4)})
    parts = [
        pl.DataFrame({"lat": ["1.5", north], "tz": ["-5", west]})
        for north, west in (("33.4117", "8"), ("1", "-5"), ("72.270833", "-5"), ("32.4759", "8"))
    ]
    whole = pl.concat(parts, rechunk=False)
    assert whole["lat"].n_chunks() == 4  # of one no row is refused
    positions = pl.DataFrame({"file": ["f"] * 8, "row": range(1, 9)})
    _, refused = check(whole, contract, positions)
    assert refused["reason"].to_list() == [
        "tz: 8 is above -4",
        "lat: 72.270833 is above 72",
        "tz: 8 is above -4",
    ]
