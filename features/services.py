"""The feature service that the model is trained on and the endpoint looks up."""

from __future__ import annotations

from feast import FeatureService

from features.on_demand import asked
from features.views import (
    carrier_now,
    carrier_trend,
    dest_now,
    dest_trend,
    origin_now,
    origin_trend,
    origin_weather,
    plane_facts,
    plane_legs,
    route_trend,
)

delay_v1 = FeatureService(
    name="delay_v1",
    features=[
        carrier_now,
        carrier_trend,
        origin_now,
        origin_trend,
        dest_now,
        dest_trend,
        route_trend,
        origin_weather,
        plane_legs[["plane_departure_delay", "plane_arrival_delay"]],
        plane_facts,
        asked,
    ],
)
