"""Slices of the held-out rows: by a feature, a column of the examples, or their time."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import numpy as np
import polars as pl
import pytest

from manta.errors import TrainingInvalid
from manta.training.slices import Held, slices

TIMES = [datetime(2013, 12, 30, 23, tzinfo=UTC) + timedelta(hours=12 * at) for at in range(6)]


def held(**columns: list[object]) -> Held:
    features = pl.DataFrame(
        {"carrier": ["UA", "AA", "UA", None, "", "HA"], "wind": [1.0] * 6, "hour": [5, 6, 5, 6, 5, 7]}
    )
    given = {"flight": [1, 1, 2, 2, 3, None], "wind": [1] * 6, "day_of": [date(2013, 1, 2)] * 6} | columns
    examples = pl.DataFrame({"at": TIMES} | given)
    return Held(features, examples, "at", np.zeros(6, dtype=np.float32))


def test_of_a_feature_the_largest_first_and_what_is_missing_together() -> None:
    found = slices(held(), "carrier")
    assert dict(zip(found.names, found.rows.tolist(), strict=True)) == {
        "UA": 2,
        "missing": 2,
        "HA": 1,
        "AA": 1,
    }
    assert found.rows.tolist() == sorted(found.rows.tolist(), reverse=True)
    assert [found.names[at] for at in found.at] == ["UA", "AA", "UA", "missing", "missing", "HA"]


def test_of_whole_numbers_and_dates_and_columns_of_the_examples() -> None:
    assert set(slices(held(), "hour").names) == {"5", "6", "7"}
    assert set(slices(held(), "flight").names) == {"1", "2", "3", "missing"}
    assert slices(held(), "day_of").names == ["2013-01-02"]


def test_of_times_in_order_in_utc() -> None:
    assert slices(held(), "month").names == ["2013-12", "2014-01"]
    assert slices(held(), "month").rows.tolist() == [3, 3]
    assert slices(held(), "week").names == ["2014-W01"]
    assert slices(held(), "day").names == ["2013-12-30", "2013-12-31", "2014-01-01", "2014-01-02"]
    east = [time.astimezone(timezone(timedelta(hours=5))) for time in TIMES]
    rows = held()
    shifted = rows.examples.with_columns(at=pl.Series(east).dt.convert_time_zone("Asia/Karachi"))
    assert slices(Held(rows.features, shifted, "at", rows.labels), "day").names == slices(rows, "day").names
    naive = rows.examples.with_columns(pl.col("at").dt.replace_time_zone(None))
    assert slices(Held(rows.features, naive, "at", rows.labels), "day").names == slices(rows, "day").names


def test_a_column_called_month_comes_before_the_calendar() -> None:
    assert set(slices(held(month=[1, 1, 1, 2, 2, 2]), "month").names) == {"1", "2"}


@pytest.mark.parametrize(
    ("by", "match"),
    [("wind", "Float64, which makes no slices"), ("at", "Datetime"), ("cloud", "neither a feature nor")],
)
def test_what_makes_no_slices_is_named(by: str, match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        slices(held(), by)
    assert "month" in error.value.hint


def test_more_slices_than_anybody_reads_are_refused() -> None:
    count = 1_001
    rows = pl.DataFrame({"tail": [str(at) for at in range(count)], "at": [TIMES[0]] * count})
    many = Held(rows.select("tail"), rows.select("at"), "at", np.zeros(count, dtype=np.float32))
    with pytest.raises(TrainingInvalid, match="1,001 slices"):
        slices(many, "tail")
