"""No feature may use what is known only later: the future is rewritten, and no row known before moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from manta import FeatureTable

Frames = dict[str, pl.DataFrame]
DAY = timedelta(days=1)
MOST_MINUTES = 1439  # a flight that has not left a day after its schedule is cancelled

MOMENTS = [
    datetime(2013, 2, 8, 23, 17, tzinfo=UTC),  # a blizzard begins: hundreds are cancelled
    datetime(2013, 3, 10, 7, 0, tzinfo=UTC),  # the clocks go forward
    datetime(2013, 7, 10, 21, 45, tzinfo=UTC),  # thunderstorms
    datetime(2013, 11, 3, 5, 30, tzinfo=UTC),  # the hour that comes twice
    datetime(2013, 12, 17, 18, 0, tzinfo=UTC),  # on the hour, in snow
]


def rewrite_flights(
    flights: pl.DataFrame, departures: pl.DataFrame, now: datetime, seed: int
) -> pl.DataFrame:
    """The flights with another fate from ``now`` on, which nobody could tell from the real one by then.

    A flight that has not left may still leave, or not; one that has left may arrive at any time, or nowhere:
    for a day, that is open.
    """
    random = np.random.default_rng(seed)
    size = flights.height
    schedule = departures.select("scheduled_departure", "scheduled_arrival", "departed_at", "arrived_at")
    drawn = flights.with_columns(schedule).with_columns(
        leaving=pl.Series(random.integers(-30, MOST_MINUTES, size)),
        arriving=pl.Series(random.integers(-60, MOST_MINUTES, size)),
        never=pl.Series(random.random(size) < 0.2),
        other_plane=pl.Series(random.permutation(flights["tailnum"].to_numpy())),
    )
    asked, due = pl.col("scheduled_departure"), pl.col("scheduled_arrival")
    left, arrived = pl.col("departed_at"), pl.col("arrived_at")
    waits = (left > now) | (left.is_null() & (asked + DAY > now))
    flies = (left <= now) & ((arrived > now) | (arrived.is_null() & (due + DAY > now)))
    happens = ~pl.col("never")
    # Not before now: minutes since the schedule, rounded up.
    soonest = (pl.lit(now) - asked).dt.total_seconds() // 60 + 1
    first = (pl.lit(now) - due).dt.total_seconds() // 60 + 1
    departure = {
        "dep_delay": pl.when(happens).then(pl.max_horizontal("leaving", soonest)),
        "dep_time": pl.when(happens).then(1200),
        "tailnum": pl.col("other_plane"),
    }
    arrival = {
        "arr_delay": pl.when(happens).then(pl.max_horizontal("arriving", first)),
        "arr_time": pl.when(happens).then(1200),
        "air_time": pl.when(happens).then(60),
    }
    return drawn.with_columns(
        *(pl.when(waits).then(value).otherwise(name).alias(name) for name, value in departure.items()),
        *(pl.when(waits | flies).then(value).otherwise(name).alias(name) for name, value in arrival.items()),
    ).select(flights.columns)


def rewrite_weather(weather: pl.DataFrame, now: datetime, seed: int) -> pl.DataFrame:
    """Other weather in every hour that is not over at ``now``: an hour's row is observed towards its end."""
    random = np.random.default_rng(seed)
    open_still = pl.col("time_hour") + timedelta(hours=1) > now
    values = [name for name, kind in weather.schema.items() if kind == pl.Float64]
    return weather.with_columns(
        pl.when(open_still).then(pl.Series(random.uniform(0, 50, weather.height))).otherwise(name).alias(name)
        for name in values
    )


def parted(table: FeatureTable, rows: pl.DataFrame, now: datetime) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows known by ``now`` and the later ones, in an order of their own."""
    rows = rows.sort(*table.key, table.time)
    return rows.filter(pl.col(table.time) <= now), rows.filter(pl.col(table.time) > now)


@pytest.mark.parametrize("now", MOMENTS, ids=lambda now: f"{now:%m-%d}")
def test_no_feature_moves_when_the_future_does(
    now: datetime,
    days: Callable[[str, str], Frames],
    compute: Callable[[Frames], Frames],
    feature_tables: list[FeatureTable],
) -> None:
    real = days(f"{now - 31 * DAY:%Y-%m-%d}", f"{now + 3 * DAY:%Y-%m-%d}")
    tables = compute(real)
    rewritten = real | {
        "flights": rewrite_flights(real["flights"], tables["departures"], now, seed=now.day),
        "weather": rewrite_weather(real["weather"], now, seed=now.day),
    }
    others = compute(rewritten)
    timed = [table for table in feature_tables if table.time]
    assert len(timed) >= 6
    for table in timed:
        known, open_still = parted(table, tables[table.dataset], now)
        known_too, otherwise = parted(table, others[table.dataset], now)
        assert known.height > 100, table.name
        assert known.equals(known_too), f"{table.name} knows the future"
        assert not open_still.equals(otherwise), f"the future of {table.name} was not rewritten"


@pytest.mark.parametrize("late", [False, True], ids=["early", "late"])
def test_a_flight_is_not_told_of_itself(
    late: bool,
    days: Callable[[str, str], Frames],
    compute: Callable[[Frames], Frames],
    feature_tables: list[FeatureTable],
) -> None:
    # It may have left early, which is known by then; still no feature may say so: it would all but tell the
    # label.
    real = days("2013-06-11", "2013-06-14")
    tables = compute(real)
    flights = (
        tables["departures"]
        .with_row_index()
        .filter(
            pl.col("scheduled_departure").dt.day() == 13,
            pl.col("departure_delay") > 30 if late else pl.col("departure_delay") < -5,
        )
    )
    for row in flights.sample(5, seed=3).iter_rows(named=True):
        here = pl.int_range(pl.len()) == row["index"]
        outcomes = {"dep_delay": -20 if late else 90, "arr_delay": -40 if late else 200}
        changed = real["flights"].with_columns(
            pl.when(here).then(value).otherwise(name).alias(name) for name, value in outcomes.items()
        )
        others = compute(real | {"flights": changed})
        for table in feature_tables:
            if table.time:
                known, _ = parted(table, tables[table.dataset], row["scheduled_departure"])
                known_too, _ = parted(table, others[table.dataset], row["scheduled_departure"])
                assert known.equals(known_too), f"{table.name} tells of {row}"
