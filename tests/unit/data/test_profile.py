"""Profiles: what is exact equals brute force however the rows were cut, what is estimated is near it, and
every type there is has one."""

from __future__ import annotations

import itertools
import json
import math
import pickle
import statistics
from collections import Counter
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.data.profile import finish, merge, sketch
from manta.data.shown import span
from manta.errors import ContractBroken

SAME = ("nulls", "nan", "infinite", "distinct", "min", "max", "top", "quantiles", "histogram")

ROWS = st.lists(
    st.tuples(
        st.none() | st.integers(-(2**40), 2**40) | st.integers(0, 3),
        st.none() | st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0]),
        st.none() | st.text(max_size=4),
        st.none() | st.booleans(),
        st.none() | st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)),
    ),
    max_size=60,
)
SCHEMA = {"n": pl.Int64, "x": pl.Float64, "s": pl.String, "b": pl.Boolean, "at": pl.Datetime("us")}


def frame_of(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def cut(frame: pl.DataFrame, at: list[int]) -> list[pl.DataFrame]:
    places = sorted({0, frame.height, *(place for place in at if place < frame.height)})
    return [frame[start:end] for start, end in itertools.pairwise(places)] or [frame]


@settings(max_examples=60, deadline=None)
@given(ROWS, st.lists(st.integers(0, 60), max_size=5), st.randoms())
def test_exact_figures_are_those_of_brute_force_however_the_rows_were_cut(
    rows: list[tuple[Any, ...]], at: list[int], random: Any
) -> None:
    frame = frame_of(rows)
    parts = [sketch(part) for part in cut(frame, at)]
    random.shuffle(parts)
    middle = random.randint(0, len(parts))
    found = finish(merge([merge(parts[:middle]), *parts[middle:]]))
    assert found["rows"] == found["sampled"] == len(rows)
    whole = finish(sketch(frame))
    for name, figures in found["columns"].items():
        held = [row for row in frame[name].to_list() if row is not None]
        finite = [each for each in held if not isinstance(each, float) or math.isfinite(each)]
        assert figures["nulls"] == len(rows) - len(held)
        distinct = {"nan" if each != each else each for each in held}
        assert figures["distinct"] == {"count": len(distinct), "exact": True}
        if name == "x":
            assert figures["nan"] == sum(map(math.isnan, held))
            assert figures["infinite"] == sum(map(math.isinf, held))
        if not finite:
            assert "min" not in figures
            continue
        assert figures["exact"]
        shown = [each.isoformat() if isinstance(each, datetime) else each for each in sorted(finite)]
        counted = Counter(shown)
        assert (figures["min"], figures["max"]) == (shown[0], shown[-1])
        assert all(counted[each["value"]] == each["count"] for each in figures["top"])
        assert [each["count"] for each in figures["top"]] == sorted(counted.values(), reverse=True)[:10]
        if name in ("n", "x"):
            assert figures["mean"] == pytest.approx(statistics.fmean(finite), rel=1e-9, abs=1e-6)
            assert figures["std"] == pytest.approx(statistics.pstdev(finite), rel=1e-6, abs=1e-3)
        if name in ("n", "x", "at"):
            for share, value in figures["quantiles"].items():
                assert value == shown[math.ceil(float(share) * len(shown) * (1 - 1e-12)) - 1]
            assert sum(figures["histogram"]["counts"]) + _outside(figures) == len(finite)
        for figure in SAME:
            assert figures.get(figure) == whole["columns"][name].get(figure), figure


def _outside(figures: dict[str, Any]) -> int:
    return int(figures["histogram"]["below"] + figures["histogram"]["above"])


N = 300_000


@pytest.fixture(scope="module")
def large() -> pl.DataFrame:
    random = np.random.default_rng(5)
    return pl.DataFrame(
        {
            "id": np.arange(N),
            "some": random.integers(0, 5_000, N),
            "x": random.exponential(size=N),
            "text": pl.Series(random.integers(0, 40_000, N)).cast(pl.String),
            "at": pl.Series(random.integers(0, 10**15, N)).cast(pl.Datetime("us", "UTC")),
            "skewed": random.zipf(1.7, N).clip(0, 10**6),
            "list": pl.Series(random.integers(0, 9_000, N)).reshape((N, 1)).cast(pl.List(pl.Int64)),
        }
    )


@pytest.fixture(scope="module")
def merged(large: pl.DataFrame) -> dict[str, Any]:
    # Of unlike sizes, so that a sample that favours the rows of small parts is seen.
    parts = cut(large, [100, 5_000, 30_000, 180_000])
    return finish(merge([sketch(part) for part in parts]))


def test_estimates_are_near_what_brute_force_counts(large: pl.DataFrame, merged: dict[str, Any]) -> None:
    assert (merged["rows"], merged["sampled"]) == (N, 4096)
    for name in large.columns:
        told = merged["columns"][name]["distinct"]
        assert not told["exact"] or name == "small"
        # 4 standard errors of 1/sqrt(2048)
        assert told["count"] == pytest.approx(large[name].n_unique(), rel=4 / math.sqrt(2048)), name
    for name in ("id", "some", "x", "at", "skewed"):
        figures = merged["columns"][name]
        assert not figures["exact"]
        ordered = large[name].to_physical().sort().to_numpy()
        for share, value in figures["quantiles"].items():
            number = np.datetime64(value[:-6], "us").astype(int) if name == "at" else value
            low, high = (np.searchsorted(ordered, number, side) / N for side in ("left", "right"))
            margin = 4 * math.sqrt(float(share) * (1 - float(share)) / 4096)
            assert low - margin <= float(share) <= high + margin, (name, share)
    assert merged["columns"]["x"]["mean"] == pytest.approx(large["x"].mean(), rel=1e-9)
    assert merged["columns"]["id"]["max"] == N - 1


def test_frequent_values_are_told_with_counts_near_the_truth(
    large: pl.DataFrame, merged: dict[str, Any]
) -> None:
    top = merged["columns"]["skewed"]["top"]
    assert [each["value"] for each in top[:3]] == [1, 2, 3]
    for each in top[:3]:
        assert each["count"] == pytest.approx(large.filter(skewed=each["value"]).height, rel=0.15)
    assert merged["columns"]["id"]["top"] == []  # nothing is frequent, and nothing is made out to be


def test_a_histogram_leaves_far_values_out_and_counts_them(merged: dict[str, Any]) -> None:
    shown = merged["columns"]["skewed"]["histogram"]
    assert shown["edges"][-1] < 10_000 < merged["columns"]["skewed"]["max"]
    assert shown["above"] > 0
    for name in ("x", "at", "skewed"):
        histogram = merged["columns"][name]["histogram"]
        assert len(histogram["edges"]) == len(histogram["counts"]) + 1
        assert sum(histogram["counts"]) + histogram["below"] + histogram["above"] == pytest.approx(N, abs=30)


def test_the_sample_takes_rows_of_all_parts_alike(large: pl.DataFrame) -> None:
    """Each part's share of the sample is its share of the rows."""
    parts = cut(large.select("id"), [100, 5_000, 30_000, 180_000])
    sampled = merge([sketch(part) for part in parts]).sample["id"]
    assert sampled.n_unique() == 4096
    for part in parts:
        share = part.height / N
        drawn = sampled.is_between(part["id"][0], part["id"][-1]).sum() / 4096
        assert abs(drawn - share) <= 4 * math.sqrt(share * (1 - share) / 4096)


def test_batches_of_one_size_draw_apart() -> None:
    rows = pl.DataFrame({"id": range(64_000)})
    sampled = merge([sketch(part) for part in rows.iter_slices(1_000)]).sample["id"]
    assert (sampled % 1_000).n_unique() > 900  # of 1,000 places in a batch, when each draws for itself


def test_a_tally_gives_way_when_the_values_become_many() -> None:
    few = [sketch(pl.DataFrame({"n": range(start, start + 200)})) for start in (0, 100, 200)]
    assert merge(few[:1]).columns["n"].tally
    assert merge(few[:2]).columns["n"].tally is None
    told = finish(merge(few))["columns"]["n"]
    assert told["distinct"] == {"count": 400, "exact": True}
    assert sum(told["histogram"]["counts"]) == 600


def test_a_sketch_is_bounded_and_the_same_again(large: pl.DataFrame) -> None:
    one, again = sketch(large), sketch(large.clone())
    assert pickle.dumps(finish(one)) == pickle.dumps(finish(again))
    columns = large.width
    assert len(pickle.dumps(one)) < columns * 16 * (4096 + 2048)
    wide = pl.DataFrame({"s": ["x" * 100_000] * 50, "image": [b"\0" * 100_000] * 50})
    assert len(pickle.dumps(sketch(wide))) < 50_000


ALL_TYPES = pl.DataFrame(
    {
        "int8": pl.Series([1, None, 3], dtype=pl.Int8),
        "uint64": pl.Series([2**64 - 1, 0, None], dtype=pl.UInt64),
        "int128": pl.Series([2**100, 0, None], dtype=pl.Int128),
        "float32": pl.Series([1.5, None, math.nan], dtype=pl.Float32),
        "all nan": [math.nan] * 3,
        "far apart": [1e308, 1e308, -1e308],
        "bool": [True, None, False],
        "string": ["ä" * 300, None, ""],
        "decimal": pl.Series([Decimal("1.10"), None, Decimal("-3.25")], dtype=pl.Decimal(38, 2)),
        "binary": [b"\0\xff", None, b""],
        "date": [date(2020, 1, 1), None, date(1, 1, 1)],
        "utc": [datetime(2020, 1, 1, tzinfo=UTC), None, datetime(2020, 1, 2, tzinfo=UTC)],
        "zone": pl.Series([0, None, 10**15]).cast(pl.Datetime("us", "Europe/Berlin")),
        "naive": [datetime(2020, 1, 1), None, datetime(2020, 1, 2)],
        "after the year 9999": pl.Series([2**53, 0, -(2**53)]).cast(pl.Datetime("ms")),
        "time": [time(1, 2, 3), None, time(5)],
        "duration": [timedelta(1), None, timedelta(2)],
        "list": [[1, None], None, []],
        "array": pl.Series([[1, 2], None, [3, 4]], dtype=pl.Array(pl.Int64, 2)),
        "struct": [{"a": 1, "b": "x"}, None, {"a": None, "b": "y"}],
        "null": [None] * 3,
        "categorical": pl.Series(["a", "b", None], dtype=pl.Categorical),
        "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
    }
)


@pytest.mark.parametrize("repeated", [0, 1, 3_000])
@pytest.mark.parametrize("name", ALL_TYPES.columns)
def test_every_type_has_a_profile(name: str, repeated: int) -> None:
    frame = pl.concat([ALL_TYPES.select(name)] * repeated) if repeated else ALL_TYPES.select(name).head(0)
    found = finish(merge([pickle.loads(pickle.dumps(sketch(frame))), sketch(frame.tail(1))]))
    told = json.loads(json.dumps(found, allow_nan=False))["columns"][name]
    rows = frame.height + frame.tail(1).height
    nulls = frame[name].null_count() + frame[name].tail(1).null_count()
    assert (found["rows"], told["nulls"]) == (rows, nulls)
    assert told["distinct"] == {"count": frame[name].drop_nulls().n_unique(), "exact": True}


def test_how_values_are_written() -> None:
    told = finish(sketch(ALL_TYPES))["columns"]
    assert (told["utc"]["type"], told["utc"]["min"]) == ("timestamp", "2020-01-01T00:00:00+00:00")
    assert told["zone"]["min"] == "1970-01-01T00:00:00+00:00"
    assert told["naive"]["max"] == "2020-01-02T00:00:00"
    assert told["date"]["min"] == "0001-01-01"
    assert told["after the year 9999"]["max"] == "287396-10-12T08:59:00.992"
    assert (told["decimal"]["min"], told["decimal"]["mean"]) == ("-3.25", pytest.approx(-1.075))
    assert told["uint64"]["max"] == 2**64 - 1
    assert told["string"]["max"] == "ä" * 200 + "…"
    assert told["all nan"] == {
        "type": "float64", "nulls": 0, "distinct": {"count": 1, "exact": True}, "nan": 3, "infinite": 0,
    }  # fmt: skip
    assert told["far apart"]["histogram"] is None
    assert told["categorical"]["top"] == [{"value": "a", "count": 1}, {"value": "b", "count": 1}]


def test_lists_tell_how_long_they_are() -> None:
    long = pl.DataFrame({"x": [[1.0] * 64, None], "y": [[1], [2, 3]]})
    others = pl.DataFrame(
        {"x": [[2.0] * 64], "y": [[]]}, schema={"x": pl.List(pl.Float64), "y": pl.List(pl.Int64)}
    )
    columns = finish(merge([sketch(long), sketch(others), sketch(long.clear())]))["columns"]
    assert (columns["x"]["lengths"], columns["x"]["nulls"]) == ({"min": 64, "max": 64}, 1)
    assert columns["y"]["lengths"] == {"min": 0, "max": 2}
    assert (span(columns["x"]), span(columns["y"])) == ("64 long", "0 … 2 long")
    assert finish(sketch(ALL_TYPES))["columns"]["array"]["lengths"] == {"min": 2, "max": 2}
    nothing = finish(sketch(ALL_TYPES.head(0)))["columns"]
    assert "lengths" not in nothing["list"]
    assert "lengths" not in nothing["string"]


def test_a_column_that_a_part_lacks_is_null_there() -> None:
    found = merge([sketch(pl.DataFrame({"a": [1, 2]})), sketch(pl.DataFrame({"b": ["x"]}))])
    columns = finish(found)["columns"]
    assert (columns["a"]["nulls"], columns["b"]["nulls"]) == (1, 2)
    assert columns["a"]["distinct"] == {"count": 2, "exact": True}
    # So is one that had no type yet.
    later = merge([sketch(pl.DataFrame({"a": [None]})), sketch(pl.DataFrame({"a": [1.5]}))])
    assert finish(later)["columns"]["a"]["min"] == 1.5


def test_two_types_of_one_column_are_refused() -> None:
    with pytest.raises(ContractBroken, match=r"column 'a' is Int64 and String"):
        merge([sketch(pl.DataFrame({"a": [1]})), sketch(pl.DataFrame({"a": ["x"]}))])


def test_columns_without_an_order_are_counted_alone() -> None:
    told = finish(merge([sketch(pl.DataFrame({"l": [[1], [2]]})), sketch(pl.DataFrame({"l": [[1]]}))]))
    assert (told["rows"], told["sampled"]) == (3, 3)
    assert told["columns"]["l"]["distinct"] == {"count": 2, "exact": True}


def test_nothing_is_a_profile_too() -> None:
    assert finish(merge([])) == {"rows": 0, "sampled": 0, "columns": {}}
    assert finish(merge([sketch(pl.DataFrame())])) == {"rows": 0, "sampled": 0, "columns": {}}
