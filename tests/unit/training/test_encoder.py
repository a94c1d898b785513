"""The encoder: fitted on what it is given, total on everything else."""

from __future__ import annotations

import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta.definitions import Examples, TimeSplit, Training
from manta.errors import TrainingInvalid
from manta.models.encoding import Encoding
from manta.training import encoder
from manta.training.examples import PARTS, Labelled
from manta.training.run import _encoded

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


VECTORS = pl.DataFrame(
    {
        "wind": [1.0, None, 3.0, 5.0],
        "pixels": [[1.0, 2.0, 8.0], None, [3.0, float("nan"), 8.0], [5.0, 4.0, None]],
    }
)


def test_a_vector_is_that_many_numbers_behind_the_others_and_one_flag() -> None:
    encoding = encoder.fit(VECTORS)
    assert encoding.inputs == {"wind": "float32", "pixels": "float32[3]"}
    assert encoding.shape == {"categories": [], "numbers": 6, "vectors": {"pixels": [1, 3]}}
    means, deviations = encoding.vectors["pixels"]
    known = np.array([[1, 3, 5], [2, 4, 3], [8, 8, 8]], dtype=np.float64)
    assert means == pytest.approx((3.0, 3.0, 8.0))
    assert deviations == pytest.approx((known[0].std(), 1.0, 1.0))  # the last is the same in all rows
    numbers = encoder.encode(encoding, VECTORS).numbers
    assert numbers[:, 1:4] == pytest.approx(
        np.array([[-2 / known[0].std(), -1, 0], [0, 0, 0], [0, 0, 0], [2 / known[0].std(), 1, 0]])
    )
    assert numbers[:, 4].tolist() == [0, 1, 0, 0]
    # Of a vector, the share of it that is missing.
    assert numbers[:, 5] == pytest.approx([0, 1, 1 / 3, 1 / 3])


def test_vectors_of_whole_numbers_and_of_fixed_length_are_encoded_alike() -> None:
    whole = pl.DataFrame({"x": pl.Series([[1, 2], [3, 7], None], dtype=pl.List(pl.Int32))})
    fixed = whole.select(pl.col("x").cast(pl.Array(pl.Float64, 2)))
    encoding = encoder.fit(whole)
    assert encoder.fit(fixed) == encoding
    assert (encoder.encode(encoding, fixed).numbers == encoder.encode(encoding, whole).numbers).all()


@pytest.mark.parametrize(
    ("column", "match"),
    [
        (pl.Series([[1.0, 2.0], [1.0]]), "x has 1, 2 numbers in its training rows"),
        (pl.Series([[], []], dtype=pl.List(pl.Float32)), "x has 0 numbers"),
        (pl.Series([None, None], dtype=pl.List(pl.Float32)), "x is missing in every training row"),
        (pl.Series([["a"], ["b"]]), r"x is of type List\(String\)"),
        (pl.Series([[[1.0]], [[2.0]]]), r"x is of type List\(List"),
        (pl.Series([[True], [False]]), r"x is of type List\(Boolean"),
    ],
)
def test_lists_that_are_no_vectors_are_named(column: pl.Series, match: str) -> None:
    with pytest.raises(TrainingInvalid, match=match) as error:
        encoder.fit(pl.DataFrame({"x": column}))
    assert error.value.hint


def test_a_vector_of_another_length_is_named_with_both() -> None:
    encoding = encoder.fit(VECTORS)
    rows = VECTORS.with_columns(pixels=pl.Series([[1.0, 2.0, 3.0], None, [1.0, 2.0], [0.0]]))
    with pytest.raises(TrainingInvalid, match="pixels is a vector of 3 numbers, and has 2 in 2 of 4 rows"):
        encoder.encode(encoding, rows)


def test_a_vector_cannot_be_a_category() -> None:
    with pytest.raises(TrainingInvalid, match=r"pixels is of type .* and cannot be a category"):
        encoder.fit(VECTORS, ["pixels"])


def test_a_vector_is_no_baseline() -> None:
    training = Training(
        model="looks",
        fn="jobs.looks:train",
        module="jobs.looks:Net",
        examples=Examples(dataset="looks", label="seen", time="at"),
        features="looks_v1",
        split=TimeSplit(test_from=datetime(2026, 1, 1)),
        baseline="pixels",
    )
    examples = Labelled(VECTORS, np.array([0, 1, 0, 1], dtype=np.float32), 0)
    parts = {name: np.arange(4) for name in PARTS}
    with pytest.raises(TrainingInvalid, match="'pixels' is not a numeric feature of looks_v1") as error:
        _encoded(training, VECTORS, examples, parts)
    assert error.value.hint == "one of wind"
    with pytest.raises(TrainingInvalid) as error:
        _encoded(training, VECTORS.select("pixels"), examples, parts)
    assert error.value.hint == "it has none: leave it out"


def test_an_encoding_with_vectors_survives_json_and_one_without_says_nothing_of_them() -> None:
    encoding = encoder.fit(VECTORS)
    assert Encoding.from_json(json.loads(json.dumps(encoding.to_json()))) == encoding
    assert set(encoder.fit(TRAIN).to_json()) == {"vocabularies", "moments", "types"}


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
