"""What changed from one version of a dataset to another. Files that both versions have are not read: their
rows are the same. Rows are compared by hashes of 128 bits, in Polars' streaming engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
from pydantic import BaseModel, ConfigDict

from manta.data.lake import Lake
from manta.errors import InvalidInput

SEEDS = (11, 13)
HASHES = [f"\0hash{seed}" for seed in SEEDS]
COUNT = "\0rows"


class Changed(BaseModel):
    """A row that both versions have: its key, and the values that differ, ``{column: [before, after]}``."""

    model_config = ConfigDict(frozen=True)

    key: dict[str, Any]
    values: dict[str, list[Any]]


class Difference(BaseModel):
    """Between two versions of a dataset.

    Attributes:
        key: the columns by which rows were told apart; none: rows were compared whole, and ``changed`` is 0.
        columns_added, columns_removed: name → type.
        columns_changed: name → [type before, type after]; their values are not compared.
        rows_before, rows_after, added, removed, changed: counts of rows.
        changed_in: of the changed rows, how many differ in each column.
        sample_added, sample_removed, sample_changed: some of them.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    before: int
    after: int
    key: tuple[str, ...]
    columns_added: dict[str, str]
    columns_removed: dict[str, str]
    columns_changed: dict[str, list[str]]
    rows_before: int
    rows_after: int
    added: int
    removed: int
    changed: int
    changed_in: dict[str, int]
    sample_added: list[dict[str, Any]]
    sample_removed: list[dict[str, Any]]
    sample_changed: list[Changed]

    @property
    def same(self) -> bool:
        """Whether both hold the same rows and columns."""
        columns = self.columns_added or self.columns_removed or self.columns_changed
        return not (columns or self.added or self.removed or self.changed)


def difference(
    lake: Lake, name: str, before: int, after: int, key: tuple[str, ...], sampled: int
) -> Difference:
    """See :meth:`manta.data.reading.Datasets.diff`.

    Raises:
        InvalidInput: the key is not a column of both, or several rows of one version share it.
    """
    schemas = [lake.schema(name, version) for version in (before, after)]
    types = [{field.name: str(field.type) for field in schema} for schema in schemas]
    for column in key:
        if not all(column in held for held in types):
            raise InvalidInput(
                f"the key {column!r} is not a column of both {name}@{before} and {name}@{after}",
                hint=f"both have {', '.join(each for each in types[0] if each in types[1])}",
            )
    common = [each for each in types[0] if types[1].get(each) == types[0][each]]
    files = [lake.files(name, version) for version in (before, after)]
    old = _only(lake, name, before, files[0], files[1])
    new = _only(lake, name, after, files[1], files[0])
    compare = _by_key if key else _whole
    found = compare(name, old, new, key, common, sampled)
    return Difference(
        name=name,
        before=before,
        after=after,
        key=key,
        columns_added={each: kind for each, kind in types[1].items() if each not in types[0]},
        columns_removed={each: kind for each, kind in types[0].items() if each not in types[1]},
        columns_changed={
            each: [kind, types[1][each]]
            for each, kind in types[0].items()
            if each in types[1] and each not in common
        },
        rows_before=_rows(lake.scan(name, before)),
        rows_after=_rows(lake.scan(name, after)),
        **found,
    )


def _only(lake: Lake, name: str, version: int, files: Sequence[str], others: Sequence[str]) -> pl.LazyFrame:
    """The rows of the files that the other version does not have."""
    content = pl.DataFrame(lake.schema(name, version).empty_table())
    own = [f"{lake.path(name)}/{file}" for file in files if file not in set(others)]
    if not own:
        return content.lazy()
    return pl.scan_parquet(
        own, glob=False, hive_partitioning=False, schema=content.schema, missing_columns="insert"
    )


def _rows(scan: pl.LazyFrame) -> int:
    return int(scan.select(pl.len()).collect(engine="streaming").item())


def _hashed(scan: pl.LazyFrame, columns: Sequence[str]) -> list[pl.Expr]:
    row = pl.struct(columns) if columns else pl.int_range(pl.len()) * 0
    return [row.hash(seed).alias(name) for seed, name in zip(SEEDS, HASHES, strict=True)]


# --- by key -------------------------------------------------------------------------------------------


def _by_key(
    name: str, old: pl.LazyFrame, new: pl.LazyFrame, key: tuple[str, ...], common: list[str], sampled: int
) -> dict[str, Any]:
    rest = [each for each in common if each not in key]
    sides = [scan.select(*key, *_hashed(scan, rest)) for scan in (old, new)]
    for scan in sides:
        _unique(name, scan, key)
    joined = sides[0].join(sides[1], on=key, how="full", nulls_equal=True, coalesce=True, suffix="\0")
    there, here = pl.col(HASHES[0]).is_not_null(), pl.col(f"{HASHES[0]}\0").is_not_null()
    differs = pl.any_horizontal(pl.col(each) != pl.col(f"{each}\0") for each in HASHES)
    kinds = {"added": ~there & here, "removed": there & ~here, "changed": there & here & differs}
    kept = joined.select(
        *key, pl.coalesce(pl.when(which).then(pl.lit(kind)) for kind, which in kinds.items()).alias(COUNT)
    )
    # In memory from here on: the keys of the rows that differ.
    differing = kept.filter(pl.col(COUNT).is_not_null()).collect(engine="streaming")
    keys = {kind: differing.filter(pl.col(COUNT) == kind).select(key) for kind in kinds}
    first = {kind: rows.sort(key).head(sampled) for kind, rows in keys.items()}
    return {
        **{kind: rows.height for kind, rows in keys.items()},
        "changed_in": _changed_in(old, new, keys["changed"], key, rest),
        "sample_added": _of(new, first["added"], key),
        "sample_removed": _of(old, first["removed"], key),
        "sample_changed": _changes(old, new, first["changed"], key, rest),
    }


def _unique(name: str, scan: pl.LazyFrame, key: tuple[str, ...]) -> None:
    repeated = scan.group_by(key).len().filter(pl.col("len") > 1).head(1).collect(engine="streaming")
    if repeated.height:
        shown = ", ".join(f"{column}={repeated[column][0]}" for column in key)
        raise InvalidInput(
            f"several rows of {name} share the key {shown}",
            hint="name columns that tell rows apart, or none to compare whole rows",
        )


def _pairs(
    old: pl.LazyFrame, new: pl.LazyFrame, keys: pl.DataFrame, key: Sequence[str], rest: Sequence[str]
) -> pl.LazyFrame:
    """The rows of both that have one of the keys, side by side; the newer values' names end in a zero."""
    wanted = keys.lazy()
    sides = [
        scan.select(*key, *rest).join(wanted, on=key, how="semi", nulls_equal=True) for scan in (old, new)
    ]
    return sides[0].join(sides[1], on=key, nulls_equal=True, suffix="\0")


def _changed_in(
    old: pl.LazyFrame, new: pl.LazyFrame, keys: pl.DataFrame, key: Sequence[str], rest: list[str]
) -> dict[str, int]:
    if keys.is_empty() or not rest:
        return {}
    pairs = _pairs(old, new, keys, key, rest)
    counts = pairs.select(_differs(each).sum() for each in rest).collect(engine="streaming")
    return {each: count for each, count in counts.row(0, named=True).items() if count}


def _differs(column: str) -> pl.Expr:
    # By hash, for not every type can be compared; NaN is like NaN.
    sides = [pl.struct(pl.col(each).alias("")).hash() for each in (column, f"{column}\0")]
    return (sides[0] != sides[1]).alias(column)


def _changes(
    old: pl.LazyFrame, new: pl.LazyFrame, keys: pl.DataFrame, key: Sequence[str], rest: list[str]
) -> list[Changed]:
    pairs = _pairs(old, new, keys, key, rest)
    marks = [_differs(each).alias(f"{each}\0\0") for each in rest]
    rows = pairs.with_columns(marks).collect(engine="streaming").sort(key)
    return [
        Changed(
            key={each: row[each] for each in key},
            values={each: [row[each], row[f"{each}\0"]] for each in rest if row[f"{each}\0\0"]},
        )
        for row in rows.iter_rows(named=True)
    ]


def _of(scan: pl.LazyFrame, keys: pl.DataFrame, key: Sequence[str]) -> list[dict[str, Any]]:
    return scan.join(keys.lazy(), on=key, how="semi", nulls_equal=True).collect().sort(key).to_dicts()


# --- whole rows ---------------------------------------------------------------------------------------


def _whole(
    name: str, old: pl.LazyFrame, new: pl.LazyFrame, key: tuple[str, ...], common: list[str], sampled: int
) -> dict[str, Any]:
    """Rows as multisets: of one that comes three times before and once after, two are removed."""
    counted = [
        scan.select(_hashed(scan, common)).group_by(HASHES).agg(pl.len().cast(pl.Int64).alias(COUNT))
        for scan in (old, new)
    ]
    joined = counted[0].join(counted[1], on=HASHES, how="full", coalesce=True, suffix="\0")
    more = pl.col(f"{COUNT}\0").fill_null(0) - pl.col(COUNT).fill_null(0)
    differing = (
        joined.select(*HASHES, more.alias(COUNT)).filter(pl.col(COUNT) != 0).collect(engine="streaming")
    )
    added, removed = differing.filter(pl.col(COUNT) > 0), differing.filter(pl.col(COUNT) < 0)
    return {
        "added": int(added[COUNT].sum()),
        "removed": -int(removed[COUNT].sum()),
        "changed": 0,
        "changed_in": {},
        "sample_added": _some(new, added, common, sampled),
        "sample_removed": _some(old, removed, common, sampled),
        "sample_changed": [],
    }


def _some(scan: pl.LazyFrame, wanted: pl.DataFrame, common: list[str], sampled: int) -> list[dict[str, Any]]:
    first = wanted.sort(HASHES).head(sampled).select(HASHES).lazy()
    rows = scan.with_columns(_hashed(scan, common)).join(first, on=HASHES, how="semi")
    return rows.unique(HASHES, keep="any").sort(HASHES).drop(HASHES).collect().to_dicts()
