"""Which row of a view each entity row gets: a search among 64-bit numbers.

The join keys become a code, a whole number from 0, and a row's code and time together one number,
``code * span + time``, which orders rows by key and then by time. In that order the row wanted is the last
one whose number is not above the entity row's own; where it has another code, the key has no row so early. So
one sort of each side and one search take the place of a join by key. The entity rows are sorted only for
speed: a search for ascending numbers stays within memory that is near.

The number of codes times the span of the times must fit into 63 bits. Codes are dense where the keys
themselves are not; times are counted in the largest unit that loses nothing, and where that does not do, by
their place among all times, which always does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

TS, CREATED = "__ts", "__created"  # of a view's rows, in microseconds
ROOM = 2**63 - 1  # a number fits that is smaller
UNITS = (1, 1_000, 1_000_000)  # microseconds
WIDE = 2**16  # codes that are no matter, however few the entity rows
NOWHERE = 2**32 - 1  # Polars has no row of this number
Numbers = np.ndarray[Any, np.dtype[np.int64]]


class Asked:
    """Entity rows, sorted once for all views that they are joined to by the same keys."""

    def __init__(self, keys: pl.DataFrame, at: pl.Series) -> None:
        """``at`` are their times in microseconds. Rows with a null key or a null time get nothing."""
        self._height = at.len()
        self._codes = _direct(keys, max(WIDE, 2 * at.len())) or _dense(keys)
        rows = pl.DataFrame({"code": self._codes.of(keys, at.len()), "at": at}).with_row_index("row")
        code, when, row = (column.to_numpy() for column in rows.drop_nulls().select("code", "at", "row"))
        if row.size:
            (time,), span = _clock([when], self._codes.room, whole=[when])
            order = _order(code * span + time, self._codes.count * span)
            code, when, row = code[order], when[order], row[order]
        self._code, self._at, self._row = code, when, row

    def rows_of(self, view: pl.DataFrame, ttl: int, *, created: bool, hide_late: bool) -> pl.Series:
        """Which row of the view each entity row gets, by position; null where none is.

        Args:
            view: has the keys by the same names, :data:`TS`, none of them null, and :data:`CREATED`. Of equal
                rows the later is taken.
            ttl: in microseconds; 0 is for ever.
            created: whether :data:`CREATED` ranks rows of one time, null first.
            hide_late: with ``created``, only what was known is taken; :data:`CREATED` has no null then.
        """
        codes = self._codes.of(view, view.height)
        if codes.null_count():  # keys that no entity row has
            ours = codes.is_not_null().arg_true()
            view = view.select(*self._codes.names, TS, CREATED)[ours]
            return ours.gather(self.rows_of(view, ttl, created=created, hide_late=hide_late))
        if not self._row.size or view.is_empty():
            return pl.repeat(None, self._height, dtype=pl.UInt32, eager=True)
        event, late = view[TS].to_numpy(), hide_late and created
        # Known from max(event, created) on.
        times = [event, *([np.maximum(event, view[CREATED].to_numpy())] if late else [])]
        (at, ts, *known), span = _clock([self._at, *times], self._codes.room, whole=times)
        key, limit = codes.to_numpy() * span, self._codes.count * span
        row, number = _ranked(key + ts, limit, view[CREATED] if created else None)
        if late:
            row, number = _best(row, (key + known[0])[row], limit)
        least, most = self._code * span, self._code * span + at
        last = np.maximum(np.searchsorted(number, most, side="right") - 1, 0)
        row, number = row[last], number[last]
        there = (least <= number) & (number <= most)
        if ttl and ttl < ROOM:
            there &= event[row] >= np.maximum(self._at, ttl - ROOM) - ttl
        return self._placed(np.where(there, row, NOWHERE))

    def _placed(self, found: Numbers) -> pl.Series:
        """What the sorted rows got, in the entity rows' order."""
        rows = np.full(self._height, NOWHERE, dtype=np.uint32)
        rows[self._row] = found
        series = pl.Series("row", rows)
        return series.to_frame().select(pl.when(pl.col("row") != NOWHERE).then(pl.col("row"))).to_series()


def _ranked(number: Numbers, limit: int, created: pl.Series | None) -> tuple[Numbers, Numbers]:
    """The rows by number, the worst candidate first, and their numbers in this order."""
    row = _order(number, limit)
    ordered = number[row]
    if created is not None and (ordered[1:] == ordered[:-1]).any():
        by = pl.arg_sort_by("number", "created", nulls_last=False, maintain_order=True)
        row = pl.DataFrame({"number": number, "created": created}).select(by).to_series().to_numpy()
    return row, ordered


def _best(row: Numbers, known: Numbers, limit: int) -> tuple[Numbers, Numbers]:
    """The same for rows that become known at other times: in the order of those, the best row so far.

    ``row`` is ranked by key first, so the best row of one key is better than any of the keys before it.
    """
    if (known[1:] >= known[:-1]).all():
        return row, known
    order = _order(known, limit)
    return row[np.maximum.accumulate(order)], known[order]


def _order(number: Numbers, limit: int) -> Numbers:
    """The positions of numbers from 0 to less than ``limit``, in ascending order; equal ones keep theirs.

    Sorting numbers is several times faster than sorting positions by them. So what fits of a number, its high
    bits, is sorted together with the position in the low ones; the rare ones that differ only in what did not
    fit are put right after.
    """
    bits = len(number).bit_length()
    cut = max(0, (limit - 1).bit_length() + bits - 63)
    packed = pl.Series((number >> cut << bits) | np.arange(len(number))).sort().to_numpy()
    order: Numbers = packed & (2**bits - 1)
    if cut:
        ordered = number[order]
        if (ordered[1:] < ordered[:-1]).any():
            order = order[np.argsort(ordered, kind="stable")]
    return order


def _clock(times: Sequence[Numbers], room: int, whole: Sequence[Numbers]) -> tuple[list[Numbers], int]:
    """The times counted from 0 to less than a span that is at most ``room``, and the span.

    Those not in ``whole`` may be rounded down: that changes nothing as to which of the others is not above.
    """
    least, most = min(int(t.min()) for t in times), max(int(t.max()) for t in times)
    for unit in UNITS:
        span = most // unit - least // unit + 1
        if span <= room and (unit == 1 or not any((t % unit).any() for t in whole)):
            return [(t if unit == 1 else t // unit) - least // unit for t in times], span
    distinct, places = np.unique(np.concatenate(times), return_inverse=True)
    return np.split(places, np.cumsum([t.size for t in times[:-1]])), distinct.size


# --- codes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Codes:
    """A number from 0 to less than ``count`` for each key that an entity row has."""

    names: list[str]
    count: int
    coded: Callable[[pl.DataFrame], pl.DataFrame]

    @property
    def room(self) -> int:
        """What the span of the times may be."""
        return ROOM // self.count

    def of(self, rows: pl.DataFrame, height: int) -> pl.Series:
        """The code of each row; null where no entity row has its key."""
        if not self.names:
            return pl.repeat(0, height, dtype=pl.Int64, eager=True)
        return self.coded(rows.select(self.names))["code"].cast(pl.Int64)


def _direct(keys: pl.DataFrame, most: int) -> _Codes | None:
    """Keys that are whole numbers, as they are, if that makes no more codes than ``most``."""
    count, code, inside = 1, pl.lit(0, dtype=pl.Int64), pl.lit(True)
    for name in keys.columns:
        least, greatest = keys[name].min(), keys[name].max()
        if not keys[name].dtype.is_integer() or not isinstance(least, int) or not isinstance(greatest, int):
            return None
        width = greatest - least + 1
        count *= width
        if count > most:
            return None
        code = code * width + (pl.col(name).cast(pl.Int64) - least)
        inside &= pl.col(name).is_between(least, greatest)
    found = pl.when(inside).then(code).alias("code")
    return _Codes(keys.columns, count, lambda rows: rows.select(found))


def _dense(keys: pl.DataFrame) -> _Codes:
    """Any keys, numbered."""
    known, names = keys.drop_nulls().unique().with_row_index("code"), keys.columns
    return _Codes(
        names,
        max(1, known.height),
        lambda rows: rows.join(known, on=names, how="left", maintain_order="left"),
    )
