"""The values that a request tells by itself, in whatever form the request writes its time."""

from __future__ import annotations

import math
import subprocess
import sys
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest

from features.request_time import request_time

NOON = datetime(2013, 11, 5, 17, 0, tzinfo=UTC)  # 12:00 on a Tuesday in New York


def asked(*times: object, back: object = None) -> dict[str, list]:
    return request_time({"scheduled_departure": list(times), "plane_back_at": [back] * len(times)})


@pytest.mark.parametrize(
    "time",
    [
        NOON,
        NOON.replace(tzinfo=None),
        NOON.astimezone(ZoneInfo("Asia/Tokyo")),
        pd.Timestamp(NOON),
        "2013-11-05T17:00:00Z",
        "2013-11-05T12:00:00-05:00",
        "2013-11-05 17:00",
        NOON.timestamp(),
        int(NOON.timestamp()),
    ],
    ids=repr,
)
def test_every_way_to_write_an_instant(time: object) -> None:
    values = asked(time)
    assert values["departure_hour"] == ["12"]
    assert values["departure_weekday"] == ["Tuesday"]
    assert values["day_sine"] == [pytest.approx(0, abs=1e-12)]
    assert values["day_cosine"] == [-1]


@pytest.mark.parametrize(
    "time", [None, "", "noon", float("nan"), float("inf"), True, pd.NaT, [], 1e300, 3e11, "0001-01-01"]
)
def test_what_is_no_instant_gives_nothing(time: object) -> None:
    assert asked(time, back=NOON) == {name: [None] for name in asked(NOON)}


def test_rows_are_kept_apart_and_none_is_fine() -> None:
    assert asked() == {name: [] for name in asked(NOON)}
    values = asked(NOON, None, "2013-11-09T04:59:00Z")
    assert values["departure_weekday"] == ["Tuesday", None, "Friday"]
    assert values["departure_hour"] == ["12", None, "23"]


def test_the_clock_is_new_yorks_on_both_sides_of_the_change() -> None:
    instants = [
        "2013-11-03T05:30:00Z",
        "2013-11-03T06:30:00Z",
        "2013-11-03T07:30:00Z",
        "2013-03-10T07:00:00Z",
    ]
    assert asked(*instants)["departure_hour"] == ["01", "01", "02", "03"]


def test_the_day_is_a_circle() -> None:
    values = asked("2013-11-05T04:59:00Z", "2013-11-05T05:01:00Z")
    before, after = zip(values["day_sine"], values["day_cosine"], strict=True)
    assert math.dist(before, after) == pytest.approx(2 * math.pi * 2 / 1440, rel=1e-3)
    assert np.hypot(values["day_sine"], values["day_cosine"]) == pytest.approx([1, 1])


@pytest.mark.parametrize(
    ("back", "spare"),
    [
        ("2013-11-05T16:15:00Z", 45),
        ("2013-11-05T17:30:00Z", -30),
        (datetime(2013, 11, 1, tzinfo=UTC), 120),
        (pd.Timestamp("2013-11-09", tz="UTC"), -120),
        (None, None),
        (pd.NaT, None),
    ],
)
def test_minutes_to_spare_for_the_plane(back: object, spare: float | None) -> None:
    assert asked(NOON, back=back)["plane_spare"] == [spare]


def test_it_imports_nothing_heavy() -> None:
    code = (
        "import features.request_time, sys; print({'feast', 'pandas', 'polars', 'manta'} & set(sys.modules))"
    )
    from features import request_time as module

    root = module.__file__.rsplit("/features/", 1)[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
