"""The feature views: which columns of which dataset are about what, and for how long a value holds.

A view's TTL is never longer than the shortest window that its features look back over, lest it answers with
a window that has since emptied. So the tables with windows of three hours and of four weeks have two views
each.
"""

from __future__ import annotations

from datetime import timedelta

from feast import Entity, FeatureView, Field
from feast.types import Float32, Int64, String, UnixTimestamp

from features.entities import carrier, dest, origin, plane
from manta.features import DatasetSource


def _numbers(*names: str) -> list[Field]:
    return [Field(name=name, dtype=Float32) for name in names]


def _keys(*entities: Entity) -> list[Field]:
    return [Field(name=entity.join_key, dtype=String) for entity in entities]


def _delays(name: str) -> DatasetSource:
    return DatasetSource(name=name, dataset=name, timestamp_field="event_time")


def _now(entity: Entity, source: DatasetSource) -> FeatureView:
    """How it is going."""
    prefix = entity.name
    return FeatureView(
        name=f"{prefix}_now",
        entities=[entity],
        ttl=timedelta(hours=3),
        schema=[
            *_keys(entity),
            *_numbers(f"{prefix}_held_3h", f"{prefix}_late_3h", f"{prefix}_arrival_delay_3h"),
        ],
        source=source,
    )


def _trend(entity: Entity, source: DatasetSource, category: str) -> FeatureView:
    """How it has been going; and ``category``, the entity's own key, for the model to embed."""
    prefix = entity.name
    return FeatureView(
        name=f"{prefix}_trend",
        entities=[entity],
        ttl=timedelta(hours=24),
        schema=[
            *_keys(entity),
            *_numbers(
                f"{prefix}_late_24h",
                f"{prefix}_late_28d",
                f"{prefix}_arrival_delay_24h",
                f"{prefix}_arrival_delay_28d",
                f"{prefix}_cancelled_7d",
            ),
            Field(name=category, dtype=String),
        ],
        source=source,
    )


carrier_delays = _delays("carrier_delays")
origin_delays = _delays("origin_delays")
dest_delays = _delays("dest_delays")

carrier_now = _now(carrier, carrier_delays)
carrier_trend = _trend(carrier, carrier_delays, "airline")
origin_now = _now(origin, origin_delays)
origin_trend = _trend(origin, origin_delays, "from_airport")
dest_now = _now(dest, dest_delays)
dest_trend = _trend(dest, dest_delays, "to_airport")

route_trend = FeatureView(
    name="route_trend",
    entities=[origin, dest],
    ttl=timedelta(days=7),
    schema=[
        *_keys(origin, dest),
        *_numbers("route_late_7d", "route_late_28d", "route_arrival_delay_7d", "route_arrival_delay_28d"),
    ],
    source=_delays("route_delays"),
)

origin_weather = FeatureView(
    name="origin_weather",
    entities=[origin],
    ttl=timedelta(hours=3),
    schema=[
        *_keys(origin),
        *_numbers(
            "temperature",
            "dew_point",
            "humidity",
            "wind_speed",
            "wind_east",
            "wind_north",
            "gust",
            "rain",
            "rain_3h",
            "pressure",
            "pressure_change_3h",
            "visibility",
        ),
    ],
    source=_delays("origin_weather"),
)

plane_legs = FeatureView(
    name="plane_legs",
    entities=[plane],
    ttl=timedelta(hours=24),
    schema=[
        *_keys(plane),
        *_numbers("plane_departure_delay", "plane_arrival_delay"),
        Field(name="plane_back_at", dtype=UnixTimestamp),
    ],
    source=_delays("plane_legs"),
)

# The registry has no dates: what it says of a plane is taken as known all along.
plane_facts = FeatureView(
    name="plane_facts",
    entities=[plane],
    ttl=timedelta(0),
    schema=[*_keys(plane), Field(name="plane_built", dtype=Int64), Field(name="plane_seats", dtype=Int64)],
    source=DatasetSource(
        name="planes",
        dataset="planes",
        timestamp_field=None,
        field_mapping={"year": "plane_built", "seats": "plane_seats"},
    ),
)
