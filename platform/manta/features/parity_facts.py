"""What lies behind rows whose values differ: looked up in the lake and in the online store, of any age."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from typing import Any

import polars as pl

from manta.features import asof
from manta.features.compiled import Service, View
from manta.features.historical import side_of
from manta.features.skew import SECOND, Facts, Values, typed
from manta.features.stores import open_store_of
from manta.features.wire import item_type
from manta.features.wire_columns import column_decoder, each_once, keys_encoder

_ROW = "__row"


def facts_of(
    service: Service,
    view: View,
    rows: pl.DataFrame,
    frame: pl.LazyFrame,
    small: pl.DataFrame,
    earlier: pl.LazyFrame | None,
) -> Facts:
    """What is known of the view for each of ``rows``.

    Args:
        frame: the view's dataset, up to the watermark; small: those of its rows that matter.
        earlier: the version of the dataset before, where there is one.
    """
    keys = rows.select(
        pl.col(key.column).cast(asof.dtype(key.type), strict=False).alias(f"__key_{at}")
        for at, key in enumerate(view.keys)
    )
    newest = _joined(keys, asof.newest(_side(view, small.lazy())), rows.height)
    held, event = _held(service, view, keys, rows.height)
    lake_event = newest[asof.TS]
    return Facts(
        lake=newest.select(feature.name for feature in view.features),
        lake_event=lake_event,
        late=_late(view, keys, newest, frame, earlier),
        held=held,
        held_event=event,
        anothers=_anothers(view, keys, held, event, frame),
        earlier=_earlier(view, keys, held, event, small, earlier),
        newest_held=event.max(),  # type: ignore[arg-type]
    )


def _side(view: View, frame: pl.LazyFrame) -> asof.Side:
    return side_of(replace(view, ttl_seconds=0.0), frame)


def _every(view: View, frame: pl.LazyFrame) -> pl.DataFrame:
    """All rows as the join has them: a key of its own for each makes each the newest of its key."""
    side = _side(view, frame.with_columns(pl.int_range(pl.len(), dtype=pl.Int64).alias(_ROW)))
    each = replace(side, keys={**side.keys, _ROW: (_ROW, "int64")})
    return asof.newest(each)


def _joined(keys: pl.DataFrame, newest: pl.DataFrame, height: int) -> pl.DataFrame:
    if keys.width:
        return keys.join(newest, on=keys.columns, how="left", maintain_order="left")
    one = newest if newest.height else newest.clear(1)
    return pl.concat([one] * height)


def _held(
    service: Service, view: View, keys: pl.DataFrame, height: int
) -> tuple[dict[str, Values], pl.Series]:
    """What the store holds of each feature, and the event time; of one written in parts, the oldest."""
    encode = keys_encoder([(key.join_key, key.type) for key in view.keys])
    encoded = encode([column.to_list() for column in keys.get_columns()], height)
    with closing(open_store_of(service.store)) as store:
        (there,) = store.rows([view]).fetch([each_once(encoded)])
    places: dict[bytes | None, int] = {key: place for place, key in enumerate(there.keys)}
    found = [places.get(key) for key in encoded]

    def each(column: Sequence[Any]) -> list[Any]:
        return [None if place is None else column[place] for place in found]

    held = {
        feature.name: typed(each(column_decoder(feature.type)(column)[0]), feature.type)
        for feature, column in zip(view.features, there.values, strict=True)
    }
    return held, pl.Series(each(there.oldest()), dtype=pl.Int64)


def _late(
    view: View, keys: pl.DataFrame, newest: pl.DataFrame, frame: pl.LazyFrame, earlier: pl.LazyFrame | None
) -> pl.Series:
    """Whether the newest row of each key came after rows of later times: by when rows were written, where the
    dataset says so; else by whether the version before had it."""
    event = newest[asof.TS]
    nothing = pl.repeat(False, newest.height, eager=True)
    if view.time is None:
        return nothing
    if view.created is not None:
        every = _every(view, frame).drop_nulls(asof.CREATED)
        known = every.group_by(asof.CREATED).agg(pl.col(asof.TS).max().alias("m")).sort(asof.CREATED)
        known = known.select(asof.CREATED, before=pl.col("m").cum_max().shift(1))
        before = newest.select(asof.CREATED).join(known, on=asof.CREATED, how="left", maintain_order="left")
        return (event < before["before"]).fill_null(False)
    if earlier is None:
        return nothing
    had = _every(view, earlier)
    latest = had[asof.TS].max()
    if latest is None:
        return nothing
    on = [*keys.columns, asof.TS]
    known_then = had.select(on).unique().with_columns(there=pl.lit(True))
    there = newest.select(on).join(known_then, on=on, how="left", maintain_order="left")["there"]
    return (event < latest).fill_null(False) & there.is_null()


def _anothers(
    view: View, keys: pl.DataFrame, held: dict[str, Values], event: pl.Series, frame: pl.LazyFrame
) -> pl.Series:
    """Whether what is held under most of the keys is, to the last feature, the newest row of another key, and
    of that key only."""
    height = len(event)
    nothing = pl.repeat(False, height, eager=True)
    names = [feature.name for feature in view.features if item_type(feature.type) is None]
    if not keys.width or not names or event.null_count() == height:
        return nothing
    newest = asof.newest(_side(view, frame)).with_columns(pl.col(asof.TS) // SECOND * SECOND)
    on = [asof.TS, *names]
    owners = newest.group_by(on).agg(
        pl.len().alias("n"), *(pl.col(name).first().alias(f"o_{name}") for name in keys.columns)
    )
    seconds = (event // SECOND * SECOND).alias(asof.TS)
    table = keys.with_columns(seconds, *(held[name].column.alias(name) for name in names))
    found = table.join(owners, on=on, how="left", nulls_equal=True, maintain_order="left")
    other = pl.any_horizontal(pl.col(f"o_{name}").ne_missing(pl.col(name)) for name in keys.columns)
    informed = pl.any_horizontal(pl.col(name).is_not_null() for name in names)
    mask = found.select(m=((pl.col("n") == 1) & other & informed).fill_null(False))["m"]
    there = height - event.null_count()
    return mask if 2 * mask.sum() > there else nothing


def _earlier(
    view: View,
    keys: pl.DataFrame,
    held: dict[str, Values],
    event: pl.Series,
    small: pl.DataFrame,
    earlier: pl.LazyFrame | None,
) -> pl.DataFrame:
    """By feature: the lake has, or had a version before, a row of the key and event time with that value."""
    names: Sequence[str] = [feature.name for feature in view.features]
    frames = [small.lazy(), *([earlier] if earlier is not None else [])]
    every = pl.concat([_every(view, frame) for frame in frames]).with_columns(
        pl.col(asof.TS) // SECOND * SECOND
    )
    on = [*keys.columns, asof.TS]
    of = [held[name].column.alias(f"h_{name}") for name in names]
    seconds = (event // SECOND * SECOND).alias(asof.TS)
    table = pl.DataFrame([*keys.get_columns(), seconds, *of]).with_row_index(_ROW)
    both = table.join(every.select(*on, *names), on=on, how="left", maintain_order="left")
    same = both.group_by(_ROW, maintain_order=True).agg(
        (pl.col(name).is_not_null() & pl.col(name).eq_missing(pl.col(f"h_{name}"))).any().alias(name)
        for name in names
    )
    return same.select(names)
