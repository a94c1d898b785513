"""The rows of a parity check: keys that the lake has, at the instants that matter."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from manta.data.lake import Lake
from manta.errors import NotFound
from manta.features import asof
from manta.features.compiled import Service, View
from manta.features.historical import side_of
from manta.features.skew import SECOND

AT = "__at"

Frames = dict[str, pl.LazyFrame]
Lead = tuple[View, ...]


def frames_of(service: Service, lake: Lake, versions: Mapping[str, int], watermark: datetime) -> Frames:
    """What each view could know at the watermark.

    Raises:
        NotFound: no version of a dataset is named, or it is not in the lake.
    """
    until = round(watermark.timestamp() * SECOND)
    found: Frames = {}
    for view in service.views:
        if view.dataset not in versions:
            raise NotFound(
                f"what is online of {service.name!r} was not made from dataset {view.dataset!r}, "
                f"which view {view.name!r} reads",
                hint="`manta features materialize` puts the service online as it is now",
            )
        frame = lake.scan(view.dataset, versions[view.dataset])
        held = frame.collect_schema()
        asof.require_columns(
            held.names(), [column for column in (view.time, view.created) if column], f"view {view.name!r}"
        )
        for column in (view.time, view.created):
            if column:
                frame = frame.filter(asof.utc(column, held[column]).to_physical() <= until)
        found[view.name] = frame
    return found


def sample(
    service: Service, frames: Frames, count: int, seed: int, watermark: datetime
) -> tuple[pl.DataFrame, dict[str, pl.DataFrame], dict[str, pl.Series]]:
    """``count`` rows of join keys and request fields, and :data:`AT`: when each is asked. The views take
    turns in leading a row, which gets keys that the lake has for them; so do the views of each on-demand
    view together. The rest of a row comes from the other views.

    Returns:
        the rows; by view, what its dataset has of the latest event time of each of their keys; and that time,
        for each row: in microseconds, whatever its age, null where there is none.
    """
    chance = random.Random(seed)
    pools = {view.name: _keys(frames[view.name], view, count, seed) for view in service.views}
    turns = _leads(service)
    columns: dict[str, list[Any]] = {name: [None] * count for name in service.join_keys}
    for row in range(count):
        lead = turns[row % len(turns)]
        for view in (*lead, *service.views):
            pool = pools[view.name]
            if not view.keys or not pool.height:
                continue
            first = lead and view is lead[0]
            picked = pool.row(row // len(turns) % pool.height if first else chance.randrange(pool.height))
            for key, value in zip(view.keys, picked, strict=True):
                if columns[key.column][row] is None:
                    columns[key.column][row] = value
    types = {
        key.column: pools[view.name].schema[f"k{at}"]
        for view in reversed(service.views)
        for at, key in enumerate(view.keys)
    }
    rows = pl.DataFrame([pl.Series(name, values, dtype=types[name]) for name, values in columns.items()])
    held = {view.name: _latest(frames[view.name], view, rows) for view in service.views}
    events = {view.name: _newest_event(view, held[view.name], rows, count) for view in service.views}
    at = _instants(turns, events, count, chance, watermark)
    asked = {name: _requests(kind, at, chance) for name, kind in service.request.items()}
    rows = rows.with_columns(
        *(pl.Series(name, values, dtype=asof.dtype(service.request[name])) for name, values in asked.items()),
        pl.Series(AT, at, dtype=pl.Datetime("us", "UTC")),
    )
    return rows, held, events


def _leads(service: Service) -> list[Lead]:
    """Views that are to be compared in one row: each for itself, and the inputs of each on-demand view."""
    views = {view.name: view for view in service.views}
    together = [
        tuple(views[name] for name in dict.fromkeys(source for source, _ in demand.inputs))
        for demand in service.on_demand
    ]
    return list(dict.fromkeys([*((view,) for view in service.views), *together]))


def _keys(frame: pl.LazyFrame, view: View, most: int, seed: int) -> pl.DataFrame:
    if not view.keys:
        return pl.DataFrame()
    found = (
        frame.select(pl.col(key.join_key).alias(f"k{at}") for at, key in enumerate(view.keys))
        .drop_nulls()
        .unique(maintain_order=False)
        .collect()
    )
    # In an order that is the same each time, whatever the engine's threads did.
    return found.sort(found.columns).sample(min(most, found.height), seed=seed, shuffle=True)


def _instants(
    leads: Sequence[Lead],
    events: Mapping[str, pl.Series],
    count: int,
    chance: random.Random,
    watermark: datetime,
) -> list[datetime]:
    """When each row is asked: never before the newest row of the views that lead it, and often within seconds
    of where a TTL runs out. Other views may have newer rows; they are not compared in that row."""
    held = {name: series.to_list() for name, series in events.items()}
    found = []
    for row in range(count):
        lead, turn = leads[row % len(leads)], row // len(leads)
        newest = [(held[view.name][row], view.ttl_seconds) for view in lead]
        due = max((-(-event // SECOND) for event, _ in newest if event is not None), default=0)
        due = due or int(watermark.timestamp())  # where time is nothing to go by
        instants = [due, due + chance.randrange(1, 3600)]
        for event, ttl in newest:
            if event is not None and ttl:
                instants += [event // SECOND + round(ttl) - 1, event // SECOND + round(ttl) + 2]
        found.append(datetime.fromtimestamp(max(due, instants[turn % len(instants)]), UTC))
    return found


def _requests(kind: str, at: Sequence[datetime], chance: random.Random) -> list[Any]:
    """Values of a request field, some of them missing."""
    makes: dict[str, Callable[[datetime], Any]] = {
        "timestamp": lambda when: when + timedelta(minutes=chance.randrange(90)),
        "float64": lambda _when: round(chance.gauss(10, 20), 3),
        "float32": lambda _when: float(chance.randrange(-100, 100)),
        "int64": lambda _when: chance.randrange(100),
        "int32": lambda _when: chance.randrange(100),
        "bool": lambda _when: chance.random() < 0.5,
        "string": lambda _when: chance.choice(["a", "b", ""]),
        "bytes": lambda _when: chance.choice([b"a", b""]),
    }
    make = makes.get(kind, lambda _when: None)
    return [None if chance.random() < 0.03 else make(when) for when in at]


def rows_of_keys(frame: pl.LazyFrame, view: View, rows: pl.DataFrame) -> pl.LazyFrame:
    """The rows of the dataset that have the view's keys of some of ``rows``."""
    if not view.keys:
        return frame
    held = frame.collect_schema()
    wanted = rows.select(
        pl.col(key.column).cast(held[key.join_key], strict=False).alias(key.join_key) for key in view.keys
    ).unique()
    return frame.join(wanted.lazy(), on=wanted.columns, how="semi", maintain_order="left")


def _latest(frame: pl.LazyFrame, view: View, rows: pl.DataFrame) -> pl.DataFrame:
    """Of those, what is of the latest event time of its key. No row is compared that is asked before that, so
    an earlier one can decide nothing; which of the latest does is left to the join."""
    found = rows_of_keys(frame, view, rows)
    if view.time is not None:
        latest = pl.col(view.time).max()
        keys = [key.join_key for key in view.keys]
        found = found.filter(pl.col(view.time) == (latest.over(keys) if keys else latest))
    return found.collect()


def _newest_event(view: View, held: pl.DataFrame, rows: pl.DataFrame, count: int) -> pl.Series:
    """The event time of the newest row, whatever its age, for each of ``rows``; null where there is none."""
    side = side_of(replace(view, ttl_seconds=0.0), held.lazy())
    newest = asof.newest(side)
    names = asof.key_names(side)
    if not names:
        return pl.Series([newest[asof.TS][0] if newest.height else None] * count, dtype=pl.Int64)
    keys = rows.select(
        pl.col(key.column).cast(asof.dtype(key.type), strict=False).alias(name)
        for name, key in zip(names, view.keys, strict=True)
    )
    return keys.join(newest, on=names, how="left", maintain_order="left")[asof.TS]
