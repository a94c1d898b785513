"""Keys across a whole dataset: of the rows that share a key, all but the first are refused; or, in an upsert,
the last is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from manta.data.contract import REFUSED, as_text
from manta.data.lake import write_part
from manta.data.sketch import Sketch, sketch

SORTED_HASHES = 2**23


@dataclass(frozen=True, eq=False)
class Part:
    """A staged Parquet file: good rows of one source file, in its order.

    Attributes:
        rows: how many it holds.
        numbers: the number in the source file of every row it holds, where the source numbers them itself.
        first: otherwise the number of the first row it stands for,
        left_out: and the rows it stands for but does not hold, ascending, counted from 0 at ``first``.
        sketch: of what it holds, for the version's profile.
        hashes: of the key of every row it holds, eight bytes each; None where they have not been made.
    """

    path: str
    file: str
    rows: int
    first: int = 1
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    numbers: np.ndarray | None = None
    sketch: Sketch | None = None
    hashes: np.ndarray | None = None

    def source_rows(self) -> np.ndarray:
        """The number in the source file of every row it holds."""
        if self.numbers is not None:
            return self.numbers
        stood_for = np.arange(self.rows + len(self.left_out))
        return np.delete(stood_for, self.left_out) + self.first

    def shifted(self, rows: int) -> Part:
        """The same, so many rows further in its file."""
        return self if self.numbers is not None else replace(self, first=self.first + rows)

    def without(self, index: np.ndarray, folder: str) -> Part:
        """What is left when the rows at these indices are gone, written into ``folder``."""
        keep = np.ones(self.rows, dtype=bool)
        keep[index] = False
        rest = pl.read_parquet(self.path, glob=False).filter(keep)
        path = f"{folder}/{Path(self.path).stem}-unique.parquet"
        write_part(rest, path)
        if path != self.path:
            Path(self.path).unlink()
        left = replace(self, path=path, rows=rest.height, sketch=self.sketch and sketch(rest))
        if self.hashes is not None:
            left = replace(left, hashes=np.delete(self.hashes, index))
        if self.numbers is not None:
            return replace(left, numbers=np.delete(self.numbers, index))
        return replace(left, left_out=np.union1d(self.left_out, self.source_rows()[index] - self.first))


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
        reasons = [
            f"key ({', '.join(key)}) is that of {parts[where].file} row {numbers[where][at]}"
            for where, at in rows.select("first_part", "first_row").iter_rows()
        ]
        kept[number], lost = _take_out(parts[number], rows["index"].to_numpy(), reasons, key, folder)
        refused.append(lost)
    return kept, refused


def refuse_held(
    parts: Sequence[Part], key: Sequence[str], held: pl.DataFrame, version: int, folder: str
) -> tuple[list[Part], list[pl.DataFrame]]:
    """Take rows whose key is among ``held``, the keys that ``version`` has, out of ``parts``; as
    :func:`refuse_repeated`."""
    kept: list[Part] = list(parts)
    refused: list[pl.DataFrame] = []
    if held.is_empty():
        return kept, refused
    for number, part in enumerate(parts):
        index = (
            pl.read_parquet(part.path, columns=list(key), glob=False)
            .with_row_index("index")
            .join(held, on=key, how="semi", nulls_equal=True, maintain_order="left")["index"]
            .to_numpy()
        )
        if len(index):
            reasons = [f"key ({', '.join(key)}) is in version {version} already"] * len(index)
            kept[number], lost = _take_out(part, index, reasons, key, folder)
            refused.append(lost)
    return kept, refused


def keep_last(parts: Sequence[Part], key: Sequence[str], folder: str) -> list[Part]:
    """Drop rows whose key a later row has: what is left is what the source held last."""
    suspects = _suspects(parts, key)
    if suspects.is_empty():
        return list(parts)
    lasts = suspects.unique(key, keep="last", maintain_order=True).select("part", "index")
    older = suspects.join(lasts, on=["part", "index"], how="anti", maintain_order="left")
    kept = list(parts)
    for (number,), rows in older.partition_by("part", as_dict=True, maintain_order=True).items():
        kept[number] = parts[number].without(rows["index"].to_numpy(), folder)
    return kept


def hashes(frame: pl.DataFrame, key: Sequence[str]) -> np.ndarray:
    """Of the key of each row. Made by the same version of Polars, those of equal keys are equal."""
    return frame.select(pl.struct(*key).hash()).to_series().to_numpy()


def _suspects(parts: Sequence[Part], key: Sequence[str]) -> pl.DataFrame:
    """The rows that share their key with another: ``part``, ``index`` in it, and the key, in source order."""
    # Hashes first: where no key is repeated, this is all there is to do.
    held = [_hashes(part, key) for part in parts]
    repeated = _repeated(held)
    rows = []
    for number, part in enumerate(parts):
        if not len(repeated):
            break
        index = np.flatnonzero(np.isin(held[number], repeated))
        if len(index):
            rows.append(
                pl.read_parquet(part.path, columns=list(key), glob=False)[index].select(
                    pl.lit(number, pl.Int32).alias("part"),
                    pl.Series("index", index, dtype=pl.get_index_type()),
                    *key,
                )
            )
    if not rows:
        return pl.DataFrame()
    return pl.concat(rows).filter(pl.struct(*key).is_duplicated())


def _hashes(part: Part, key: Sequence[str]) -> np.ndarray:
    if part.hashes is not None:
        return part.hashes
    return hashes(pl.read_parquet(part.path, columns=list(key), glob=False), key)


def _repeated(held: Sequence[np.ndarray]) -> np.ndarray:
    """The hashes that come more than once, sorted. Beside ``held`` it takes memory for SORTED_HASHES."""
    shares = max(1, sum(map(len, held)) // SORTED_HASHES)
    found = []
    for share in range(shares):
        mine = [each[each % shares == share] if shares > 1 else each for each in held]
        some = np.sort(np.concatenate([np.zeros(0, dtype=np.uint64), *mine]))
        found.append(np.unique(some[1:][some[1:] == some[:-1]]))
    return np.sort(np.concatenate(found))


def _take_out(
    part: Part, index: np.ndarray, reasons: list[str], key: Sequence[str], folder: str
) -> tuple[Part, pl.DataFrame]:
    held = pl.read_parquet(part.path, glob=False)
    lost = held[index].select(
        file=pl.lit(part.file),
        row=pl.Series(part.source_rows()[index], dtype=pl.Int64),
        reason=pl.Series(reasons, dtype=pl.String),
        rules=pl.Series([[f"key ({', '.join(key)}) is repeated"]] * len(reasons), dtype=REFUSED["rules"]),
        source=pl.DataFrame([as_text(column) for column in held[index]]).to_struct().struct.json_encode(),
    )
    return part.without(index, folder), pl.DataFrame(lost, schema=REFUSED)
