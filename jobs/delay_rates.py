"""Trailing delay rates of carriers, origins, destinations and routes: how it has been going, and how it goes.

Two kinds of facts, each with the instant from which it is known:

*outcomes*: a flight arrived, so late; or it was cancelled or diverted.
*holds*: a quarter of an hour after its schedule, a flight either has left or is still held. This is known
of every flight, the cancelled ones too, at the same instant: rates of it are not skewed by who happened to
leave first.

A table has one row per key and instant at which a fact about the key became known. The row summarises the
windows that end at that instant, the instant included; windows are open at their start. A view over a table
must not outlive the table's shortest window (its TTL), or it would answer with windows that have since
emptied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from manta import FeatureTable

HELD_AFTER = pl.duration(minutes=15)
# One flight that is twenty hours late says little more than one that is three hours late.
MOST_MINUTES = 180

Inputs = dict[str, pl.DataFrame]


def trailing(
    facts: pl.DataFrame, keys: Sequence[str], measures: Mapping[str, Sequence[str]], prefix: str
) -> pl.DataFrame:
    """Means of measures over the windows that each names, at every instant a fact became known, per key.

    Args:
        facts: columns ``keys``, ``event_time`` and the measures: whole numbers or booleans, null where a fact
            does not tell. Rows without a key are left out.
        measures: measure → windows, as Polars writes durations (``3h``, ``7d``).

    Returns:
        The keys, ``event_time`` and, as float32, ``<prefix>_<measure>_<window>``: null where a window tells
        nothing.
    """
    # Running totals of whole numbers: a window's sum is the difference of two, and exact, so that rounding
    # cannot carry anything into a window from outside it.
    told = [
        expr for name in measures for expr in (pl.col(name).sum(), pl.col(name).count().alias(f"{name} told"))
    ]
    totals = (
        facts.drop_nulls(list(keys))
        .with_columns(pl.col(list(measures)).cast(pl.Int64))
        .group_by(*keys, "event_time")
        .agg(told)
        .sort("event_time")
        .with_columns(pl.exclude(*keys, "event_time").cum_sum().over(keys))
    )
    result = totals.select(*keys, "event_time")
    for window in dict.fromkeys(window for windows in measures.values() for window in windows):
        inside = totals.with_columns(start=pl.col("event_time").dt.offset_by(f"-{window}")).join_asof(
            totals.rename({"event_time": "before"}),
            left_on="start",
            right_on="before",
            by=list(keys),
            suffix=" before",
            check_sortedness=False,  # they are sorted, which Polars cannot see group by group
        )
        result = result.with_columns(
            (_gained(inside, name) / _gained(inside, f"{name} told"))
            .fill_nan(None)
            .cast(pl.Float32)
            .alias(f"{prefix}_{name}_{window}")
            for name, windows in measures.items()
            if window in windows
        )
    return result.sort(*keys, "event_time")


def _gained(inside: pl.DataFrame, total: str) -> pl.Series:
    return inside[total] - inside[f"{total} before"].fill_null(0)


def outcomes(departures: pl.DataFrame) -> pl.DataFrame:
    """One fact per flight: ``late`` and ``arrival_delay``, null if it never arrived, and ``cancelled``."""
    return departures.select(
        "carrier",
        "origin",
        "dest",
        "late",
        "cancelled",
        pl.col("arrival_delay").clip(upper_bound=MOST_MINUTES),
        event_time="outcome_known_at",
    )


def holds(departures: pl.DataFrame) -> pl.DataFrame:
    """One fact per flight: whether it was ``held`` for more than a quarter of an hour."""
    limit = pl.col("scheduled_departure") + HELD_AFTER
    left = (pl.col("departed_at") <= limit).fill_null(False)
    return departures.select("carrier", "origin", "dest", held=~left, event_time=limit)


def of_carrier(inputs: Inputs) -> pl.DataFrame:
    return _going(inputs["departures"], "carrier").with_columns(airline="carrier")


def of_origin(inputs: Inputs) -> pl.DataFrame:
    return _going(inputs["departures"], "origin").with_columns(from_airport="origin")


def of_dest(inputs: Inputs) -> pl.DataFrame:
    return _going(inputs["departures"], "dest").with_columns(to_airport="dest")


def _going(departures: pl.DataFrame, key: str) -> pl.DataFrame:
    facts = pl.concat([outcomes(departures), holds(departures)], how="diagonal")
    windows = ["3h", "24h", "28d"]
    measures = {"held": ["3h"], "late": windows, "arrival_delay": windows, "cancelled": ["7d"]}
    return trailing(facts, [key], measures, prefix=key)


def of_route(inputs: Inputs) -> pl.DataFrame:
    windows = ["7d", "28d"]
    measures = {"late": windows, "arrival_delay": windows}
    return trailing(outcomes(inputs["departures"]), ["origin", "dest"], measures, prefix="route")


carrier_delays = FeatureTable(
    dataset="carrier_delays", inputs_from=("departures",), fn=of_carrier, key=("carrier",), time="event_time"
)
origin_delays = FeatureTable(
    dataset="origin_delays", inputs_from=("departures",), fn=of_origin, key=("origin",), time="event_time"
)
dest_delays = FeatureTable(
    dataset="dest_delays", inputs_from=("departures",), fn=of_dest, key=("dest",), time="event_time"
)
route_delays = FeatureTable(
    dataset="route_delays",
    inputs_from=("departures",),
    fn=of_route,
    key=("origin", "dest"),
    time="event_time",
)
