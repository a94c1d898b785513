"""Keys across a whole dataset: of the rows that share a key, all but the first are refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from manta.data.contract import REFUSED
from manta.data.lake import write_part


@dataclass(frozen=True, eq=False)
class Part:
    """A staged Parquet file: good rows of one source file, in its order.

    Attributes:
        first: the number, in the source file, of the first row it stands for.
        rows: how many it holds.
        left_out: the rows it stands for but does not hold, ascending, counted from 0 at ``first``.
    """

    path: str
    file: str
    first: int
    rows: int
    left_out: np.ndarray

    def source_rows(self) -> np.ndarray:
        """The number in the source file of every row it holds."""
        stood_for = np.arange(self.rows + len(self.left_out))
        return np.delete(stood_for, self.left_out) + self.first


def refuse_repeated(
    parts: Sequence[Part], key: Sequence[str], folder: str
) -> tuple[list[Part], list[pl.DataFrame]]:
    """Take rows whose key an earlier row has out of ``parts``, which are in source order.

    Gives the parts, those that lost rows written anew into ``folder``, and the rows taken out, as REFUSED.
    Null equals null in a key.
    """
    suspects = _suspects(parts, key)
    if suspects.is_empty():
        return list(parts), []
    firsts = suspects.unique(key, keep="first", maintain_order=True)
    earlier = firsts.select(*key, first_part="part", first_row="index")
    repeated = (
        suspects.join(earlier, on=key, how="left", nulls_equal=True, maintain_order="left")
        .filter((pl.col("part") != pl.col("first_part")) | (pl.col("index") != pl.col("first_row")))
        .partition_by("part", as_dict=True, maintain_order=True)
    )
    kept, refused = list(parts), []
    numbers: dict[int, np.ndarray] = {}
    for (number,), rows in repeated.items():
        for one in {number, *rows["first_part"].unique()}:
            if one not in numbers:
                numbers[one] = parts[one].source_rows()
        kept[number], lost = _take_out(parts, number, rows, key, numbers, folder)
        refused.append(lost)
    return kept, refused


def _suspects(parts: Sequence[Part], key: Sequence[str]) -> pl.DataFrame:
    """The rows that share their key with another: ``part``, ``index`` in it, and the key, in source order."""
    # Hashes first, eight bytes a row: where no key is repeated, this is all there is to do.
    hashes = [
        pl.scan_parquet(part.path, glob=False)
        .select(pl.struct(*key).hash().alias("hash"), pl.lit(number, pl.Int32).alias("part"))
        .with_row_index("index")
        .collect()
        for number, part in enumerate(parts)
    ]
    if not hashes:
        return pl.DataFrame()
    alike = pl.concat(hashes).filter(pl.col("hash").is_duplicated())
    rows = [
        pl.read_parquet(parts[number].path, columns=list(key), glob=False)
        .with_row_index("index")
        .join(some.select("index"), on="index", how="semi", maintain_order="left")
        .select(pl.lit(number, pl.Int32).alias("part"), "index", *key)
        for (number,), some in alike.partition_by("part", as_dict=True, maintain_order=True).items()
    ]
    if not rows:
        return pl.DataFrame()
    return pl.concat(rows).filter(pl.struct(*key).is_duplicated())


def _take_out(
    parts: Sequence[Part],
    number: int,
    rows: pl.DataFrame,
    key: Sequence[str],
    numbers: dict[int, np.ndarray],
    folder: str,
) -> tuple[Part, pl.DataFrame]:
    part = parts[number]
    held = pl.read_parquet(part.path, glob=False)
    index = rows["index"].to_numpy()
    named = ", ".join(key)
    reasons = [
        f"key ({named}) is that of {parts[where].file} row {numbers[where][at]}"
        for where, at in rows.select("first_part", "first_row").iter_rows()
    ]
    lost = held[index].select(
        file=pl.lit(part.file),
        row=pl.Series(numbers[number][index], dtype=pl.Int64),
        reason=pl.Series(reasons, dtype=pl.String),
        rules=pl.Series([[f"key ({named}) is repeated"]] * len(reasons), dtype=REFUSED["rules"]),
        source=pl.struct(pl.all().cast(pl.String)).struct.json_encode(),
    )
    keep = np.ones(part.rows, dtype=bool)
    keep[index] = False
    path = f"{folder}/{Path(part.path).stem}-unique.parquet"
    write_part(held.filter(keep), path)
    Path(part.path).unlink()
    left_out = np.union1d(part.left_out, numbers[number][index] - part.first)
    taken = replace(part, path=path, rows=int(keep.sum()), left_out=left_out)
    return taken, pl.DataFrame(lost, schema=REFUSED)
