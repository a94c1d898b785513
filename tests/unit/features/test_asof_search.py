"""The search among 64-bit numbers: times and keys that need every way to make such a number, and the ways
themselves. The oracle is that of the join; MANTA_EXAMPLES says how many cases are drawn."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from manta.features import asof, asof_search
from manta.features.asof import Side, join
from manta.features.asof_search import Asked

from .test_asof_join import EXAMPLES, oracle
from .test_partitioned_join import by_duckdb, on_disk

DRAWN: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
INSTANT = pl.Datetime("us", "UTC")
# By type: keys side by side, keys with gaps, keys so far apart that they must be numbered, and others.
KEYS: dict[str, list[tuple[str, list[Any]]]] = {
    "close": [("int64", [-1, 0, 1, 2, 3])],
    "gaps": [("int64", [-30_000, -1, 0, 7, 30_000])],
    "far": [("int64", [-(2**63), -1, 0, 7, 2**63 - 1])],
    "text": [("string", ["", "a", "b", "ab", "é"])],
    "two": [("int32", [-2, -1, 0, 1, 300]), ("int64", [5, 6, 7, 8, 105])],
    "mixed": [("string", ["a", "b", "c", "d", "e"]), ("int64", [1, 2, 3, 4, 5])],
    "bool": [("bool", [False, True])],
    "bytes": [("bytes", [b"", b"a", b"b", b"\xff", b"ab"])],
}
TYPES = {"int64": pl.Int64, "int32": pl.Int32, "string": pl.String, "bool": pl.Boolean, "bytes": pl.Binary}


@st.composite
def wide_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Times from some microseconds to 140,000 years apart, before 1970 and after; keys of all kinds, some
    that only one side has. Few different times, so that ties and late rows are the rule."""
    chance = draw(st.randoms(use_true_random=False))
    keys = KEYS[draw(st.sampled_from(sorted(KEYS)))]
    reach, unit = 2 ** draw(st.sampled_from([2, 30, 50, 61])), draw(st.sampled_from([1, 1_000, 1_000_000]))
    few = [chance.randrange(-reach, reach) // unit * unit for _ in range(draw(st.integers(1, 8)))]
    near = [*few, *few, *(time + step for time in few for step in (-1, 1)), None]

    def rows(count: int, pools: list[list[Any]], **times: list[Any]) -> list[dict[str, Any]]:
        # Of the keys mostly one, so that it has several rows.
        drawn = {f"k{at}": [*pool, *pool[1:2] * 6, None] for at, pool in enumerate(pools)} | times
        return [{name: chance.choice(values) for name, values in drawn.items()} for _ in range(count)]

    own, theirs = [values[:4] for _, values in keys], [[values[-1], *values[1:-1]] for _, values in keys]
    return {
        "kinds": {f"k{at}": kind for at, (kind, _) in enumerate(keys)},
        "entity": rows(draw(st.integers(0, 15)), own, at=near),
        "rows": rows(draw(st.integers(0, 30)), theirs, t=[*few, None], c=draw(st.sampled_from([near, few]))),
        "ttl": draw(st.sampled_from([0.0, 0.0, 1e-6, unit / 1e6, reach / 1e6, 9.2e12, 1e15])),
        "created": draw(st.sampled_from([True, True, False])),
        "hide_late": draw(st.booleans()),
        "few": draw(st.booleans()),
    }


@given(wide_cases())
@example_settings(max_examples=EXAMPLES or 300, **DRAWN)
def test_equals_the_oracle_whatever_the_keys_and_times(case: dict[str, Any]) -> None:
    types = {name: TYPES[kind] for name, kind in case["kinds"].items()}
    entity = pl.DataFrame(case["entity"], schema={**types, "at": pl.Int64}).cast({"at": INSTANT})
    rows = pl.DataFrame(case["rows"], schema={**types, "t": pl.Int64, "c": pl.Int64})
    side = Side(
        label="the view",
        frame=rows.cast({"t": INSTANT, "c": INSTANT}).with_row_index("position").lazy(),
        keys={name: (name, kind) for name, kind in case["kinds"].items()},
        time="t",
        created="c" if case["created"] else None,
        ttl_seconds=case["ttl"],
        features={"found": ("position", "int64")},
    )
    ttl = round(case["ttl"] * 1_000_000)
    expected = oracle(
        case["entity"], case["rows"], [*case["kinds"]], ttl or None, case["created"], case["hide_late"]
    )
    with pytest.MonkeyPatch.context() as patch:
        if not case["few"]:  # the keys that no entity row has are read too
            patch.setattr(asof, "FEW", -1)
        (answer,) = join(entity, "at", [side], hide_late=case["hide_late"])
    assert answer["found"].to_list() == expected


def test_a_ttl_that_reaches_before_all_times_excludes_nothing() -> None:
    times = pl.Series([-(2**61), 2**61])
    view = pl.DataFrame({"__ts": [-(2**61) - 5]}).with_columns(__created=None)
    for ttl, found in ((2**61, [0, None]), (2**63 - 2**60, [0, 0]), (2**64, [0, 0])):
        rows = Asked(pl.DataFrame(), times).rows_of(view, ttl, created=False, hide_late=False)
        assert rows.to_list() == found


@given(st.lists(st.integers(0, 2**63 - 1)), st.integers(0, 63), st.integers(1, 50))
@example_settings(max_examples=EXAMPLES or 300, **DRAWN)
def test_the_order_is_that_of_a_stable_sort(drawn: list[int], cut: int, often: int) -> None:
    """Also of numbers that differ only in bits that are not sorted with the position, and of many."""
    number = [each >> cut for each in drawn for _ in range(often)]
    found = asof_search._order(np.array(number, dtype=np.int64), 2**63)
    assert found.tolist() == sorted(range(len(number)), key=number.__getitem__)


@given(st.data())
@example_settings(max_examples=EXAMPLES or 300, **DRAWN)
def test_the_clock_keeps_what_is_not_above_what(data: st.DataObject) -> None:
    unit = data.draw(st.sampled_from([1, 1_000, 1_000_000]))
    times = st.lists(st.integers(-(2**62), 2**62).map(lambda time: time // unit * unit), min_size=1)
    held = data.draw(times)
    asked = [time + data.draw(st.integers(-2, 2)) for time in [*held, *data.draw(times)]]
    room = data.draw(st.sampled_from([2**63, 2**50, 2**44, 1_000]))
    arrays = [np.array(each, dtype=np.int64) for each in (asked, held)]
    (mine, theirs), span = asof_search._clock(arrays, room, whole=arrays[1:])
    assert span <= room
    assert 0 <= min(*mine, *theirs) <= max(*mine, *theirs) < span
    assert [[t <= a for t in theirs] for a in mine] == [[t <= a for t in held] for a in asked]


@pytest.mark.parametrize(
    ("kind", "keys", "count"),
    [
        ("as they are", {"k": [5, 9, None]}, 5),
        ("as they are", {"k": [5, 9], "n": [0, -2]}, 15),
        ("numbered", {"k": [5, 2**40, 5, None]}, 2),
        ("numbered", {"k": [5, 60_000], "n": [0, 60_000]}, 2),
        ("numbered", {"k": ["b", "a", None, "b"]}, 2),
        ("numbered", {"k": [None]}, 1),
    ],
)
def test_keys_are_codes_as_they_are_or_numbered(kind: str, keys: dict[str, list[Any]], count: int) -> None:
    frame = pl.DataFrame(keys)
    codes = Asked(frame, pl.repeat(0, frame.height, eager=True))._codes
    assert codes.count == count
    assert (asof_search._direct(frame, asof_search.WIDE) is not None) is (kind == "as they are")
    found = codes.of(frame, frame.height)
    assert found.null_count() == frame.height - frame.drop_nulls().height
    assert found.drop_nulls().is_between(0, count - 1).all()
    assert found.n_unique() == frame.drop_nulls().unique().height + (found.null_count() > 0)


# --- many cases at once -------------------------------------------------------------------------------------

# What one key gets must not depend on the keys beside it, and each case is a key of its own.
CASES = EXAMPLES // 12 + 1 if EXAMPLES else 60
SCALES = [3_600_000_000, 2**50 // 10**6 * 10**6, 2**50 + 1]  # microseconds: an hour, some 35 years, odd


def many_cases(seed: int) -> tuple[pl.DataFrame, Side, bool, list[int | None]]:
    """Entity rows of many cases, the side and whether late rows are hidden; and what the oracle says."""
    chance = random.Random(seed)
    scale, keys = chance.choice(SCALES), chance.choice([["case"], ["case", "k"], ["case", "n"]])
    created, hide_late, ttl = seed % 2 == 0, seed % 4 < 2 or chance.random() < 0.3, seed % 3 * scale
    pools = {"k": ["a", "a", "b", None], "n": [0, 0, 1, None]}

    def rows(case: int, most: int, **times: list[int | None]) -> list[dict[str, Any]]:
        drawn = pools | times
        return [
            {"case": case} | {name: chance.choice(values) for name, values in drawn.items()}
            for _ in range(chance.randint(0, most))
        ]

    hours = [*(hour * scale for hour in range(-4, 4)), None]
    entity, view, expected = [], [], list[int | None]()
    for case in range(CASES):
        asked = rows(case, 12, at=hours)
        held = rows(case, 25, t=hours, c=hours)
        found = oracle(asked, held, keys, ttl or None, created, hide_late)
        expected += [None if position is None else len(view) + position for position in found]
        entity, view = entity + asked, view + held
    types = {"case": pl.Int64, "k": pl.String, "n": pl.Int64}
    kinds = {"case": "int64", "k": "string", "n": "int64"}
    frame = pl.DataFrame(view, schema={**types, "t": pl.Int64, "c": pl.Int64})
    side = Side(
        label="the view",
        frame=frame.cast({"t": INSTANT, "c": INSTANT}).with_row_index("position").lazy(),
        keys={key: (key, kinds[key]) for key in keys},
        time="t",
        created="c" if created else None,
        ttl_seconds=ttl / 1e6,
        features={"found": ("position", "int64")},
    )
    rows_asked = pl.DataFrame(entity, schema={**types, "at": pl.Int64}).cast({"at": INSTANT})
    return rows_asked, side, hide_late, expected


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("block", [None, 500], ids=["in memory", "on disk"])
def test_many_cases_at_once_equal_the_oracle(
    seed: int, block: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entity, side, hide_late, expected = many_cases(seed)
    monkeypatch.setattr(asof, "FEW", -1)
    if block is None:
        (found,) = join(entity, "at", [side], hide_late=hide_late)
    else:
        (found,) = on_disk(entity, [side], max(block, entity.height // 7), hide_late)
    assert found["found"].to_list() == expected


@pytest.mark.parametrize("seed", range(12))
def test_many_cases_at_once_equal_the_asof_join_of_duckdb(seed: int) -> None:
    entity, side, _, _ = many_cases(seed)
    expected = by_duckdb(entity, side)
    assert join(entity, "at", [side])[0]["found"].to_list() == expected
