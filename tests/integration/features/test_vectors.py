"""Features that are vectors: written, read and joined as scalars are, in every store, as Feast's SDK says."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from manta.errors import DefinitionInvalid
from manta.features.materialize import materialize
from manta.features.online import OnlineReader
from manta.features.parity import check
from manta.features.training_set import training_set

from .conftest import START, Shop, every_store
from .doors import opened

END = START + timedelta(hours=50)
NAN = math.nan
LISTS = """
from feast import Entity, FeatureService, FeatureView, Field, PushSource, ValueType
from feast.types import Array, Float32, Float64, Int32, Int64

from manta.features import DatasetSource

face = Entity(name="face", join_keys=["face"], value_type=ValueType.INT64)
looks = FeatureView(
    name="looks",
    entities=[face],
    schema=[
        Field(name="face", dtype=Int64),
        Field(name="pixels", dtype=Array(Float32)),
        Field(name="embedding", dtype=Array(Float64)),
        Field(name="counts", dtype=Array(Int64)),
        Field(name="votes", dtype=Array(Int32)),
    ],
    source=PushSource(
        name="looks_push",
        batch_source=DatasetSource(name="looks", dataset="looks", timestamp_field="at"),
    ),
)
looks_v1 = FeatureService(name="looks_v1", features=[looks])
"""
TYPES: dict[str, Any] = {
    "pixels": pl.List(pl.Float32),
    "embedding": pl.List(pl.Float64),
    "counts": pl.List(pl.Int64),
    "votes": pl.List(pl.Int32),
}


def faces() -> pl.DataFrame:
    """Face 1 has an older row; 2 has what is missing inside a vector, 3 has nothing but a key."""
    return pl.DataFrame(
        {
            "face": [1, 1, 2, 3],
            "at": [START, START + timedelta(hours=4), START, START],
            "pixels": [[9.0, 9.0, 9.0], [0.1, -2.5, 1e-40], [1.0, NAN, None], None],
            "embedding": [[9.0, 9.0], [0.1, math.inf], [None, 2.0], None],
            "counts": [[9, 9], [2**62, -1], [0, 3], None],
            "votes": [[9], [-(2**31)], [7], None],
        },
        schema_overrides=TYPES,
    )


@pytest.fixture
def looks(shop: Shop) -> Shop:
    shop.write("looks.py", LISTS)
    shop.put("looks", faces())
    return shop


def online(shop: Shop) -> OnlineReader:
    materialize(shop.service("looks_v1"), shop.settings.datasets, {"looks": 0}, until=END)
    return OnlineReader(shop.manifest("looks_v1"), "looks_v1")


def as_said(columns: dict[str, list[Any]]) -> str:
    """NaN is unlike itself, and its text is not."""
    return repr({name: [None if each is None else list(each) for each in columns[name]] for name in TYPES})


EXPECTED = as_said(
    {
        "pixels": [[0.10000000149011612, -2.5, 9.99994610111476e-41], [1.0, NAN, NAN], None, None],
        "embedding": [[0.1, math.inf], [NAN, 2.0], None, None],
        "counts": [[2**62, -1], [0, 3], None, None],
        "votes": [[-(2**31)], [7], None, None],
    }
)


@every_store
@pytest.mark.parametrize("by", ["feast", "manta"])
def test_online_they_are_what_the_sdk_says(looks: Shop, by: str) -> None:
    if by == "feast":
        looks.apply()
        looks.store().materialize(datetime(1970, 1, 1, tzinfo=UTC), END)
        reader = OnlineReader(looks.manifest("looks_v1"), "looks_v1")
    else:
        reader = online(looks)
    asked = [1, 2, 3, 99]
    read = reader.read({"face": asked}, [END] * 4)
    assert as_said(read.values) == EXPECTED
    assert reader.features["pixels"] == "list[float64]"
    one_by_one = [reader.read({"face": [face]}, [END]).values for face in asked]
    assert as_said({name: [each[name][0] for each in one_by_one] for name in TYPES}) == EXPECTED
    store = looks.store()
    service = store.get_feature_service("looks_v1")
    sdk = store.get_online_features(service, [{"face": face} for face in asked]).to_dict()
    assert as_said(sdk) == EXPECTED


def test_parity_finds_nothing_and_finds_a_vector_that_differs(looks: Shop) -> None:
    online(looks)
    until = END

    def differing(version: int) -> list[tuple[str, str]]:
        found = check(
            looks.manifest("looks_v1"),
            "looks_v1",
            looks.settings.datasets,
            {"looks": version},
            until,
            root=looks.root,
            keys=20,
        )
        return [(each.feature, str(each.cause)) for each in found.found]

    assert differing(0) == []
    other = faces().with_columns(
        pixels=pl.Series([[9.0] * 3, [0.1, -2.5, 0.0], [1.0, NAN, None], None], dtype=TYPES["pixels"])
    )
    version = looks.put("looks", other)
    assert differing(version) == [("pixels", "late data")]  # a version before had it so


def test_a_training_set_has_them_as_of_each_rows_time(looks: Shop) -> None:
    at = [START + timedelta(hours=hours) for hours in (0, 3, 4, 4, 4, -1)]
    rows = pl.DataFrame({"face": [1, 1, 1, 2, 3, 1], "at": at, "n": list(range(6))})
    found = training_set(
        looks.root,
        looks.settings,
        "looks_v1",
        rows.to_arrow(),
        "at",
        {"looks": 0},
        looks.manifest("looks_v1"),
    )
    joined = pl.DataFrame(pl.from_arrow(found))
    assert {name: joined.schema[name] for name in TYPES} == TYPES
    held = {name: faces()[name].to_list() for name in TYPES}
    for name in TYPES:
        expected = [held[name][row] for row in (0, 0, 1, 2, 3)] + [None]
        expected[3] = [NAN if each is None else each for each in expected[3]]
        assert pl.Series(expected, dtype=TYPES[name]).equals(joined[name]), name


def test_a_whole_number_that_is_missing_inside_a_vector_is_refused(looks: Shop) -> None:
    looks.put("looks", faces().with_columns(counts=pl.Series([[1, 2], [3, None], [5, 6], None])))
    service = looks.service("looks_v1")
    with pytest.raises(
        DefinitionInvalid, match=r"'counts' has a null inside a list\[int64\] for 1 keys"
    ) as error:
        materialize(service, looks.settings.datasets, {"looks": 1}, until=END)
    assert "NaN" in error.value.hint


@pytest.fixture
def door(looks: Shop) -> Iterator[Callable[[str, dict[str, Any]], Any]]:
    online(looks)
    with opened(looks) as client:

        def ask(path: str, body: dict[str, Any]) -> Any:
            answer = client.post(path, json=body)
            return answer.status_code, answer.json()

        yield ask


def _pushed(**changes: Any) -> dict[str, Any]:
    row = {
        "face": 5,
        "at": START.isoformat(),
        "pixels": [1, 2.5, None],
        "embedding": [0.1, 0.2],
        "counts": [1, 2],
        "votes": [3],
    }
    df = {name: [value] for name, value in (row | changes).items()}
    return {"push_source_name": "looks_push", "df": df, "to": "online_and_offline"}


def test_at_the_door_they_are_lists_and_what_is_missing_in_them_is_named(door: Callable[..., Any]) -> None:
    assert door("/push", _pushed())[0] == 200
    status, answer = door(
        "/get-online-features", {"entities": {"face": [1, 2, 5, 3]}, "feature_service": "looks_v1"}
    )
    assert status == 200
    found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    assert found["pixels"]["values"][1:] == [[1.0, "NaN", "NaN"], [1.0, 2.5, "NaN"], None]
    assert found["embedding"]["values"] == [[0.1, "Infinity"], ["NaN", 2.0], [0.1, 0.2], None]
    assert found["counts"]["values"] == [[2**62, -1], [0, 3], [1, 2], None]
    assert found["votes"]["statuses"] == ["PRESENT"] * 4


def test_a_pushed_vector_that_is_none_is_refused_and_nothing_is_written(
    door: Callable[..., Any], looks: Shop
) -> None:
    before = looks.lake.version("looks")
    for changes, says in (
        ({"counts": [1, None]}, "null inside a list"),
        ({"votes": [2**31]}, "'votes' takes values of type list[int32]"),
        ({"pixels": 3.0}, "3.0 is not a list"),
        ({"pixels": ["1"]}, "'pixels' takes values of type list[float32]"),
    ):
        status, answer = door("/push", _pushed(**changes))
        assert status == 400
        assert says in answer["detail"]
        assert looks.lake.version("looks") == before
