"""Rows for features to be put beside: of a DataFrame, of a query, or those that views have themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd
import polars as pl
import pyarrow as pa
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_utils import (
    DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL,
    infer_event_timestamp_from_entity_df,
)

from manta.data.lake import Lake
from manta.features import asof
from manta.features.historical import Batches
from manta.features.job import plain
from manta.features.source import DatasetSource, scan_files
from manta.features.storage import required
from manta.words import quoted

if TYPE_CHECKING:
    from manta.data.sql import Answer

_pins: ContextVar[Mapping[str, int]] = ContextVar("pins", default=MappingProxyType({}))


@contextmanager
def pinned(versions: Mapping[str, int]) -> Iterator[None]:
    """Inside `with pinned({"flights": 3}):`, Feast reads these versions of the datasets, not the newest.

    It holds for the jobs that are made inside, whenever they are computed.
    """
    token = _pins.set({**_pins.get(), **versions})
    try:
        yield
    finally:
        _pins.reset(token)


class Frames:
    """What sources hold: of datasets the version pinned when this was made, or else the newest then."""

    def __init__(self, lake: Lake | None, repo: Path | None) -> None:
        self._lake = lake
        self._repo = repo
        self._pins = dict(_pins.get())

    def scan(self, source: DataSource | None) -> pl.LazyFrame:
        if isinstance(source, DatasetSource):
            return required(self._lake).scan(source.dataset, self._pins.get(source.dataset))
        return scan_files(source, self._repo)

    def ask(self, query: str) -> Answer:
        from manta.data.reading import Datasets

        pins = self._pins

        class Pinned(Datasets):
            def resolve(self, name: str, version: Any = None, as_of: Any = None) -> tuple[str, int]:
                return super().resolve(name, pins.get(name) if version is None else version, as_of)

        return Pinned(required(self._lake).folder).sql(query)


class EntityRows:
    """The rows that features are put beside.

    Attributes:
        time: their time column.
        columns: all of them.
    """

    time: str
    columns: list[str]

    def read(self) -> pa.Table | Batches:
        raise NotImplementedError

    def range(self) -> tuple[datetime | None, datetime | None]:
        """Their first and last time."""
        raise NotImplementedError


class FrameRows(EntityRows):
    def __init__(self, frame: pd.DataFrame) -> None:
        self._frame = frame
        self.time = infer_event_timestamp_from_entity_df(dict(zip(frame.columns, frame.dtypes, strict=True)))
        self.columns = list(frame.columns)

    def read(self) -> pa.Table:
        return pa.Table.from_pandas(self._frame, preserve_index=False)

    def range(self) -> tuple[datetime | None, datetime | None]:
        times = self._frame[self.time]
        return (times.min(), times.max()) if len(times) else (None, None)


class QueryRows(EntityRows):
    """One SELECT over the datasets, at the versions that were the newest, or pinned, when it was made."""

    def __init__(self, query: str, frames: Frames) -> None:
        self._frames = frames
        self._answer = frames.ask(query)
        schema = self._answer.head(0).to_arrow().schema
        kinds = schema.empty_table().to_pandas().dtypes
        self.time = infer_event_timestamp_from_entity_df(dict(kinds.items()))
        self.columns = schema.names

    def read(self) -> Batches:
        return self._answer.batches()

    def range(self) -> tuple[datetime | None, datetime | None]:
        time = quoted(self.time)
        bounds = self._frames.ask(f"SELECT min({time}), max({time}) FROM (\n{self._answer.query}\n)")
        first, last = bounds.polars().row(0)
        return first, last


class RangeRows(EntityRows):
    """Each key and event time between two dates that one of the sides has."""

    time = DEFAULT_ENTITY_DF_EVENT_TIMESTAMP_COL

    def __init__(self, sides: list[asof.Side], start: datetime, end: datetime) -> None:
        self._sides = sides
        self._between = start, end
        keys = dict.fromkeys(key for side in sides for key in side.keys)
        self.columns = [self.time, *keys]

    def read(self) -> pa.Table:
        first, last = (round(at.timestamp() * 1_000_000) for at in self._between)
        found = []
        for side in self._sides:
            keys = dict(zip(asof.key_names(side), side.keys, strict=True))
            rows = asof.typed(side, (first, last)).filter(pl.col(asof.TS) >= first)
            named = [pl.col(held).alias(key) for held, key in keys.items()]
            at = pl.from_epoch(asof.TS, "us").dt.replace_time_zone("UTC").alias(self.time)
            found.append(rows.select(at, *named).unique())
        every = pl.concat(found, how="diagonal_relaxed").unique().sort(self.columns)
        return plain(every.select(self.columns).collect(engine="streaming").to_arrow())

    def range(self) -> tuple[datetime | None, datetime | None]:
        return self._between
