"""Columns as bytes, held to the encoders of single values, which test_feast_bytes.py holds to Feast's own."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manta.features.asof import dtype
from manta.features.compiled import Key, View
from manta.features.stores._columns import instants_of, keys_of, texts_of, values_of
from manta.features.stores.redis import _micros
from manta.features.wire import SCALARS, key_encoder, value_encoder

from .test_feast_bytes import VALUES

slow = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=30)
MICROS = st.integers(-(10**16), 10**16)


@pytest.mark.parametrize("kind", [*SCALARS, "list[int64]", "list[string]"])
@slow
@given(st.data())
def test_a_column_is_encoded_as_its_values_are(kind: str, data: st.DataObject) -> None:
    item = VALUES[kind] if kind in VALUES else st.lists(VALUES[kind[5:-1]], max_size=3)
    values: list[Any] = data.draw(st.lists(st.none() | item, max_size=8))
    column = pl.Series("c", values, dtype=dtype(kind))
    encode = value_encoder(kind)
    assert values_of(kind, column) == [encode(value) for value in column.to_list()]
    texts = [text for text, _ in zip(texts_of(kind, column), values, strict=False)]
    plain = kind in ("string", "int32", "int64", "float32", "float64", "bool")
    assert texts == [None if v is None or not plain else str(v) for v in column.to_list()]


@slow
@given(st.lists(MICROS, max_size=8))
def test_instants_are_protobufs(micros: list[int]) -> None:
    encoded = instants_of(pl.Series("c", micros, dtype=pl.Int64))
    for at, data in zip(micros, encoded, strict=True):
        stamp = Timestamp(seconds=at // 1_000_000, nanos=at % 1_000_000 * 1000)
        assert data == stamp.SerializeToString()
        assert _micros(data) == at


@pytest.mark.parametrize("kinds", [["int64"], ["int32"], ["string"], ["string", "int64"], []])
@slow
@given(st.data())
def test_keys_are_those_of_single_rows(kinds: list[str], data: st.DataObject) -> None:
    keys = tuple(Key(f"k{i}", f"{'ba'[i]}k", kind) for i, kind in enumerate(kinds))
    view = View("v", "t", "d", None, None, 0.0, keys, ())
    rows = data.draw(st.lists(st.tuples(*(VALUES[kind] for kind in kinds)), max_size=6))
    frame = pl.DataFrame(
        {f"__key_{i}": [row[i] for row in rows] for i in range(len(kinds))} | {"__ts": [0] * len(rows)},
        schema_overrides={f"__key_{i}": dtype(kind) for i, kind in enumerate(kinds)},
    )
    encode = key_encoder([(key.join_key, key.type) for key in keys])
    assert keys_of(view, frame) == [encode(row) for row in rows]
