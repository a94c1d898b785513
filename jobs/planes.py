"""How the last known flight of a plane from New York went, and when the plane can be back.

What the registry says of a plane (its age, its seats) needs no computing: the view `plane_facts` reads the
ingested dataset.
"""

from __future__ import annotations

import polars as pl

from jobs.delay_rates import MOST_MINUTES
from manta import FeatureTable


def legs_of(inputs: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """One row per plane and instant at which a departure or an arrival of it became known.

    ``plane_departure_delay`` and ``plane_arrival_delay``, minutes, are the last known ones, which may be of
    different flights. ``plane_back_at`` is the earliest instant at which the plane can be in New York
    again, going by the newest fact: the way back takes as long as the schedule gave it for the way out, and
    the turn no time. Planes without a tail number are left out.

    Now and then the data has a plane in two places. Of facts of one instant, that one counts which brings the
    plane back last.
    """
    flights = inputs["departures"].filter(pl.col("tailnum").is_not_null())
    way = pl.col("scheduled_arrival") - pl.col("scheduled_departure")
    left = flights.filter(~pl.col("cancelled")).select(
        "tailnum",
        event_time="departure_known_at",
        plane_departure_delay=pl.col("departure_delay").clip(upper_bound=MOST_MINUTES),
        plane_back_at=pl.col("departed_at") + way * 2,
    )
    landed = flights.filter(pl.col("arrived_at").is_not_null()).select(
        "tailnum",
        event_time="outcome_known_at",
        plane_arrival_delay=pl.col("arrival_delay").clip(upper_bound=MOST_MINUTES),
        plane_back_at=pl.col("arrived_at") + way,
    )
    delays = ["plane_departure_delay", "plane_arrival_delay"]
    return (
        pl.concat([left, landed], how="diagonal")
        .sort("tailnum", "event_time", "plane_back_at", *delays)
        .with_columns(pl.col(delays).forward_fill().over("tailnum").cast(pl.Float32))
        .group_by("tailnum", "event_time", maintain_order=True)
        .last()
    )


plane_legs = FeatureTable(
    dataset="plane_legs", inputs_from=("departures",), fn=legs_of, key=("tailnum",), time="event_time"
)
