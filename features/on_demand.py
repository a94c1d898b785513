"""The on-demand view: values computed when they are asked for. Its function stands apart, free of Feast."""

from __future__ import annotations

from types import FunctionType
from typing import cast

from feast import Field, OnDemandFeatureView, RequestSource
from feast.types import Float64, String, UnixTimestamp

from features.request_time import request_time
from features.views import plane_legs

request = RequestSource(name="request", schema=[Field(name="scheduled_departure", dtype=UnixTimestamp)])

asked = OnDemandFeatureView(
    name="asked",
    sources=[request, plane_legs[["plane_back_at"]]],
    schema=[
        Field(name="departure_hour", dtype=String),
        Field(name="departure_weekday", dtype=String),
        Field(name="day_sine", dtype=Float64),
        Field(name="day_cosine", dtype=Float64),
        Field(name="plane_spare", dtype=Float64),
    ],
    mode="python",
    udf=cast(FunctionType, request_time),
)
