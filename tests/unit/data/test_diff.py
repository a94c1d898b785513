"""Differences between versions, beside what plain Python finds."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manta.data.lake import Change, Lake, write_part
from manta.data.reading import Datasets
from manta.errors import InvalidInput, NotFound

Put = Callable[..., int]
SCHEMA = {"k": pl.Int64, "t": pl.String, "v": pl.Float64, "l": pl.List(pl.Int64)}
VALUES = st.tuples(
    st.none() | st.sampled_from(["a", "b"]),
    st.none() | st.sampled_from([0.0, 1.5, float("nan")]),
    st.none() | st.lists(st.none() | st.integers(0, 1), max_size=2),
)
KEYED = st.dictionaries(st.none() | st.integers(0, 12), VALUES, max_size=12)
MULTI = st.lists(st.tuples(st.none() | st.integers(0, 2), VALUES), max_size=14)


def frame_of(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def comparable(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return "nan" if value != value else value


@contextmanager
def two_versions(first: list[pl.DataFrame], kept: int, then: list[pl.DataFrame]) -> Iterator[Datasets]:
    """Version 1 keeps that many of the files of version 0, and adds others, as an upsert does."""
    with tempfile.TemporaryDirectory() as folder:
        datasets = Datasets(folder)
        commit_both(datasets.lake, first, kept, then)
        yield datasets


def commit_both(lake: Lake, first: list[pl.DataFrame], kept: int, then: list[pl.DataFrame]) -> None:
    numbers = count()

    def commit(frames: list[pl.DataFrame], remove: list[str] | None) -> None:
        key = f"r-{next(numbers)}"
        folder = lake.stage("d", key)
        paths = []
        for i, frame in enumerate(frames):
            paths.append(f"{folder}/{i}.parquet")
            write_part(frame, paths[-1])
        schema = frame_of([]).to_arrow().schema
        lake.change("d", lambda _: Change(paths, remove, {}), run_key=key, schema=schema)

    commit(first, None)
    commit(then, lake.files("d", 0)[kept:])


def halves(rows: list[tuple[Any, ...]]) -> list[pl.DataFrame]:
    middle = len(rows) // 2
    return [frame_of(rows[:middle]), frame_of(rows[middle:])]


@settings(max_examples=40, deadline=None)
@given(KEYED, KEYED, st.integers(0, 2))
def test_by_key_it_finds_what_two_dicts_show(
    before: dict[int | None, tuple[Any, ...]], after: dict[int | None, tuple[Any, ...]], kept: int
) -> None:
    first = halves([(key, *values) for key, values in before.items()])
    held = {row[0]: row[1:] for frame in first[:kept] for row in frame.rows()}
    after = {key: values for key, values in after.items() if key not in held}
    then = frame_of([(key, *values) for key, values in after.items()])
    with two_versions(first, kept, [then]) as datasets:
        found = datasets.diff("d", 0, 1, key=["k"], sampled=100)
    now = {**held, **after}
    was = {key: tuple(map(comparable, values)) for key, values in before.items()}
    is_ = {key: tuple(map(comparable, values)) for key, values in now.items()}
    changed = {key for key in was.keys() & is_.keys() if was[key] != is_[key]}
    assert {row["k"] for row in found.sample_added} == is_.keys() - was.keys()
    assert {row["k"] for row in found.sample_removed} == was.keys() - is_.keys()
    assert {each.key["k"] for each in found.sample_changed} == changed
    assert (found.added, found.removed, found.changed) == (
        len(found.sample_added), len(found.sample_removed), len(changed),
    )  # fmt: skip
    assert (found.rows_before, found.rows_after) == (len(was), len(is_))
    in_columns: Counter[str] = Counter()
    for each in found.sample_changed:
        key = each.key["k"]
        differs = {name for name, a, b in zip("tvl", was[key], is_[key], strict=True) if a != b}
        assert each.values.keys() == differs
        for name, (old, new) in each.values.items():
            at = "tvl".index(name)
            assert (comparable(old), comparable(new)) == (was[key][at], is_[key][at])
        in_columns.update(differs)
    assert found.changed_in == dict(in_columns)
    assert found.same == (was == is_)


@settings(max_examples=40, deadline=None)
@given(MULTI, MULTI, st.integers(0, 2))
def test_without_a_key_rows_are_counted_as_multisets(
    before: list[tuple[Any, Any]], after: list[tuple[Any, Any]], kept: int
) -> None:
    first = halves([(key, *values) for key, values in before])
    then = frame_of([(key, *values) for key, values in after])
    with two_versions(first, kept, [then]) as datasets:
        found = datasets.diff("d", 0, 1, sampled=100)
    was = Counter(tuple(map(comparable, row)) for frame in first for row in frame.rows())
    is_ = Counter(tuple(map(comparable, row)) for frame in [*first[:kept], then] for row in frame.rows())
    added, removed = is_ - was, was - is_
    assert (found.key, found.changed) == ((), 0)
    assert (found.added, found.removed) == (added.total(), removed.total())
    for sample, wanted in ((found.sample_added, added), (found.sample_removed, removed)):
        assert sorted(map(str, (tuple(map(comparable, row.values())) for row in sample))) == sorted(
            map(str, wanted)
        )
    assert found.same == (was == is_)


ROWS = pl.DataFrame({"id": [1, 2, 3], "price": [1.0, 2.0, 3.0]})


def test_changes_of_columns_are_told_and_the_others_compared(datasets: Datasets, put: Put) -> None:
    put("d", ROWS)
    put("d", pl.DataFrame({"id": [1, 2, 4], "price": ["1", "2", "4"], "name": ["x", "y", "z"]}))
    found = datasets.diff("d", 0, 1, key=["id"])
    assert found.columns_added == {"name": "string"}
    assert found.columns_changed == {"price": ["double", "string"]}
    assert (found.added, found.removed, found.changed) == (1, 1, 0)
    assert found.sample_added == [{"id": 4, "price": "4", "name": "z"}]
    back = datasets.diff("d", 1, 0)
    assert back.columns_removed == {"name": "string"}
    assert (back.added, back.removed) == (1, 1)
    put("d", ROWS.rename({"id": "nr", "price": "cost"}))
    assert datasets.diff("d", 0, 2).columns_added == {"nr": "int64", "cost": "double"}


def test_the_key_is_the_contracts_unless_another_is_given(datasets: Datasets, put: Put) -> None:
    put("d", ROWS, key=["id"])
    put("d", ROWS.with_columns(pl.col("price") * 2), key=["id"])
    assert datasets.diff("d", 0).key == ("id",)
    assert datasets.diff("d", 0).changed == 3
    assert datasets.diff("d", 0, key=()).added == 3
    assert datasets.diff("d", "0", "0").same
    put("e", ROWS)
    put("e", ROWS.reverse())
    asked = Datasets(datasets.lake.folder, key_of=lambda run: ["id"] if run == 2 else ["gone"])
    assert asked.diff("e", 0).key == ("id",)
    assert asked.diff("e", 1, 0).key == ()
    assert asked.diff("e", 0).same


def test_a_key_that_names_no_row_is_refused(datasets: Datasets, put: Put) -> None:
    put("d", pl.concat([ROWS, ROWS]))
    put("d", ROWS)
    with pytest.raises(InvalidInput, match=r"several rows of d share the key id=\d"):
        datasets.diff("d", 0, 1, key=["id"])
    with pytest.raises(InvalidInput, match="'nr' is not a column of both d@0 and d@1"):
        datasets.diff("d", 0, 1, key=["nr"])
    with pytest.raises(NotFound, match="no version 2"):
        datasets.diff("d", 0, 2)


def test_samples_are_bounded_and_sorted(datasets: Datasets, put: Put) -> None:
    put("d", pl.DataFrame({"id": range(100)}))
    put("d", pl.DataFrame({"id": range(50, 200)}))
    found = datasets.diff("d", 0, key=["id"], sampled=3)
    assert (found.added, found.removed) == (100, 50)
    assert found.sample_added == [{"id": 100}, {"id": 101}, {"id": 102}]
    assert len(datasets.diff("d", 0, sampled=0).sample_added) == 0


def test_files_of_both_versions_are_not_read(datasets: Datasets, put: Put) -> None:
    from pathlib import Path

    put("d", ROWS, mode="append")
    put("d", ROWS.with_columns(pl.col("id") + 10), mode="append")
    shared = datasets.read("d", 0).files[0]
    whole = Path(shared).read_bytes()
    # The footer, from which rows are counted, is left; its pages are not.
    Path(shared).write_bytes(b"PAR1" + b"\xff" * 40 + whole[44:])
    found = datasets.diff("d", 0, key=["id"])
    assert (found.added, found.removed, found.changed) == (3, 0, 0)
