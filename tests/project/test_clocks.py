"""Local times to instants, held to the data's own evidence and to clocks read minute by minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import polars as pl
import pytest

from jobs import clocks
from jobs.departures import zones_of

MINUTE = timedelta(minutes=1)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def instant_of(wall: str, zone: str) -> datetime:
    frame = pl.DataFrame({"wall": [datetime.fromisoformat(wall)]})
    return frame.select(clocks.to_utc(pl.col("wall"), zone)).item()


def next_showing(hhmm: int, after: datetime, zone: str) -> datetime:
    frame = pl.DataFrame({"hhmm": [hhmm], "after": [after], "zone": [zone]})
    return frame.select(
        clocks.next_showing(pl.col("hhmm"), pl.col("after"), pl.col("zone"), [zone, "Asia/Tokyo"])
    ).item()


def read_minute_by_minute(hhmm: int, after: datetime, zone: str) -> datetime:
    """Look at the clock every minute until it shows the time."""
    shown = (hhmm // 100 % 24, hhmm % 100)
    now = after + MINUTE
    while (now.astimezone(ZoneInfo(zone)).hour, now.astimezone(ZoneInfo(zone)).minute) != shown:
        now += MINUTE
    return now


@pytest.mark.parametrize(
    ("wall", "zone", "expected"),
    [
        ("2013-01-15T05:17", "America/New_York", "2013-01-15T10:17"),
        ("2013-07-15T05:17", "America/New_York", "2013-07-15T09:17"),
        ("2013-11-03T00:59", "America/New_York", "2013-11-03T04:59"),
        ("2013-11-03T01:30", "America/New_York", "2013-11-03T05:30"),  # shown twice: the first
        ("2013-11-03T02:00", "America/New_York", "2013-11-03T07:00"),
        ("2013-03-10T01:59", "America/New_York", "2013-03-10T06:59"),
        ("2013-03-10T02:30", "America/New_York", "2013-03-10T07:30"),  # never shown: 03:30 of the new time
        ("2013-03-10T03:00", "America/New_York", "2013-03-10T07:00"),
        ("2013-07-15T05:17", "America/Phoenix", "2013-07-15T12:17"),  # no summer time
        ("2013-07-15T05:17", "Pacific/Honolulu", "2013-07-15T15:17"),
        ("2013-01-15T05:17", "America/Puerto_Rico", "2013-01-15T09:17"),
    ],
)
def test_wall_clock_to_instant(wall: str, zone: str, expected: str) -> None:
    assert instant_of(wall, zone) == utc(expected)


def test_every_scheduled_departure_is_in_the_hour_that_the_source_says(
    sources: dict[str, pl.DataFrame], departures: pl.DataFrame
) -> None:
    # The source has its own idea of the hour, in UTC, which the project does not use.
    hours = sources["flights"].select(
        pl.col("time_hour").str.to_datetime("%Y-%m-%dT%H:%M:%SZ", time_zone="UTC"),
        pl.col("minute").cast(pl.Int64),
    )
    expected = hours.select(pl.col("time_hour") + pl.duration(minutes="minute")).to_series()
    assert (departures["scheduled_departure"] == expected).all()


@pytest.mark.parametrize(
    ("hhmm", "after", "zone", "expected"),
    [
        (2400, "2013-05-01T02:00", "America/New_York", "2013-05-01T04:00"),  # the midnight that ends the day
        (1, "2013-05-01T02:00", "America/New_York", "2013-05-01T04:01"),
        (2200, "2013-05-01T02:00", "America/New_York", "2013-05-02T02:00"),  # it shows that now: a day later
    ],
)
def test_next_showing(hhmm: int, after: str, zone: str, expected: str) -> None:
    assert next_showing(hhmm, utc(after), zone) == utc(expected)


def test_scheduled_arrivals_as_read_minute_by_minute(
    inputs: dict[str, pl.DataFrame], departures: pl.DataFrame
) -> None:
    zones = dict(zones_of(inputs["airports"]).iter_rows())
    flights = departures.with_columns(inputs["flights"]["sched_arr_time"])
    night = pl.lit(False)
    for changed in (utc("2013-03-10T07:00"), utc("2013-11-03T06:00")):
        night |= (pl.col("scheduled_departure") <= changed) & (pl.col("scheduled_arrival") >= changed)
    some = pl.concat(
        [flights.filter(night), flights.sample(200, seed=1), flights.filter(dest="PSE").head(20)]
    )
    assert some["dest"].is_in(["BQN", "PSE", "SJU"]).sum() > 20
    for row in some.iter_rows(named=True):
        expected = read_minute_by_minute(
            row["sched_arr_time"], row["scheduled_departure"], zones[row["dest"]]
        )
        assert row["scheduled_arrival"] == expected, row


def test_actual_times_agree_with_the_clocks_at_both_ends(
    inputs: dict[str, pl.DataFrame], departures: pl.DataFrame
) -> None:
    flights = departures.with_columns(inputs["flights"].select("dep_time", "arr_time", "air_time"))
    flights = flights.join(zones_of(inputs["airports"]), on="dest", maintain_order="left")

    def wrong(instant: str, recorded: str, zone: str) -> pl.DataFrame:
        wall = clocks.to_wall(pl.col(instant), zone)
        shown = wall.dt.hour().cast(pl.Int64) * 100 + wall.dt.minute()
        return flights.filter(pl.col(instant).is_not_null(), shown != pl.col(recorded) % 2400)

    assert wrong("departed_at", "dep_time", clocks.NEW_YORK).is_empty()
    zones = flights["zone"].unique()
    off = pl.concat([wrong("arrived_at", "arr_time", zone).filter(zone=zone) for zone in zones])
    # One clock was not put forward: 02:03 on the night of 10 March does not exist.
    assert off.select("carrier", "dest", "arr_time", "arrived_at").rows() == [
        ("B6", "PBI", 203, utc("2013-03-10T07:03"))
    ]
    # Between departure and arrival lie the time in the air and the time on the ground, which nobody spends
    # more than four hours of: a wrong zone, day or clock change would show.
    minutes = (flights["arrived_at"] - flights["departed_at"]).dt.total_minutes() - flights["air_time"]
    assert minutes.drop_nulls().is_between(1, 240).all()
    assert minutes.count() == flights["arrived_at"].count()
