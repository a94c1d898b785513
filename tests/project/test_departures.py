"""What became of each flight, and from when on that is known."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from jobs.departures import departures_of

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


def test_every_flight_is_there_once(departures: pl.DataFrame, inputs: dict[str, pl.DataFrame]) -> None:
    assert departures.height == inputs["flights"].height == 336_776
    key = ["carrier", "flight", "origin", "scheduled_departure"]
    assert not departures.select(key).is_duplicated().any()
    assert departures.select(key).null_count().sum_horizontal().item() == 0


def test_cancelled_diverted_and_late(departures: pl.DataFrame, sources: dict[str, pl.DataFrame]) -> None:
    # Counted in the source's own texts.
    raw = sources["flights"]
    never_left = raw["dep_time"].is_null()
    never_arrived = raw["arr_delay"].is_null()
    assert departures["cancelled"].sum() == never_left.sum() == 8_255
    assert departures["diverted"].sum() == (never_arrived & ~never_left).sum() == 1_175
    assert (departures["late"].is_null() == never_arrived).all()
    minutes = raw["arr_delay"].cast(pl.Int64)
    assert (departures["late"] == (minutes > 15)).drop_nulls().all()
    # Just late, and not quite.
    assert departures.filter(arrival_delay=15)["late"].any() is False
    assert departures.filter(arrival_delay=16)["late"].all() is True


def test_who_lands_after_midnight_lands_on_the_next_day(
    inputs: dict[str, pl.DataFrame], departures: pl.DataFrame
) -> None:
    zones = inputs["airports"].select(dest="faa", zone="tzone")
    flights = departures.with_columns(inputs["flights"].select("dep_time", "arr_time")).join(zones, on="dest")
    # Where no zone lies between, the clock itself tells: it shows less on arrival than on departure.
    near = flights.filter(pl.col("zone") == "America/New_York", pl.col("arrived_at").is_not_null())

    def day(instant: str) -> pl.Expr:
        return pl.col(instant).dt.convert_time_zone("America/New_York").dt.date()

    later = (day("arrived_at") - day("departed_at")).dt.total_days()
    after_midnight = pl.col("arr_time") % 2400 < pl.col("dep_time") % 2400
    told = near.select(later=later, after_midnight=after_midnight)
    assert (told["later"] == told["after_midnight"].cast(pl.Int64)).all()
    assert told["later"].sum() > 2_000


def test_known_when_it_is_known(departures: pl.DataFrame) -> None:
    some = pl.concat(
        [
            departures.filter("cancelled").sample(100, seed=1),
            departures.filter("diverted").sample(100, seed=1),
            departures.sample(1000, seed=1),
        ]
    )
    for row in some.iter_rows(named=True):
        asked, left, arrived = row["scheduled_departure"], row["departed_at"], row["arrived_at"]
        # Whoever asks about a flight, at its scheduled departure, is not told of the flight itself.
        assert row["departure_known_at"] > asked
        assert row["outcome_known_at"] > asked
        if left is None:
            assert row["departure_known_at"] == row["outcome_known_at"] == asked + DAY
        else:
            assert row["departure_known_at"] == max(asked, left) + MINUTE
        if arrived is not None:
            assert row["outcome_known_at"] == arrived
        elif left is not None:
            assert row["outcome_known_at"] == row["scheduled_arrival"] + DAY


def test_no_delay_reaches_the_day_after_which_a_flight_is_given_up(departures: pl.DataFrame) -> None:
    longest = departures.select("departure_delay", "arrival_delay").max().row(0)
    assert max(longest) == 1301 < 24 * 60


def test_a_destination_without_a_zone_is_named(inputs: dict[str, pl.DataFrame]) -> None:
    without = inputs | {"airports": inputs["airports"].filter(pl.col("faa") != "LAX")}
    with pytest.raises(ValueError, match=r"no time zone is known for LAX.*airports"):
        departures_of(without)
