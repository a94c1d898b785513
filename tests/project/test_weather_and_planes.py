"""Weather and planes, recomputed row by row in plain Python."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from jobs.planes import legs_of
from jobs.weather import weather_of

Frames = dict[str, pl.DataFrame]
HOUR = timedelta(hours=1)


def number(text: str | None) -> float | None:
    return None if text is None else float(text)


def near(value: float | None, expected: float | None) -> bool:
    return value is expected if expected is None else value == pytest.approx(expected, abs=1e-3)


@pytest.fixture(scope="module")
def weather(inputs: Frames) -> pl.DataFrame:
    return weather_of(inputs)


def test_weather_is_what_was_observed_an_hour_ago(sources: Frames, weather: pl.DataFrame) -> None:
    observed = {
        (row["origin"], datetime.fromisoformat(row["time_hour"])): row
        for row in sources["weather"].iter_rows(named=True)
    }
    assert weather.height == len(observed) - 1  # without the wind of 1048 miles per hour
    for row in weather.sample(500, seed=1).iter_rows(named=True):
        seen = observed[row["origin"], row["event_time"] - HOUR]
        for name, source in [("temperature", "temp"), ("pressure", "pressure"), ("gust", "wind_gust")]:
            assert near(row[name], number(seen[source]))
        speed, degrees = number(seen["wind_speed"]), number(seen["wind_dir"])
        if speed and degrees is not None:
            assert row["wind_east"] == pytest.approx(speed * math.sin(math.radians(degrees)), abs=1e-4)
            assert row["wind_north"] == pytest.approx(speed * math.cos(math.radians(degrees)), abs=1e-4)
        elif speed == 0:
            assert row["wind_east"] == row["wind_north"] == 0
        hours = [observed.get((row["origin"], row["event_time"] - k * HOUR)) for k in (3, 2, 1)]
        hours = [hour for hour in hours if hour]
        assert row["rain_3h"] == pytest.approx(sum(float(hour["precip"]) for hour in hours), abs=1e-6)
        first, last = number(hours[0]["pressure"]), number(hours[-1]["pressure"])
        change = None if first is None or last is None else last - first
        assert near(row["pressure_change_3h"], change)


def test_the_hour_that_comes_twice_is_two_hours(sources: Frames, weather: pl.DataFrame) -> None:
    local = sources["weather"].filter(origin="EWR", month="11", day="3", hour="1")
    assert local["temp"].to_list() == ["51.98", "50"]
    known = [datetime(2013, 11, 3, hour, tzinfo=UTC) for hour in (6, 7)]
    rows = weather.filter(pl.col("event_time").is_in(known), origin="EWR")
    assert rows["temperature"].to_list() == [pytest.approx(51.98), 50.0]
    # And two hours pass on the clock from 01:00 to 03:00 on 10 March, but one in the data.
    assert weather.filter(pl.col("event_time") == datetime(2013, 3, 10, 8, tzinfo=UTC)).height == 3


def test_a_planes_news_are_its_last_known_ones(departures: pl.DataFrame) -> None:
    rows = legs_of({"departures": departures})
    assert not rows.select("tailnum", "event_time").is_duplicated().any()
    assert rows.select("tailnum", "event_time", "plane_back_at").null_count().sum_horizontal().item() == 0
    some = departures["tailnum"].drop_nulls().unique().sort().sample(12, seed=2).to_list()
    # On 17 October, the data has N713TW leave for San Francisco and, at the same minute, for Los Angeles.
    for tailnum in [*some, "N713TW"]:
        news = []
        for flight in departures.filter(tailnum=tailnum).iter_rows(named=True):
            way = flight["scheduled_arrival"] - flight["scheduled_departure"]
            left, landed = flight["departed_at"], flight["arrived_at"]
            if left:
                known = max(left, flight["scheduled_departure"]) + timedelta(minutes=1)
                news.append((known, left + 2 * way, {"departure": min(flight["departure_delay"], 180)}))
            if landed:
                news.append((landed, landed + way, {"arrival": min(flight["arrival_delay"], 180)}))
        news.sort(key=lambda each: each[:2])
        expected, last = {}, {}
        for known, back, what in news:
            last |= what
            expected[known] = (last.get("departure"), last.get("arrival"), back)
        columns = ["plane_departure_delay", "plane_arrival_delay", "plane_back_at"]
        got = {
            row[0]: row[1:] for row in rows.filter(tailnum=tailnum).select("event_time", *columns).iter_rows()
        }
        assert got == expected
