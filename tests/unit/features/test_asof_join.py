"""The as-of join against a brute-force oracle in plain Python; MANTA_EXAMPLES says how many cases."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from manta.errors import DefinitionInvalid, InvalidInput
from manta.features.asof import Side, cast, join, newest

EXAMPLES = int(os.environ.get("MANTA_EXAMPLES", "0"))
EPOCH = datetime(2013, 11, 2, 22, tzinfo=UTC)  # the hours after it have New York's clock change in them
# Narrow, so that ties, late rows and the edges of a TTL are the rule; null now and then.
KEYS = ["a", "a", "a", "b", "b", None]
NUMBERS = [0, 0, 0, 1, 1, None]
HOURS = range(8)
MAYBE_HOURS = [*HOURS, *HOURS, None]
TYPES = {"k": "string", "n": "int64"}
ZONES = [None, "UTC", "America/New_York"]


def oracle(
    entity: list[dict[str, Any]],
    rows: list[dict[str, Any]],
    keys: list[str],
    ttl: timedelta | int | None,
    created: bool,
    hide_late: bool,
) -> list[int | None]:
    """Which row of the view each entity row gets. Times are instants, or all of them whole numbers."""
    answer = []
    for one in entity:
        best: tuple[Any, ...] | None = None
        for position, row in enumerate(rows):
            if any(one[key] is None or one[key] != row[key] for key in keys):
                continue
            if one["at"] is None or row["t"] is None or row["t"] > one["at"]:
                continue
            if ttl and row["t"] < one["at"] - ttl:
                continue
            if created and hide_late and (row["c"] is None or row["c"] > one["at"]):
                continue
            written = (row["c"] is not None, row["c"]) if created else ()
            best = max(best, (row["t"], written, position)) if best else (row["t"], written, position)
        answer.append(best[-1] if best else None)
    return answer


def zoned(hours: list[int | None], zone: str | None, minutes: int = 0) -> pl.Series:
    """Instants, an hour each from EPOCH on, as a naive (UTC) or a zoned column."""
    instants = [None if h is None else EPOCH + timedelta(hours=h, minutes=minutes) for h in hours]
    column = pl.Series(instants, dtype=pl.Datetime("us", "UTC"))
    return column.dt.replace_time_zone(None) if zone is None else column.dt.convert_time_zone(zone)


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    # Hypothesis likes short lists, and few faults show in those: it draws how many rows, chance the rows.
    chance = draw(st.randoms(use_true_random=False))

    def rows(count: int, **columns: Sequence[Any]) -> list[dict[str, Any]]:
        return [{name: chance.choice(values) for name, values in columns.items()} for _ in range(count)]

    return {
        "entity": rows(draw(st.integers(0, 12)), k=KEYS, n=NUMBERS, at=MAYBE_HOURS),
        "rows": rows(draw(st.integers(0, 25)), k=KEYS, n=NUMBERS, t=MAYBE_HOURS, c=MAYBE_HOURS),
        "keys": draw(st.sampled_from([["k"], ["n"], ["k", "n"], []])),
        "ttl": draw(st.sampled_from([0, 1, 3])),
        "created": draw(st.booleans()),
        "hide_late": draw(st.booleans()),
        "zones": draw(st.tuples(*[st.sampled_from(ZONES)] * 3)),
    }


def held(case: dict[str, Any]) -> tuple[pl.DataFrame, Side]:
    entity, rows = case["entity"], case["rows"]
    column = {name: [each[name] for each in entity] for name in ("k", "n", "at")}
    of = {name: [each[name] for each in rows] for name in ("k", "n", "t", "c")}
    frame = pl.DataFrame({"k": column["k"], "n": column["n"]}, schema={"k": pl.String, "n": pl.Int64})
    view = pl.DataFrame({"k": of["k"], "n": of["n"]}, schema={"k": pl.String, "n": pl.Int64}).with_columns(
        t=zoned(of["t"], case["zones"][1]),
        c=zoned(of["c"], case["zones"][2]),
        position=pl.int_range(len(rows), dtype=pl.Int64),
    )
    side = Side(
        label="the view",
        frame=view.lazy(),
        keys={key: (key, TYPES[key]) for key in case["keys"]},
        time="t",
        created="c" if case["created"] else None,
        ttl_seconds=case["ttl"] * 3600.0,
        features={"found": ("position", "int64")},
    )
    return frame.with_columns(at=zoned(column["at"], case["zones"][0])), side


def instants(rows: list[dict[str, Any]], *names: str) -> list[dict[str, Any]]:
    return [
        row | {n: None if row[n] is None else EPOCH + timedelta(hours=row[n]) for n in names} for row in rows
    ]


def by_oracle(case: dict[str, Any]) -> list[int | None]:
    """What the oracle says of a case, row by row."""
    return oracle(
        instants(case["entity"], "at"),
        instants(case["rows"], "t", "c"),
        case["keys"],
        timedelta(hours=case["ttl"]) or None,
        case["created"],
        case["hide_late"],
    )


@given(cases())
@example_settings(max_examples=EXAMPLES or 300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_equals_the_oracle(case: dict[str, Any]) -> None:
    frame, side = held(case)
    expected = by_oracle(case)
    (answer,) = join(frame, "at", [side], hide_late=case["hide_late"])
    assert answer["found"].to_list() == expected


@given(cases(), st.sampled_from(HOURS))
@example_settings(max_examples=EXAMPLES or 100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_newest_row_of_a_key_is_the_one_that_a_join_takes(case: dict[str, Any], hour: int) -> None:
    _, side = held(case | {"ttl": 0})
    until = EPOCH + timedelta(hours=hour)
    kept = newest(side, round(until.timestamp() * 1e6))
    keys = kept.select(pl.col("^__key_.*$"))
    rows = [dict(zip(case["keys"], row, strict=True)) for row in keys.iter_rows()] if case["keys"] else [{}]
    asked = [row | {"at": until} for row in rows]
    expected = oracle(asked, instants(case["rows"], "t", "c"), case["keys"], None, case["created"], False)
    if case["keys"]:
        everything = {tuple(row[k] for k in case["keys"]) for row in case["rows"] if usable(row, case, hour)}
        assert set(keys.iter_rows()) == everything
        assert kept["found"].to_list() == expected
    else:
        assert kept["found"].to_list() == [position for position in expected if position is not None]


def usable(row: dict[str, Any], case: dict[str, Any], hour: int) -> bool:
    return row["t"] is not None and row["t"] <= hour and all(row[key] is not None for key in case["keys"])


def test_the_bounds_are_inclusive_to_the_microsecond() -> None:
    tick, ttl = timedelta(microseconds=1), timedelta(hours=3)
    known = EPOCH + timedelta(microseconds=7)
    asked = [known - tick, known, known + ttl, known + ttl + tick]
    side = Side(
        label="v",
        frame=pl.LazyFrame({"k": ["a"], "t": [known], "x": [1.5]}),
        keys={"k": ("k", "string")},
        time="t",
        created=None,
        ttl_seconds=ttl.total_seconds(),
        features={"x": ("x", "float64")},
    )
    (answer,) = join(pl.DataFrame({"k": ["a"] * 4, "at": asked}), "at", [side])
    assert answer["x"].to_list() == [None, 1.5, 1.5, None]


def test_the_repeated_hour_of_a_clock_change_is_two_hours() -> None:
    new_york = ZoneInfo("America/New_York")
    first = datetime(2013, 11, 3, 1, 30, tzinfo=new_york)
    second = first.replace(fold=1)
    at = pl.Series([first.astimezone(UTC), second.astimezone(UTC)]).dt.convert_time_zone("America/New_York")
    frame = pl.LazyFrame({"t": at, "x": [1, 2]})
    side = Side("v", frame, {}, "t", None, 0.0, {"x": ("x", "int64")})
    (answer,) = join(pl.DataFrame({"at": at}), "at", [side])
    assert answer["x"].to_list() == [1, 2]


def test_facts_without_a_time_are_known_from_always() -> None:
    side = Side(
        label="facts",
        frame=pl.LazyFrame({"k": ["a", "a", "b"], "x": [1, 2, 3]}),
        keys={"k": ("k", "string")},
        time=None,
        created=None,
        ttl_seconds=0.0,
        features={"x": ("x", "int64")},
    )
    rows = pl.DataFrame({"k": ["a", "b", "z"], "at": [EPOCH] * 3})
    (answer,) = join(rows, "at", [side])
    assert answer["x"].to_list() == [2, 3, None]  # of one key, the later row


def test_nan_is_missing_and_instants_are_whole_seconds_as_they_are_online() -> None:
    late = EPOCH + timedelta(milliseconds=1999)
    frame = pl.LazyFrame({"t": [EPOCH], "x": [float("nan")], "seen": [late]})
    side = Side("v", frame, {}, "t", None, 0.0, {"x": ("x", "float32"), "seen": ("seen", "timestamp")})
    (answer,) = join(pl.DataFrame({"at": [EPOCH]}), "at", [side])
    assert answer.row(0) == (None, EPOCH + timedelta(seconds=1))
    assert answer.schema["x"] == pl.Float32


@pytest.mark.parametrize(
    ("held_as", "kind"),
    [
        (pl.Float64, "int64"),
        (pl.String, "int64"),
        (pl.Int64, "string"),
        (pl.Int64, "timestamp"),
        (pl.Int8, "bool"),
    ],
)
def test_a_type_that_would_lose_something_is_refused(held_as: pl.DataType, kind: str) -> None:
    assert cast("x", held_as, kind) is None
    frame = pl.LazyFrame({"t": [EPOCH], "x": pl.Series([None], dtype=held_as)})
    side = Side("dataset 'd'", frame, {}, "t", None, 0.0, {"x": ("x", kind)})
    with pytest.raises(DefinitionInvalid, match=f"'x' as .* declare it as {kind}") as failure:
        join(pl.DataFrame({"at": [EPOCH]}), "at", [side])
    assert "declare the Field" in failure.value.hint


def test_a_value_that_does_not_fit_is_an_error_and_not_a_null() -> None:
    frame = pl.LazyFrame({"t": [EPOCH], "x": [2**40]})
    side = Side("dataset 'd'", frame, {}, "t", None, 0.0, {"x": ("x", "int32")})
    with pytest.raises(DefinitionInvalid, match="does not fit"):
        join(pl.DataFrame({"at": [EPOCH]}), "at", [side])


def test_keys_of_pandas_with_gaps_are_integers_all_the_same() -> None:
    frame = pl.LazyFrame({"n": [1, 2], "t": [EPOCH, EPOCH], "x": [10, 20]})
    side = Side("v", frame, {"n": ("n", "int64")}, "t", None, 0.0, {"x": ("x", "int64")})
    rows = pl.DataFrame({"n": [2.0, float("nan"), 1.0], "at": [EPOCH] * 3})
    assert join(rows, "at", [side])[0]["x"].to_list() == [20, None, 10]
    with pytest.raises(InvalidInput, match="join key 'n' as Float64") as failure:
        join(rows.with_columns(n=pl.lit(1.5)), "at", [side])
    assert failure.value.hint == "cast 'n' to int64"


def test_what_is_missing_is_named() -> None:
    frame = pl.LazyFrame({"k": ["a"], "t": [EPOCH], "x": [1]})
    side = Side("dataset 'd'", frame, {"k": ("k", "string")}, "t", None, 0.0, {"y": ("y", "int64")})
    with pytest.raises(InvalidInput, match="no column k") as failure:
        join(pl.DataFrame({"at": [EPOCH]}), "at", [side])
    assert "at" in failure.value.hint
    with pytest.raises(DefinitionInvalid, match="dataset 'd' has no column y"):
        join(pl.DataFrame({"k": ["a"], "at": [EPOCH]}), "at", [side])
    with pytest.raises(InvalidInput, match="not a time"):
        join(pl.DataFrame({"k": ["a"], "at": [5]}), "at", [side])


def test_a_date_is_its_first_instant() -> None:
    frame = pl.LazyFrame({"t": [dt.date(2013, 1, 2)], "x": [1]})
    side = Side("v", frame, {}, "t", None, 0.0, {"x": ("x", "int64")})
    rows = pl.DataFrame({"at": [datetime(2013, 1, 1, 23, 59), datetime(2013, 1, 2)]})
    assert join(rows, "at", [side])[0]["x"].to_list() == [None, 1]
