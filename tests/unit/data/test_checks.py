"""Rules beyond a type: of a value, of a row, and of all that a run brings; each against plain Python."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.connectors.files import Files
from manta.data import bounds, checks
from manta.data.contract import check
from manta.data.keys import Part
from manta.data.lake import Lake, write_part
from manta.data.sketch import sketch
from manta.data.values import arrow_schema, polars_type
from manta.definitions import Check, Column, Contract, Ingest, from_json
from manta.definitions.types import parse
from manta.errors import ContractBroken, DefinitionInvalid
from tests.unit.data.test_contract import checked, outcome, positions

NOW = datetime(2024, 6, 1, 12, tzinfo=UTC)


def broken(column: Column, values: list[Any], dtype: Any = pl.String) -> list[list[str]]:
    """By value: the rules that it breaks."""
    found = outcome(checked(column, values, dtype), len(values))
    return [list(value) if isinstance(value, tuple) else [] for value in found]


# --- a value ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "least", "most", "values"),
    [
        ("date", date(2024, 1, 2), "2024-01-03", [date(2024, 1, day) for day in (1, 2, 3, 4)]),
        ("datetime", datetime(2024, 1, 2), "2024-01-03", [datetime(2024, 1, day) for day in (1, 2, 3, 4)]),
        (
            "timestamp",
            "2024-01-02T01:00:00+01:00",
            datetime(2024, 1, 3, tzinfo=UTC),
            [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
        ),
        ("decimal(9,2)", Decimal("0.10"), 0.3, [Decimal(text) for text in ("0.09", "0.10", "0.30", "0.31")]),
        ("decimal(38,0)", 10**37, 10**37 + 1, [Decimal(10**37 + add) for add in (-1, 0, 1, 2)]),
        ("int8", -1, 1, [-2, -1, 1, 2]),
        ("int64", 2**53, 2**53 + 1, [2**53 - 1, 2**53, 2**53 + 1, 2**53 + 2]),
        ("float32", 0.1, 0.3, [0.0999, 0.1, 0.3, 0.301]),
    ],
)
def test_bounds_are_inclusive_and_exact(kind: str, least: Any, most: Any, values: list[Any]) -> None:
    column = Column(type=kind, min=least, max=most)
    dtype = polars_type(parse(kind))
    below, *inside, above = broken(column, values, dtype)
    assert inside == [[], []]
    assert len(below) == len(above) == 1
    assert below[0].startswith("x is below")
    assert above[0].startswith("x is above")
    texts = [str(value) for value in values]
    assert broken(column, texts) == broken(column, values, dtype)
    again = Column.model_validate_json(column.model_dump_json())
    assert again == column


@settings(deadline=None)
@given(values=st.lists(st.none() | st.integers(-5, 5), max_size=8))
def test_choices_of_integers(values: list[int | None]) -> None:
    column = Column(type="int16", nullable=True, one_of=(1, 2, 3, -4), not_one_of=(3, 4))
    for value, rules in zip(values, broken(column, values, pl.Int64), strict=True):
        wanted = ["x is not one of 1, 2, 3, -4"] if value is not None and value not in (1, 2, 3, -4) else []
        assert rules == wanted + (["x is one of 3, 4"] if value in (3, 4) else [])


@pytest.mark.parametrize(
    ("kind", "unit", "values", "dtype"),
    [
        ("string", "characters", ["a", "äö", "日本語", "😀😀😀😀"], pl.String),
        ("binary", "bytes", [b"1", b"\xff\xff", b"123", b"1234"], pl.Binary),
        ("list[int8]", "elements", [[1], [1, None], [1, 2, 3], [1, 2, 3, 4]], pl.List(pl.Int8)),
    ],
)
def test_lengths(kind: str, unit: str, values: list[Any], dtype: Any) -> None:
    rules = broken(Column(type=kind, nullable=True, min_length=2, max_length=3), [*values, None], dtype)
    assert rules == [[f"x has fewer than 2 {unit}"], [], [], [f"x has more than 3 {unit}"], []]


def test_texts_that_stand_for_nothing() -> None:
    column = Column(type="int64", nullable=True, null_values=("NA", "-", ""))
    assert outcome(checked(column, ["1", "NA", "-", "", "na", None]), 6) == [
        1, None, None, None, ("x is not int64",), None
    ]  # fmt: skip
    assert broken(Column(type="string", null_values=("NA",)), ["NA", "x"]) == [["x is missing"], []]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"type": "string", "min": 1}, "bound numbers, dates and times"),
        ({"type": "list[int64]", "min": 1}, "bound numbers, dates and times"),
        ({"type": "int64", "min": "a"}, "'a' is no number"),
        ({"type": "float64", "max": float("nan")}, "nan is no number"),
        ({"type": "int64", "min": 2, "max": 1}, "min=2 is above max=1"),
        ({"type": "date", "min": "2024-13-01"}, "'2024-13-01' is no date"),
        ({"type": "datetime", "min": "2024-01-01T00:00:00Z"}, "is no datetime"),
        ({"type": "timestamp", "min": "2024-01-02", "max": "2024-01-02T00:00:00+01:00"}, "is above max"),
        ({"type": "decimal(4,2)", "min": "0.005"}, r"'0.005' is no decimal\(4,2\)"),
        ({"type": "decimal(4,2)", "max": 100}, r"100 is no decimal\(4,2\)"),
        ({"type": "decimal(4,2)", "max": "NaN"}, r"'NaN' is no decimal\(4,2\)"),
        ({"type": "int8", "one_of": (1, 128)}, "128 is no int8"),
        ({"type": "string", "not_one_of": (1,)}, "1 is no string"),
        ({"type": "bool", "one_of": ("true",)}, "hold for strings and integers"),
        ({"type": "int64", "pattern": "a"}, "pattern holds for strings"),
        ({"type": "int64", "min_length": 1}, "hold for strings, binary and lists"),
        ({"type": "int64", "fresh_within": "2h"}, "holds for dates and times"),
        ({"type": "date", "fresh_within": "2 hours"}, "fresh_within"),
        ({"type": "int64", "max_null": 0.1}, "goes with nullable=True"),
        ({"type": "int64", "nullable": True, "max_null": 1.1}, "less than or equal to 1"),
    ],
)
def test_rules_that_do_not_fit_their_type(fields: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Column(**fields)


# --- a row --------------------------------------------------------------------------------------------

TRIPS = {
    "departed": Column(type="timestamp"),
    "arrived": Column(type="timestamp", nullable=True),
    "seats": Column(type="int64", min=1),
}


def short(rows: pl.DataFrame) -> pl.Series:
    assert rows["seats"].null_count() == 0
    assert (rows["seats"] >= 1).all()
    return rows["seats"] < 500


def raising(rows: pl.DataFrame) -> pl.Series:
    return rows["nothing"]


def counting(rows: pl.DataFrame) -> pl.Series:
    return rows["seats"]


def summing(rows: pl.DataFrame) -> Any:
    return rows["seats"].sum() > 1


def too_few(rows: pl.DataFrame) -> pl.Series:
    return (rows["seats"] > 0).head(1)


def test_a_check_of_rows_names_itself_the_values_and_the_position() -> None:
    contract = Contract(
        columns=TRIPS,
        checks=(
            Check("arrives after it leaves", "arrived > departed"),
            Check("small enough", short),
        ),
    )
    rows = pl.DataFrame(
        {
            "departed": [
                "2024-01-01T10:00",
                "2024-01-01T10:00",
                "2024-01-01T10:00",
                "bad",
                "2024-01-01T10:00",
            ],
            "arrived": ["2024-01-01T11:00", "2024-01-01T09:00", None, "2024-01-01T09:00", "2024-01-01T08:00"],
            "seats": ["1", "2", "3", "0", "600"],
        }
    )
    good, refused = check(rows, contract, positions(5))
    assert good["seats"].to_list() == [1, 3]
    assert refused["row"].to_list() == [2, 4, 5]
    assert refused["reason"].to_list() == [
        "arrives after it leaves: not arrived > departed "
        "(arrived = 2024-01-01T09:00, departed = 2024-01-01T10:00)",
        "departed: 'bad' is not timestamp; seats: 0 is below 1",
        "arrives after it leaves: not arrived > departed "
        "(arrived = 2024-01-01T08:00, departed = 2024-01-01T10:00); small enough",
    ]
    assert refused["rules"].to_list()[2] == [
        "arrives after it leaves: not arrived > departed",
        "small enough",
    ]


pairs = st.lists(st.tuples(st.none() | st.integers(-3, 3), st.none() | st.integers(-3, 3)), max_size=8)


@settings(deadline=None)
@given(rows=pairs)
def test_checks_of_rows_against_python(rows: list[tuple[int | None, int | None]]) -> None:
    contract = Contract(
        columns={"a": Column(type="int64", nullable=True, min=-2), "b": Column(type="int64")},
        checks=(Check("a is less", "a < b"), Check("not both", "NOT (a = 0 AND b IN (1, 2))")),
    )
    frame = pl.DataFrame(rows, schema={"a": pl.Int64, "b": pl.Int64}, orient="row")
    good, refused = check(frame, contract, positions(len(rows)))
    told = dict(refused.select("row", "rules").iter_rows())
    kept = []
    for number, (a, b) in enumerate(rows, start=1):
        wanted = (["a is below -2"] if a is not None and a < -2 else []) + (
            ["b is missing"] if b is None else []
        )
        if not wanted and a is not None and b is not None:
            wanted = (["a is less: not a < b"] if a >= b else []) + (
                ["not both: not NOT (a = 0 AND b IN (1, 2))"] if a == 0 and b in (1, 2) else []
            )
        assert told.get(number, []) == wanted
        kept += [] if wanted else [(a, b)]
    assert good.rows() == kept


@pytest.mark.parametrize(
    ("sql", "wrong"),
    [
        ("arrived >", r"check 'it' \(arrived >\) cannot be made"),
        ("arived > departed", "arived"),
        ("seats + 1", "it gives Int64, not true or false"),
        ("max(seats) > 3", "one answer for all rows"),
        ("true", "one answer for all rows"),
        ("seats > 'many'", "cannot be made"),
    ],
)
def test_an_expression_that_cannot_be_asked_is_found_before_any_row_is(sql: str, wrong: str) -> None:
    with pytest.raises(DefinitionInvalid, match=wrong):
        checks.require(Contract(columns=TRIPS, checks=(Check("it", sql),)))


@pytest.mark.parametrize(
    ("function", "wrong"),
    [
        (raising, "ColumnNotFoundError"),
        (counting, "it gives 1 × Int64 for 1 rows"),
        (summing, "it gives a bool, not a polars.Series"),
    ],
)
def test_a_function_that_gives_no_booleans(function: Any, wrong: str) -> None:
    contract = Contract(columns={"seats": Column(type="int64")}, checks=(Check("it", function),))
    checks.require(contract)
    with pytest.raises(DefinitionInvalid, match=wrong):
        check(pl.DataFrame({"seats": [1]}), contract, positions(1))


def test_a_function_that_gives_too_few() -> None:
    contract = Contract(columns={"seats": Column(type="int64")}, checks=(Check("it", too_few),))
    with pytest.raises(DefinitionInvalid, match="it gives 1 × Boolean for 2 rows"):
        check(pl.DataFrame({"seats": [1, 2]}), contract, positions(2))


def test_checks_are_data_and_their_functions_code() -> None:
    contract = Contract(columns=TRIPS, checks=(Check("a", "seats > 1"), Check("b", short)))
    job = Ingest(dataset="trips", source=Files(path="x", format="csv"), contract=contract)
    assert job.code() == (f"{__name__}:short",)
    assert from_json(json.loads(json.dumps(job.to_json()))) == job
    for fields in ({"name": "x"}, {"name": "x", "sql": "a", "fn": "m:f"}):
        with pytest.raises(ValueError, match="an expression or a function"):
            Check.model_validate(fields)
    with pytest.raises(ValueError, match="two checks have one name"):
        Contract(columns=TRIPS, checks=(Check("a", "seats > 1"), Check("a", "seats > 2")))


# --- all ----------------------------------------------------------------------------------------------


def trying(
    lake: Lake, batches: list[pl.DataFrame], columns: dict[str, Column], mode: Any = "replace", **rules: Any
) -> str:
    """What is wrong with these batches; commits them when nothing is."""
    contract = Contract(columns=columns, **rules)
    job = Ingest(dataset="d", source=Files(path="x", format="csv"), contract=contract, mode=mode)
    key = f"r{(lake.version('d') or 0) + 1}-{len(batches)}"
    folder = lake.stage("d", key)
    parts = []
    for number, batch in enumerate(batches):
        path = f"{folder}/{number}.parquet"
        write_part(batch, path)
        parts.append(Part(path, "f", batch.height, sketch=sketch(batch)))
    try:
        bounds.require(job, lake, lake.head("d"), parts, NOW)
    except ContractBroken as error:
        return error.message
    lake.commit(
        "d",
        [part.path for part in parts],
        run_key=key,
        schema=arrow_schema(contract),
        metadata={"rows": sum(batch.height for batch in batches)},
    )
    return ""


def ids(count: int) -> pl.DataFrame:
    return pl.DataFrame({"id": range(count)}, schema={"id": pl.Int64})


ID = {"id": Column(type="int64", nullable=True)}


def test_bounds_of_the_number_of_rows(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    assert "d: 3 good rows are fewer than min_rows=4; nothing was committed" in trying(
        lake, [ids(1), ids(2)], ID, min_rows=4
    )
    assert "3 good rows are more than max_rows=2" in trying(lake, [ids(1), ids(2)], ID, max_rows=2)
    assert "0 good rows are fewer than min_rows=1" in trying(lake, [], ID, min_rows=1)
    assert lake.version("d") is None
    assert trying(lake, [ids(1), ids(2)], ID, min_rows=3, max_rows=3) == ""


def test_the_number_of_rows_beside_the_version_before(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    rules = {"max_change": 0.5}
    assert trying(lake, [ids(10)], ID, **rules) == ""
    assert "16 good rows are +60.0% beside the 10 that version 0 was made with, max_change=50.0%" in trying(
        lake, [ids(8), ids(8)], ID, **rules
    )
    assert "4 good rows are -60.0%" in trying(lake, [ids(4)], ID, **rules)
    assert trying(lake, [ids(5)], ID, **rules) == ""
    assert trying(lake, [ids(7)], ID, **rules) == ""


def test_a_share_of_nulls(tmp_path: Path) -> None:
    lake = Lake(tmp_path)
    some = pl.DataFrame({"id": [1, None, 3]}, schema={"id": pl.Int64})
    columns = {"id": Column(type="int64", nullable=True, max_null=0.25)}
    assert "id is missing in 1 of 3 rows (33.333%), max_null=25.000%" in trying(lake, [some], columns)
    assert trying(lake, [some, ids(1)], columns) == ""
    assert trying(lake, [], columns) == ""


@pytest.mark.parametrize(
    ("kind", "newest"),
    [
        ("timestamp", NOW - timedelta(hours=2)),
        ("datetime", (NOW - timedelta(hours=2)).replace(tzinfo=None)),
        ("date", date(2024, 6, 1)),
    ],
)
def test_freshness(tmp_path: Path, kind: str, newest: Any) -> None:
    lake = Lake(tmp_path)
    dtype = polars_type(parse(kind))

    def at(*values: Any) -> pl.DataFrame:
        return pl.DataFrame({"at": pl.Series(values, dtype=dtype)})

    old = newest - timedelta(days=1)
    limit = "12h" if kind == "date" else "2h"
    columns = {"at": Column(type=kind, nullable=True, fresh_within=limit)}
    told = trying(lake, [at(old), at(None)], columns)
    assert f"the newest at is {old:%Y-%m-%d %H:%M:%S} UTC, 1 day, " in told
    assert "at has no value that could be fresh" in trying(lake, [at(None)], columns)
    assert trying(lake, [at(old), at(newest, old)], columns) == ""
    # What an append adds may be older than what there is.
    assert trying(lake, [at(old)], columns, mode="append") == ""
    assert "the newest at is" in trying(lake, [at(old)], columns, mode="append")


def test_all_that_is_out_of_bounds_is_told_at_once(tmp_path: Path) -> None:
    columns = {"at": Column(type="timestamp", nullable=True, max_null=0, fresh_within="1d")}
    frame = pl.DataFrame({"at": [None]}, schema={"at": pl.Datetime("us", "UTC")})
    told = trying(Lake(tmp_path), [frame], columns, min_rows=2)
    assert told.count(";") == 3


def test_a_moment_beyond_the_calendar_is_no_trouble(tmp_path: Path) -> None:
    columns = {"at": Column(type="timestamp", fresh_within="1d")}
    frame = pl.DataFrame({"at": pl.Series([2**62], dtype=pl.Int64).cast(pl.Datetime("us", "UTC"))})
    assert trying(Lake(tmp_path), [frame], columns) == ""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("90s", timedelta(seconds=90)),
        ("1.5h", timedelta(minutes=90)),
        ("2w", timedelta(weeks=2)),
        ("PT5M", timedelta(minutes=5)),
    ],
)
def test_durations(text: str, wanted: timedelta) -> None:
    column = Column(type="date", fresh_within=text)
    assert column.fresh_within == wanted
    assert Column.model_validate_json(column.model_dump_json()) == column
