"""What a version's values are like, as JSON: figures of each column, told from a sketch of its rows.

finish(merge(sketch(batch) for batch in batches))
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from manta.data.sketch import HASHES, TEXT, Column, Sketch, merge, sketch

__all__ = ["Sketch", "finish", "merge", "sketch"]

TOP = 10
BINS = 20
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
SEEN = 8  # times in the sample, at least, to be told of as frequent
FAR = 2.0  # how far beyond the middle nine tenths of the values bins may reach, as a multiple of their width


def finish(whole: Sketch) -> dict[str, Any]:
    """``rows``; ``sampled``, of how many of them the estimates are; and ``columns`` by name. A column has

    - ``type``, as a contract calls it or else as Polars does, and ``nulls``;
    - ``distinct``, unless it cannot be known: {count, exact};
    - ``min``, ``max``; of floats also how many are ``nan`` and ``infinite``; of numbers ``mean`` and ``std``;
    - ``exact``: whether what follows was counted, or estimated from the sample and scaled to all rows;
    - ``top``: up to ten frequent values, the first the most: [{value, count}];
    - of numbers and times ``quantiles``, {probability: value}, and ``histogram``: {edges, counts, below,
      above}, where values that lie far from all others are counted in the last two, and bins of whole
      numbers end halfway between them; None for numbers that
      are further apart than floats reach.

    Nested and binary columns end with ``distinct``; lists have ``lengths``, {min, max}, too. Times and
    decimals are texts. Nothing is NaN or infinite.
    """
    columns = {name: _figures(whole, name, column) for name, column in whole.columns.items()}
    return {"rows": whole.rows, "sampled": whole.sample.height, "columns": columns}


def keep(sketches: Iterable[Sketch], folder: str) -> str:
    """Write what the sketched rows are like into a staged folder; gives the file."""
    path = Path(folder) / "profile.json"
    path.write_text(json.dumps(finish(merge(sketches))))
    return str(path)


class _Values(NamedTuple):
    """Distinct finite values, ascending, and how often each comes."""

    values: pl.Series
    counts: np.ndarray
    exact: bool


def _figures(whole: Sketch, name: str, column: Column) -> dict[str, Any]:
    kind = column.type
    told: dict[str, Any] = {"type": _type(kind), "nulls": column.nulls}
    if column.hashes is not None:
        told["distinct"] = _distinct(column, column.hashes)
    if column.shortest is not None:
        told["lengths"] = {"min": column.shortest, "max": column.longest}
    if kind.is_float():
        told |= {"nan": column.nan, "infinite": column.infinite}
    if column.least is None:
        return told
    told |= {"min": _json(column.least, kind), "max": _json(column.greatest, kind)}
    if kind.is_numeric():
        told |= {"mean": _number(column.mean), "std": _number(math.sqrt(column.squares / column.finite))}
    held = _values(whole, name, column)
    told |= {"exact": held.exact, "top": _top(held, kind, column, whole)}
    if (kind.is_numeric() or kind.is_temporal()) and len(held.values):
        told |= {"quantiles": _quantiles(held, kind), "histogram": _histogram(held, kind, column)}
    return told


def _distinct(column: Column, hashes: np.ndarray) -> dict[str, Any]:
    if len(hashes) < HASHES:
        return {"count": len(hashes), "exact": True}
    # As many hashes, spread evenly, reach so far: so dense are they all.
    estimate = (HASHES - 1) / (float(hashes[-1]) / 2.0**64)
    return {"count": min(round(estimate), column.rows - column.nulls), "exact": False}


def _values(whole: Sketch, name: str, column: Column) -> _Values:
    if column.tally is not None:
        kept = [(value, count) for value, count in column.tally.values() if _is_finite(value)]
        values = pl.Series([value for value, _ in kept], dtype=_held_as(column.type))
        order = values.arg_sort()
        return _Values(values[order], np.array([count for _, count in kept], dtype=np.float64)[order], True)
    sampled = whole.sample[name].drop_nulls() if name in whole.sample.columns else pl.Series([])
    if sampled.dtype.is_float():
        sampled = sampled.filter(sampled.is_finite())
    counted = sampled.rename("value").value_counts(name="times").sort("value")
    scale = column.finite / max(len(sampled), 1)
    return _Values(
        counted["value"],
        counted["times"].to_numpy().astype(np.float64) * scale,
        whole.sample.height == whole.rows,
    )


def _held_as(kind: pl.DataType) -> pl.DataType:
    if kind.is_temporal():
        return pl.Int64()
    return pl.String() if isinstance(kind, (pl.Categorical, pl.Enum)) else kind


def _top(held: _Values, kind: pl.DataType, column: Column, whole: Sketch) -> list[dict[str, Any]]:
    order = np.argsort(-held.counts, kind="stable")[:TOP]
    fewest = 0.0 if held.exact else SEEN * whole.rows / whole.sample.height * 0.999
    return [
        {"value": _json(held.values[int(at)], kind), "count": round(held.counts[at])}
        for at in order
        if held.counts[at] >= fewest
    ]


def _quantiles(held: _Values, kind: pl.DataType) -> dict[str, Any]:
    """Values that come, such that the share of values up to each is the probability, or just above."""
    upto = np.cumsum(held.counts)
    at = np.searchsorted(upto, np.array(QUANTILES) * upto[-1] * (1 - 1e-12))
    return {str(share): _json(held.values[int(i)], kind) for share, i in zip(QUANTILES, at, strict=True)}


def _histogram(held: _Values, kind: pl.DataType, column: Column) -> dict[str, Any] | None:
    numbers = held.values.cast(pl.Float64).to_numpy()
    low, high = float(column.least), float(column.greatest)
    upto = np.cumsum(held.counts)
    first, last = (numbers[np.searchsorted(upto, share * upto[-1])] for share in (0.05, 0.95))
    if not math.isfinite(FAR * (high - low)):
        return None  # the whole range of floats, nearly
    if last > first:
        low, high = max(low, first - FAR * (last - first)), min(high, last + FAR * (last - first))
    if kind.is_integer():  # as many whole numbers in each bin, or else some look frequent that are not
        low, high = math.ceil(low), math.floor(high)
        width = math.ceil((high - low + 1) / BINS)
        edges = (low - 0.5) + float(width) * np.arange(math.ceil((high - low + 1) / width) + 1)
    else:
        edges = np.linspace(low, high, BINS + 1) if low < high else np.array([low, low])
    counts, _ = np.histogram(numbers, edges, weights=held.counts)
    outside = (held.counts[numbers < edges[0]].sum(), held.counts[numbers > edges[-1]].sum())
    shown = edges.tolist()
    if kind.is_temporal():
        shown = [_json(min(max(round(edge), column.least), column.greatest), kind) for edge in shown]
    return {
        "edges": shown,
        "counts": [round(count) for count in counts],
        "below": round(outside[0]),
        "above": round(outside[1]),
    }


def _type(kind: pl.DataType) -> str:
    if kind == pl.Datetime("us", "UTC"):
        return "timestamp"
    return {pl.Boolean: "bool", pl.Categorical: "string"}.get(kind.base_type(), str(kind).lower())


def _json(value: Any, kind: pl.DataType) -> Any:
    if kind.is_temporal():
        return _time(value, kind)
    if isinstance(value, str):
        return value if len(value) < TEXT else value + "…"
    if isinstance(value, float):
        return _number(value)
    return value if isinstance(value, (bool, int)) else str(value)


def _time(value: int, kind: pl.DataType) -> str:
    """ISO 8601, and UTC where the time has a zone. Of numpy, for it writes years of more than four digits,
    at which Polars panics."""
    if kind == pl.Date():
        return str(np.datetime64(value, "D"))
    if isinstance(kind, pl.Datetime):
        text = str(np.datetime64(value, kind.time_unit))
        return re.sub(r"\.0+$", "", text) + ("+00:00" if kind.time_zone else "")
    return str(pl.Series([value]).cast(kind).dt.to_string("iso:strict").item())


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
