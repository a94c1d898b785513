"""Hourly weather at the origin, from the instant it was known.

An hour's row is stamped with the hour's beginning, but its observation was taken during the hour, as a rule
nine minutes before its end, and its rain is what fell until then. So a row stamped 14:00 is known at 15:00.

Rows are told apart by ``time_hour`` alone: on 3 November the local hour 01 comes twice.
"""

from __future__ import annotations

import math

import polars as pl

from manta import FeatureTable

KNOWN_AFTER = pl.duration(hours=1)
TREND = "3h"


def weather_of(inputs: dict[str, pl.DataFrame]) -> pl.DataFrame:
    """Columns: ``origin``, ``event_time`` and the weather as float32, null where it was not observed.

    Wind is split into what blows from the east and from the north (miles per hour), for 359° and 1° are near.
    ``rain_3h`` (inches) and ``pressure_change_3h`` (millibars) look back over the hours observed.
    """
    angle = pl.col("wind_dir") * (math.pi / 180)
    observed = inputs["weather"].select(
        "origin",
        temperature="temp",
        dew_point="dewp",
        humidity="humid",
        wind_speed="wind_speed",
        # Calm air has no direction.
        wind_east=pl.when(pl.col("wind_speed") == 0).then(0.0).otherwise(pl.col("wind_speed") * angle.sin()),
        wind_north=pl.when(pl.col("wind_speed") == 0).then(0.0).otherwise(pl.col("wind_speed") * angle.cos()),
        gust="wind_gust",
        rain="precip",
        pressure="pressure",
        visibility="visib",
        event_time=pl.col("time_hour") + KNOWN_AFTER,
    )
    trends = (
        observed.sort("event_time")
        .rolling("event_time", period=TREND, closed="right", group_by="origin")
        .agg(
            rain_3h=pl.col("rain").sum(),
            pressure_change_3h=pl.col("pressure").last() - pl.col("pressure").first(),
        )
    )
    table = observed.join(trends, on=["origin", "event_time"]).sort("origin", "event_time")
    return table.with_columns(pl.col(pl.Float64).cast(pl.Float32))


origin_weather = FeatureTable(
    dataset="origin_weather",
    inputs_from=("weather",),
    fn=weather_of,
    key=("origin",),
    time="event_time",
)
