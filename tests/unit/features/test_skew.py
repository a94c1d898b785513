"""The comparison by itself: no false alarm on what is the same, and a name for what is not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest

from manta.features.skew import (
    SECOND,
    Facts,
    Failed,
    allowed_by_the_second,
    causes_of,
    differ,
    on_demand_causes,
    same_in_another_type,
    typed,
)
from manta.features.wire import decode_value, value_encoder
from manta.ledger.parity import Cause

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NAN = float("nan")


def served(values: pl.Series, kind: str) -> list[Any]:
    """As a store gives them back: written and read in Feast's bytes."""
    encode = value_encoder(kind)
    return [decode_value(encode(value)) for value in values.to_list()]


def columns(count: int) -> dict[str, pl.Series]:
    """Every kind of value, the awkward ones too, as the as-of join gives them."""
    random = np.random.default_rng(3)
    floats = random.normal(0, 1e6, count)
    floats[:8] = [0.0, -0.0, 1e308, 5e-324, 0.1, 1 / 3, float("inf"), -float("inf")]
    missing = pl.Series(random.random(count) < 0.1)
    seconds = random.integers(0, 2_000_000_000, count)
    made = {
        "float64": pl.Series(floats),
        "float32": pl.Series(floats).cast(pl.Float32),
        "int64": pl.Series(random.integers(-(2**63), 2**63 - 1, count)),
        "int32": pl.Series(random.integers(-(2**31), 2**31 - 1, count).astype(np.int32)),
        "bool": pl.Series(random.random(count) < 0.5),
        "string": pl.Series([f"é{at}" if at % 5 else "" for at in range(count)]),
        "timestamp": (pl.Series(seconds) * SECOND).cast(pl.Datetime("us", "UTC")),
        "list[float64]": pl.Series(
            [[value] * (at % 3) for at, value in enumerate(floats.tolist())], dtype=pl.List(pl.Float64)
        ),
    }
    return {
        kind: pl.DataFrame({"x": values, "m": missing}).select(pl.when(~pl.col("m")).then("x"))["x"]
        for kind, values in made.items()
    }


def test_a_million_clean_values_raise_no_alarm() -> None:
    values = 0
    for kind, expected in columns(125_000).items():
        found = typed(served(expected, kind), kind)
        assert not found.odd
        assert not differ(expected, found).any()
        values += len(expected)
    assert values == 1_000_000


def test_one_changed_value_in_each_column_is_found() -> None:
    for kind, expected in columns(1000).items():
        changed = served(expected, kind)
        at = next(at for at in range(100, 1000) if changed[at] not in (None, []))
        changed[at] = None
        assert differ(expected, typed(changed, kind)).arg_true().to_list() == [at]


def test_missing_and_not_a_number_are_one() -> None:
    expected = pl.Series([None, NAN, 1.0, None], dtype=pl.Float64)
    assert differ(expected, typed([NAN, None, 1.0, 2.0], "float64")).to_list() == [False, False, False, True]


@pytest.mark.parametrize(
    ("kind", "value", "online", "another_type"),
    [
        ("float64", 0.1, float(np.float32(0.1)), True),
        ("float64", 0.1, "0.1", True),
        ("float64", 2.7, 2, True),
        ("float64", 2.7, 3.0, True),
        ("float64", -2.7, -2, True),
        ("float64", 2.7, 2.8, False),
        ("int64", 2**40 + 5, 5, True),
        ("int64", 5, 6, False),
        ("int64", 5, "5", True),
        ("int64", 16_777_217, 16_777_216, True),
        ("string", "a", "b", False),
        ("string", "1", 1, True),
        ("bool", True, 1, True),
        ("int32", 5, 2**40, True),
        ("timestamp", NOON, NOON + timedelta(seconds=0.5), True),
        ("timestamp", NOON, NOON + timedelta(hours=1), False),
        ("timestamp", NOON, int(NOON.timestamp()), True),
        ("list[float64]", [0.1], [float(np.float32(0.1))], True),
        ("list[float64]", [0.1], ["x"], True),
        ("list[float64]", [0.1], [0.2], False),
    ],
)
def test_a_value_in_another_type(kind: str, value: Any, online: Any, another_type: bool) -> None:
    expected, found = typed([value, None], kind).column, typed([online, None], kind)
    assert differ(expected, found).to_list() == [True, False]
    assert same_in_another_type(expected, found).to_list() == [another_type, False]


def facts(**changes: Any) -> Facts:
    """One row: the lake has 1.0 of noon, and so has the store."""
    noon = round(NOON.timestamp()) * SECOND
    given: dict[str, Any] = {
        "lake": 1.0,
        "lake_event": noon + 300_000,
        "late": False,
        "held": 1.0,
        "held_event": noon,
        "anothers": False,
        "earlier": False,
        "newest_held": noon + 9 * SECOND,
    } | changes
    return Facts(
        lake=pl.DataFrame({"x": pl.Series([given["lake"]], dtype=pl.Float64)}),
        lake_event=pl.Series([given["lake_event"]], dtype=pl.Int64),
        late=pl.Series([given["late"]]),
        held={"x": typed([given["held"]], "float64")},
        held_event=pl.Series([given["held_event"]], dtype=pl.Int64),
        anothers=pl.Series([given["anothers"]]),
        earlier=pl.DataFrame({"x": [given["earlier"]]}),
        newest_held=given["newest_held"],
    )


AT_NOON = round(NOON.timestamp()) * SECOND
OLDER, LATER, BEYOND = AT_NOON - 60 * SECOND, AT_NOON + 60 * SECOND, AT_NOON + 7200 * SECOND


@pytest.mark.parametrize(
    ("cause", "changes"),
    [
        (Cause.TTL, {}),
        (Cause.TTL, {"held_event": LATER}),
        (Cause.TTL, {"held_event": OLDER}),
        (Cause.TRANSFORM, {"held": 2.5}),
        (Cause.TYPE, {"lake": 1.2}),
        (Cause.TYPE, {"held": "1.0"}),
        (Cause.STALE, {"held": 2.0, "held_event": OLDER}),
        (Cause.STALE, {"held": 1.2, "lake": 1.0, "held_event": OLDER}),
        (Cause.LATE, {"held": 2.0, "held_event": OLDER, "late": True}),
        (Cause.LATE, {"held": 2.0, "held_event": LATER}),
        (Cause.LATE, {"held": 2.0, "earlier": True}),
        (Cause.JOIN, {"held": None, "held_event": None}),
        (Cause.JOIN, {"held": None, "held_event": None, "newest_held": None}),
        (Cause.STALE, {"held": None, "held_event": None, "newest_held": OLDER}),
        (Cause.LATE, {"held": None, "held_event": None, "late": True}),
        (Cause.JOIN, {"held": 2.0, "anothers": True}),
        (Cause.STALE, {"lake": None, "lake_event": None}),
        (Cause.LATE, {"lake": None, "lake_event": None, "held_event": BEYOND}),
    ],
)
def test_each_cause_has_its_name(cause: Cause, changes: dict[str, Any]) -> None:
    assert causes_of("x", facts(**changes), AT_NOON + 3600 * SECOND).to_list() == [cause]


def test_of_a_function_the_cause_is_its_own_or_a_type() -> None:
    expected = pl.Series([1.0, 2.7, 3.0])
    found = typed([9.0, 2, Failed()], "float64")
    assert on_demand_causes(expected, found).to_list() == [Cause.TRANSFORM, Cause.TYPE, Cause.TRANSFORM]


def test_a_value_that_ran_out_less_than_a_second_early_is_no_skew() -> None:
    """Online keeps whole seconds: a row of 12:00:00.3 with a TTL of a minute ends there at 12:01:00."""
    at = pl.Series([60_200_000, 60_200_000, 61_400_000]) + AT_NOON
    event = pl.Series([300_000, 100_000, 300_000]) + AT_NOON
    ours, theirs = pl.Series([1.0, 1.0, 1.0]), typed([None, None, None], "float64")
    assert allowed_by_the_second(at, event, 60.0, ours, theirs).to_list() == [True, False, False]
