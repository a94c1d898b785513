"""The flights as examples: one row per scheduled departure, what became of it, and when that was known.

Everything that looks back reads this table, so the rules of *when something is known* stand here:

- a flight's schedule is known long before;
- that it has left, and how late, is known one minute after, and not before its scheduled time has passed:
  the model is asked at that time, and a flight that leaves early must not be told to itself;
- how late it arrived is known when it arrives;
- a cancellation has no time stamp. The longest delay in the data is 1301 minutes, so until a day after its
  schedule a flight that has not left may still leave: it is known as cancelled only then. Likewise one that
  left and has not arrived (diverted) is known as such a day after its scheduled arrival.
"""

from __future__ import annotations

import polars as pl

from jobs import clocks
from manta import FeatureTable

LATE_MINUTES = 15
REPORTED_AFTER = pl.duration(minutes=1)
GIVEN_UP_AFTER = pl.duration(hours=24)


def zones_of(airports: pl.DataFrame) -> pl.DataFrame:
    """Airport → time zone: columns ``dest`` and ``zone``."""
    known = airports.select(dest="faa", zone="tzone").drop_nulls()
    added = pl.DataFrame(
        list(clocks.ZONES_OF_MISSING_AIRPORTS.items()), schema=["dest", "zone"], orient="row"
    )
    return pl.concat([known, added.join(known, on="dest", how="anti")])


def departures_of(inputs: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """One row per flight of ``flights``.

    ``late`` is null where the flight never arrived: cancelled or diverted. ``departure_delay`` and
    ``arrival_delay`` are minutes.

    Raises:
        ValueError: a destination's time zone is not known.
    """
    flights = inputs["flights"].join(
        zones_of(inputs["airports"]), on="dest", how="left", maintain_order="left"
    )
    lost = flights.filter(pl.col("zone").is_null())["dest"].unique().sort()
    if len(lost):
        raise ValueError(
            f"no time zone is known for {', '.join(lost)}: complete the airports table, "
            "or ZONES_OF_MISSING_AIRPORTS in jobs/clocks.py"
        )
    date = pl.date("year", "month", "day")
    scheduled = flights.with_columns(
        scheduled_departure=clocks.departure_instant(date, pl.col("sched_dep_time"))
    ).with_columns(
        scheduled_arrival=clocks.next_showing(
            pl.col("sched_arr_time"),
            pl.col("scheduled_departure"),
            pl.col("zone"),
            flights["zone"].unique().sort(),
        )
    )
    # Delays, not the recorded local times, give the actual instants: they agree in every row, and a delay
    # says by itself whether an arrival belongs to the next day or to the one after.
    happened = scheduled.select(
        "carrier",
        "flight",
        "origin",
        "dest",
        "tailnum",
        "scheduled_departure",
        "scheduled_arrival",
        departed_at=pl.col("scheduled_departure") + pl.duration(minutes="dep_delay"),
        arrived_at=pl.col("scheduled_arrival") + pl.duration(minutes="arr_delay"),
        departure_delay="dep_delay",
        arrival_delay="arr_delay",
    )
    cancelled = pl.col("departed_at").is_null()
    arrived = pl.col("arrived_at").is_not_null()
    return happened.with_columns(
        late=pl.col("arrival_delay") > LATE_MINUTES,
        cancelled=cancelled,
        diverted=~cancelled & ~arrived,
        departure_known_at=pl.when(cancelled)
        .then(pl.col("scheduled_departure") + GIVEN_UP_AFTER)
        .otherwise(pl.max_horizontal("scheduled_departure", "departed_at") + REPORTED_AFTER),
        outcome_known_at=pl.when(arrived)
        .then("arrived_at")
        .when(cancelled)
        .then(pl.col("scheduled_departure") + GIVEN_UP_AFTER)
        .otherwise(pl.col("scheduled_arrival") + GIVEN_UP_AFTER),
    )


departures = FeatureTable(
    dataset="departures",
    inputs_from=("flights", "airports"),
    fn=departures_of,
    key=("carrier", "flight", "origin", "scheduled_departure"),
)
