"""The join on disk against the one in memory, and both against DuckDB's ASOF and the oracle in plain Python.

MANTA_EXAMPLES says how many cases are drawn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st

from manta.data.lake import Lake
from manta.errors import DefinitionInvalid, InvalidInput
from manta.features import asof, partitioned
from manta.features.asof import Side
from manta.features.historical import Retrieval
from manta.features.partitioned import Limits

from .test_asof_join import EPOCH, EXAMPLES, by_oracle, cases, held

DRAWN: Any = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}


def on_disk(
    frame: pl.DataFrame, sides: list[Side], block: int, hide_late: bool, on_ray: bool = False
) -> list[pl.DataFrame]:
    with tempfile.TemporaryDirectory() as folder:
        rows = frame.to_arrow()
        spool = partitioned.spool(iter(rows.to_batches()), rows.schema, Path(folder), block)
        joined = partitioned.join(spool, "at", sides, Path(folder), hide_late=hide_late, on_ray=on_ray)
        blocks = [joined.assemble(number) for number in spool.blocks]
        assert pl.concat([pl.DataFrame(rows) for rows, _ in blocks]).equals(frame)
        return [pl.concat([features[n] for _, features in blocks]) for n in range(len(sides))]


@given(st.data())
@example_settings(max_examples=EXAMPLES or 30, **DRAWN)
def test_on_disk_equals_in_memory(data: st.DataObject) -> None:
    """Several views, of the same keys and of others, partitioned by any number of rows."""
    case = data.draw(cases())
    frame, first = held(case)
    if frame.is_empty():
        return
    others = [held(data.draw(cases()))[1] for _ in range(data.draw(st.integers(0, 2)))]
    sides = [first, *others]
    block = data.draw(st.integers(1, 8))
    expected = asof.join(frame, "at", sides, hide_late=case["hide_late"])
    found = on_disk(frame, sides, block, case["hide_late"])
    assert [each.to_dicts() for each in found] == [each.to_dicts() for each in expected]


@given(cases(), st.integers(1, 8))
@example_settings(max_examples=EXAMPLES or 30, **DRAWN)
def test_on_disk_equals_the_oracle(case: dict[str, Any], block: int) -> None:
    frame, side = held(case)
    if frame.is_empty():
        return
    expected = by_oracle(case)
    (found,) = on_disk(frame, [side], block, case["hide_late"])
    assert found["found"].to_list() == expected


@given(cases())
@example_settings(max_examples=EXAMPLES or 30, **DRAWN)
def test_equals_the_asof_join_of_duckdb(case: dict[str, Any]) -> None:
    frame, side = held(case | {"hide_late": False})
    assert asof.join(frame, "at", [side])[0]["found"].to_list() == by_duckdb(frame, side)


def by_duckdb(frame: pl.DataFrame, side: Side) -> list[int | None]:
    """Which row of a view (`position`, at `t`, made at `c`) each row gets at its `at`.

    DuckDB takes one of several rows of a time, so the last of each is what it is given.
    """
    keys, view = list(side.keys), side.frame.collect()
    view = view.with_columns(_utc(view, "t"), _utc(view, "c")).drop_nulls(["t"])
    by = ["t", "c"] if side.created else ["t"]
    view = view.sort(by, nulls_last=False, maintain_order=True).unique([*keys, "t"], keep="last")
    entity = frame.with_columns(_utc(frame, "at")).with_row_index("i")
    on = " and ".join([*(f"e.{key} = v.{key}" for key in keys), "e.at >= v.t"])
    ttl = f"and epoch_us(v.t) >= epoch_us(e.at) - {round(side.ttl_seconds * 1e6)}" if side.ttl_seconds else ""
    with duckdb.connect() as database:
        database.execute("set TimeZone='UTC'")
        database.register("entity", entity.to_arrow())
        database.register("view", view.to_arrow())
        asked = f"""select i, case when true {ttl} then v.position end from entity e
                    asof left join view v on {on} order by i"""
        return [row[1] for row in database.execute(asked).fetchall()]


def _utc(frame: pl.DataFrame, name: str) -> pl.Expr:
    return asof.utc(name, frame.schema[name]).alias(name)


# --- the parts ----------------------------------------------------------------------------------------------


def many(count: int) -> tuple[pl.DataFrame, list[Side]]:
    n = pl.int_range(count)
    hour = pl.lit(EPOCH) + pl.duration(seconds=n * 7919 % 90_000)
    frame = pl.select(row=n, k=pl.format("k{}", n * 31 % 97), n=n % 13, at=hour)
    rows = pl.select(k=pl.format("k{}", n % 97), n=n * 7 % 13, t=hour.shuffle(1), x=n.cast(pl.Float64))
    keyed = {"k": ("k", "string"), "n": ("n", "int64")}
    sides = [
        Side("v", rows.lazy(), keys, "t", None, ttl, {"x": ("x", "float64")})
        for keys, ttl in ((keyed, 0.0), ({"k": keyed["k"]}, 3600.0), ({"k": keyed["k"]}, 0.0), ({}, 0.0))
    ]
    return frame, sides


def test_every_row_is_kept_once_and_in_order_whatever_the_partitions() -> None:
    frame, sides = many(5_000)
    expected = asof.join(frame, "at", sides)
    for block in (700, 2_500, 5_000, 9_999):
        found = on_disk(frame, sides, block, hide_late=False)
        assert all(mine.equals(theirs) for mine, theirs in zip(found, expected, strict=True)), block


@pytest.mark.ray
def test_rays_workers_give_the_same(ray_cluster: None) -> None:
    frame, sides = many(3_000)
    expected = asof.join(frame, "at", sides)
    found = on_disk(frame, sides, 1_000, hide_late=False, on_ray=True)
    assert all(mine.equals(theirs) for mine, theirs in zip(found, expected, strict=True))


def test_nothing_of_what_was_spilled_is_left(tmp_path: Path) -> None:
    frame, _sides = many(900)
    asked = Retrieval(time="at", views=[], sides=[], on_demand=[], names={}, hide_late=False)
    limits = Limits(in_process_rows=0, partition_rows=100, folder=str(tmp_path / "spill"))
    blocks = asked.blocks(frame.to_arrow(), limits)
    assert next(blocks).num_rows == 100
    assert len(list((tmp_path / "spill").iterdir())) == 1
    blocks.close()  # type: ignore[attr-defined]
    assert list((tmp_path / "spill").iterdir()) == []
    assert asked.table(frame.to_arrow(), limits).num_rows == 900
    assert list((tmp_path / "spill").iterdir()) == []


def test_what_is_wrong_is_said_as_in_memory(tmp_path: Path) -> None:
    frame, (side, *_) = many(10)
    with pytest.raises(InvalidInput, match="no column k"):
        on_disk(frame.drop("k"), [side], 5, hide_late=False)
    with pytest.raises(InvalidInput, match="join key 'n' as String"):
        on_disk(frame.with_columns(pl.col("n").cast(pl.String)), [side], 5, hide_late=False)
    gone = Side("v", side.frame.drop("x"), side.keys, "t", None, 0.0, side.features)
    with pytest.raises(DefinitionInvalid, match="has no column x"):
        on_disk(frame, [gone], 5, hide_late=False)


def test_a_few_rows_read_their_own_keys_of_a_large_view(monkeypatch: pytest.MonkeyPatch) -> None:
    frame, sides = many(2_000)
    few = frame.gather_every(100)
    expected = asof.join(few, "at", sides)
    monkeypatch.setattr(asof, "FEW", -1)  # all of each view
    every = asof.join(few, "at", sides)
    assert all(mine.equals(theirs) for mine, theirs in zip(expected, every, strict=True))


def test_batches_of_any_size_become_blocks(tmp_path: Path) -> None:
    whole = pa.table({"x": list(range(100))})
    sizes = [1, 30, 0, 7, 62]
    batches = [whole.slice(sum(sizes[:i]), size).combine_chunks() for i, size in enumerate(sizes)]
    every = (batch for table in batches for batch in table.to_batches())
    spool = partitioned.spool(every, whole.schema, tmp_path, 25)
    assert [spool.read(block)["x"].to_pylist() for block in spool.blocks] == [
        list(range(start, start + 25)) for start in range(0, 100, 25)
    ]


def test_the_datasets_folder_is_where_it_is_spilled(tmp_path: Path) -> None:
    assert partitioned.limits_of(Lake(tmp_path)).folder == str(tmp_path / ".spill")
