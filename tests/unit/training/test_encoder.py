"""The encoder: fitted on what it is given, total on everything else."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.errors import TrainingInvalid
from manta.models.encoding import Encoding
from manta.training import encoder

TRAIN = pl.DataFrame(
    {
        "carrier": ["UA", "AA", "UA", "AA", "UA", "ZZ", "", None],
        "wind": [1.0, 3.0, None, float("nan"), float("inf"), 5.0, 1e300, 3.0],
        "gone": pl.Series([None] * 8, dtype=pl.Float64),
        "flat": [2] * 8,
        "rain": [True, False, True, False, True, False, None, True],
    }
)


def test_vocabulary_is_by_frequency_then_value_and_leaves_out_what_is_seen_once() -> None:
    rows = pl.DataFrame({"x": ["b", "a", "c", "b", "a", "c", "c", "once", "", "", "", "", None]})
    assert encoder.fit(rows).vocabularies == {"x": ("c", "a", "b")}


def test_categories_by_index_with_zero_for_missing_and_unknown() -> None:
    encoding = encoder.fit(TRAIN)
    assert encoding.vocabularies == {"carrier": ("UA", "AA")}
    rows = TRAIN.head(5).with_columns(carrier=pl.Series(["AA", "UA", "never seen", "", None]))
    assert encoder.encode(encoding, rows).categories.tolist() == [[2], [1], [0], [0], [0]]


def test_numbers_are_standardised_with_the_known_values_and_flagged_where_missing() -> None:
    encoding = encoder.fit(TRAIN)
    known = np.array([1.0, 3.0, 5.0, 3.0])
    assert encoding.moments["wind"] == pytest.approx((known.mean(), known.std()))
    assert encoding.moments["gone"] == (0.0, 1.0)
    assert encoding.moments["flat"] == (2.0, 1.0)
    arrays = encoder.encode(encoding, TRAIN)
    assert list(encoding.moments) == ["wind", "gone", "flat", "rain"]
    wind, gone, flat, rain = arrays.numbers[:, :4].T
    wind_missing, gone_missing, flat_missing, rain_missing = arrays.numbers[:, 4:].T
    assert wind_missing.tolist() == [0, 0, 1, 1, 1, 0, 1, 0]
    assert wind[2] == wind[3] == wind[4] == wind[6] == 0
    assert wind[0] == pytest.approx((1 - known.mean()) / known.std())
    assert gone_missing.all()
    assert not gone.any()
    assert not flat.any()
    assert not flat_missing.any()
    assert rain_missing.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert rain[0] > 0 > rain[1]
    assert arrays.numbers.dtype == np.float32
    assert arrays.categories.dtype == np.int64


def test_shape_counts_index_zero_and_the_flags() -> None:
    assert encoder.fit(TRAIN).shape == {"categories": [3], "numbers": 8}


def test_whole_numbers_and_booleans_can_be_categories() -> None:
    rows = pl.DataFrame({"month": [1, 1, 2, 2, 2, None], "rain": [True, True, False, False, False, None]})
    encoding = encoder.fit(rows, ["month", "rain"])
    assert encoding.vocabularies == {"month": ("2", "1"), "rain": ("false", "true")}
    assert encoding.inputs == {"month": "int64", "rain": "bool"}
    assert encoder.encode(encoding, rows).categories.tolist() == [[2, 2]] * 2 + [[1, 1]] * 3 + [[0, 0]]
    assert encoder.encode(encoding, rows).numbers.shape == (6, 0)


def test_only_the_training_rows_count() -> None:
    held_out = TRAIN.with_columns(carrier=pl.lit("NEW"), wind=pl.lit(1e6))
    encoding = encoder.fit(TRAIN)
    encoder.encode(encoding, held_out)
    assert encoding == encoder.fit(TRAIN)


def test_no_rows_encode_to_no_rows() -> None:
    arrays = encoder.encode(encoder.fit(TRAIN), TRAIN.head(0))
    assert arrays.categories.shape == (0, 1)
    assert arrays.numbers.shape == (0, 8)


@pytest.mark.parametrize(
    ("rows", "categories", "match"),
    [
        (pl.DataFrame({"at": [0]}).select(pl.col("at").cast(pl.Datetime("us"))), None, "at is of type"),
        (pl.DataFrame({"x": [1.5]}), ["x"], "cannot be a category"),
        (pl.DataFrame({"x": ["a"]}), ["y"], "does not have: y"),
        (pl.DataFrame({"x": ["a"]}), [], "x is of type"),
        (pl.DataFrame(), None, "no features"),
    ],
)
def test_what_cannot_be_encoded_is_named(
    rows: pl.DataFrame, categories: list[str] | None, match: str
) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        encoder.fit(rows, categories)
    assert error.value.hint


def test_a_missing_column_is_named() -> None:
    with pytest.raises(TrainingInvalid, match="wind"):
        encoder.encode(encoder.fit(TRAIN), TRAIN.drop("wind"))


@given(
    st.lists(
        st.tuples(
            st.one_of(st.none(), st.sampled_from(["a", "b", "ü", ""])),
            st.one_of(st.none(), st.floats(width=32), st.floats()),
        ),
        min_size=1,
        max_size=30,
    )
)
def test_any_values_encode_to_finite_arrays_and_survive_json(
    rows: list[tuple[str | None, float | None]],
) -> None:
    frame = pl.DataFrame(
        {
            "c": pl.Series([c for c, _ in rows], dtype=pl.String),
            "n": pl.Series([n for _, n in rows], dtype=pl.Float64),
        }
    )
    encoding = encoder.fit(frame)
    arrays = encoder.encode(encoding, frame)
    assert np.isfinite(arrays.numbers).all()
    assert arrays.categories.max() < encoding.shape["categories"][0]
    assert Encoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
