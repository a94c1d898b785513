"""Entity keys and values as bytes, held to Feast's own code."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.type_map import feast_value_type_to_python_type, python_values_to_proto_values
from feast.value_type import ValueType
from hypothesis import given
from hypothesis import strategies as st

from manta.features.manifest import TYPES
from manta.features.wire import NUMBER, SCALARS, decode_value, item_type, key_encoder, value_encoder

FEAST = {name: kind for kind, name in TYPES.items()}
TIMES = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(max_size=300),
    "bytes": st.binary(max_size=300),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False),
    "float32": st.floats(allow_nan=False, width=32),
    "bool": st.booleans(),
    "timestamp": TIMES.map(lambda at: at.replace(microsecond=0)),
}
# Feast takes a batch of nothing but empty values for missing ones; this beside them keeps it from that.
SOME: dict[str, Any] = {
    **{"string": "x", "bytes": b"x", "int32": 1, "int64": 1, "float64": 1.5, "float32": 1.5, "bool": True},
    "timestamp": datetime(2013, 1, 1, tzinfo=UTC),
}
TYPED = st.sampled_from([*SCALARS, *(f"list[{name}]" for name in SCALARS)]).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.lists(VALUES[item_type(name)], min_size=1, max_size=20) if item_type(name) else VALUES[name],  # type: ignore[index]
    )
)


def feasts(kind: str, value: Any) -> Value:
    item = item_type(kind)
    beside = [SOME[item]] if item else SOME[kind]
    return python_values_to_proto_values([beside, value], FEAST[kind])[1]


def test_feast_numbers_its_types_as_manta_does() -> None:
    for name, number in NUMBER.items():
        assert FEAST[name].value == number
        assert FEAST[f"list[{name}]"].value == number + 10


@given(TYPED)
def test_values_are_written_as_feast_writes_them_and_read_as_it_reads_them(typed: tuple[str, Any]) -> None:
    kind, value = typed
    proto = feasts(kind, value)
    written = value_encoder(kind)(value)
    assert written == proto.SerializeToString(deterministic=True)
    assert decode_value(written) == feast_value_type_to_python_type(proto) == value


@pytest.mark.parametrize("kind", [*SCALARS, "list[int64]"])
def test_a_missing_value_is_no_bytes(kind: str) -> None:
    assert value_encoder(kind)(None) == Value().SerializeToString() == b""
    assert decode_value(b"") is None


def test_special_values() -> None:
    assert decode_value(Value(float_val=1e-45).SerializeToString()) == struct.unpack("f", b"\x01\0\0\0")[0]
    assert math.isinf(decode_value(value_encoder("float64")(math.inf)))
    # What Feast makes of pandas' NaT.
    assert decode_value(Value(unix_timestamp_val=-(2**63)).SerializeToString()) is None
    assert decode_value(value_encoder("list[string]")([])) == []
    assert decode_value(value_encoder("timestamp")(datetime(1969, 12, 31, 23, 59, 59, 500_000))) == datetime(
        1969, 12, 31, 23, 59, 59, tzinfo=UTC
    )


def test_a_kind_of_value_that_manta_does_not_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="does not read"):
        decode_value(Value(json_val="{}").SerializeToString())


KEYED = st.lists(
    st.sampled_from(["string", "bytes", "int32", "int64", "timestamp"]).flatmap(
        lambda kind: st.tuples(st.text(min_size=1, max_size=20), st.just(kind), VALUES[kind])
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda each: each[0],
)


@given(KEYED)
def test_entity_keys_are_written_as_feast_writes_them(parts: list[tuple[str, str, Any]]) -> None:
    proto = EntityKey(
        join_keys=[name for name, _, _ in parts],
        entity_values=[feasts(kind, value) for _, kind, value in parts],
    )
    encode = key_encoder([(name, kind) for name, kind, _ in parts])
    assert encode([value for _, _, value in parts]) == serialize_entity_key(proto, 3)


def test_the_key_of_a_view_without_entities() -> None:
    proto = EntityKey(join_keys=["__dummy_id"], entity_values=[Value(string_val="")])
    assert key_encoder([])(()) == serialize_entity_key(proto, 3)


def test_a_missing_key_has_no_bytes_and_a_wrong_one_is_named() -> None:
    encode = key_encoder([("city", "string"), ("shop", "int64")])
    assert encode([None, 1]) is None
    assert encode(["a", None]) is None
    for city, shop, error in [
        (5, 1, TypeError),
        ("a", 1.5, TypeError),
        ("a", True, TypeError),
        ("a", 2**70, OverflowError),
    ]:
        with pytest.raises(error):
            encode([city, shop])
    with pytest.raises(TypeError, match="not a time"):
        key_encoder([("day", "timestamp")])(["2013-01-01"])


def test_a_naive_time_is_utc() -> None:
    encode, at = value_encoder("timestamp"), datetime(2013, 7, 1, 12)
    assert encode(at) == encode(at.replace(tzinfo=UTC)) == encode(at + timedelta(microseconds=999_999))
    assert FEAST["timestamp"] is ValueType.UNIX_TIMESTAMP
