"""Handwritten digits: the pixels of each image, as one feature of 64 numbers."""

from __future__ import annotations

from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Array, Float32, Int64

from manta.features import DatasetSource

image = Entity(name="image", join_keys=["image"], value_type=ValueType.INT64)

digit_pixels = FeatureView(
    name="digit_pixels",
    entities=[image],
    ttl=timedelta(0),
    schema=[Field(name="image", dtype=Int64), Field(name="pixels", dtype=Array(Float32))],
    source=DatasetSource(name="digits", dataset="digits", timestamp_field="written_at"),
)

digits_v1 = FeatureService(name="digits_v1", features=[digit_pixels])
