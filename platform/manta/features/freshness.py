"""How fresh what is online is: for each view, the newest event time online and in the lake, and the TTL."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import polars as pl

from manta.data.lake import Lake
from manta.features import asof
from manta.features.compiled import Service, View
from manta.features.historical import side_of
from manta.features.parity_sample import frames_of
from manta.features.skew import SECOND
from manta.features.stores import OnlineStore, open_store_of
from manta.features.stores._columns import keys_of

MOST_KEYS = 300


def freshness(
    service: Service, lake: Lake, versions: Mapping[str, int], now: datetime
) -> list[dict[str, Any]]:
    """A line for each view.

    The online side is read for the 300 keys with the newest rows in the lake, and for 300 others: ``keys`` of
    them, of which ``missing`` are not online, ``behind`` have an older event time there, and ``expired`` are
    older than the TTL now. ``offline`` and ``online``: the newest event times, None where there is none.

    Raises:
        NotFound, FeaturesUnavailable: a dataset, or the online store.
    """
    with closing(open_store_of(service.store)) as store:
        frames = frames_of(service, lake, versions, now)
        return [_of(view, frames[view.name], store, now) for view in service.views]


def _of(view: View, frame: pl.LazyFrame, store: OnlineStore, now: datetime) -> dict[str, Any]:
    newest = asof.newest(side_of(replace(view, ttl_seconds=0.0), frame))
    newest = newest.sort(asof.TS, descending=True)
    rest = newest[MOST_KEYS:]
    chosen = pl.concat([newest[:MOST_KEYS], rest.sample(min(MOST_KEYS, rest.height), seed=0)])
    keys = keys_of(view, chosen)
    wanted = dict(zip(keys, chosen[asof.TS].to_list(), strict=True))
    (there,) = store.rows([view]).fetch([keys])
    held = dict(zip(there.keys, there.oldest(), strict=True))
    edge = round((now.timestamp() - view.ttl_seconds) * SECOND)
    behind = sum(event // SECOND < (wanted[key] or 0) // SECOND for key, event in held.items())
    timed = view.time is not None
    return {
        "view": view.name,
        "dataset": view.dataset,
        "ttl_seconds": view.ttl_seconds,
        "offline": _when(newest[asof.TS].max()) if timed else None,  # type: ignore[arg-type]
        "online": _when(max(held.values(), default=None)) if timed else None,
        "keys": len(keys),
        "missing": len(keys) - len(held),
        "behind": behind if timed else 0,
        "expired": sum(event < edge for event in held.values()) if view.ttl_seconds else 0,
    }


def _when(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros // SECOND, UTC)
