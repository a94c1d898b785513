"""AsofOfflineStore: manta's as-of joins as a Feast offline store, over datasets and Parquet files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import compute_non_entity_date_range
from pydantic import Field

from manta.data.lake import Lake
from manta.errors import DefinitionInvalid, InvalidInput
from manta.features import asof, storage
from manta.features.compiled import Feature, OnDemand, View
from manta.features.entity_rows import EntityRows, FrameRows, Frames, QueryRows, RangeRows
from manta.features.historical import Retrieval, side_of
from manta.features.job import AsofRetrievalJob, Joined, Place, Pulled, plain
from manta.features.manifest import keys_of, on_demand_of, type_name
from manta.features.on_demand import Function
from manta.features.partitioned import SPILL, Limits
from manta.features.source import held_in


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` part of feature_store.yaml.

    Attributes:
        lake: the folder that holds the datasets; not needed where every source is a FileSource.
        in_process_rows, partition_rows: see :class:`manta.features.partitioned.Limits`.
        spill: the folder for what does not fit in memory, `.spill` in the lake unless given: the lake is on a
            disk of the right size, and seen by all nodes of a cluster. Without a lake, the system's.
        staging_location: the folder under which `to_remote_storage` writes.
    """

    type: Literal["manta.features.offline.AsofOfflineStore"] = "manta.features.offline.AsofOfflineStore"
    lake: str | None = None
    in_process_rows: int = Field(Limits.in_process_rows, ge=0)
    partition_rows: int = Field(Limits.partition_rows, ge=1)
    spill: str | None = None
    staging_location: str | None = None


class AsofOfflineStore(OfflineStore):
    """Reads :class:`DatasetSource` and Feast's FileSource. See `asof.py` for what a retrieval gives, to the
    last tie, and `partitioned.py` for how it is had of more rows than memory holds."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(  # type: ignore[override]
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The features beside every row of ``entity_df``.

        ``entity_df`` may be one SELECT over the datasets, as `manta data sql` takes it. Without it, there is
        a row for each key and event time that one of the views has between the dates, both included, ordered
        by them; a key that a view does not have is null. Without a start, the range is as long as the longest
        TTL, or 30 days, as Feast has it.

        Raises:
            InvalidInput: ``entity_df`` is of another kind, lacks a column, or is no such query.
            DefinitionInvalid: a view declares what its source does not hold.
        """
        place, frames = _place(config), _frames(config)
        wanted = _by_view(feature_refs)
        views = [_view(view, wanted.get(view.projection.name_to_use(), ())) for view in feature_views]
        sides = [
            side_of(mine, frames.scan(view.batch_source), _label(view))
            for mine, view in zip(views, feature_views, strict=True)
        ]
        demands = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        ours, others = ([view for view in demands if _is_ours(view) is mine] for mine in (True, False))
        bases = {view.projection.name_to_use(): _base_name(view) for view in [*feature_views, *demands]}
        names = {
            (view, name): f"{bases[view]}__{name}" if full_feature_names else name
            for view in bases
            for name in wanted.get(view, ())
        }
        # What Feast itself computes comes at the end, from what was joined.
        feasts = [(view, [names.pop(key) for key in _keys(view, wanted)]) for view in others]
        if entity_df is None:
            between = compute_non_entity_date_range(feature_views, start_date, end_date)
            rows: EntityRows = RangeRows(sides, *between)
        elif isinstance(entity_df, str):
            rows = QueryRows(entity_df, frames)
        elif isinstance(entity_df, pd.DataFrame):
            rows = FrameRows(entity_df)
        else:
            raise InvalidInput(
                f"entity_df is a {type(entity_df).__name__}",
                hint="give a pandas DataFrame or a SELECT over the datasets; or none, and dates",
            )
        retrieval = Retrieval(
            time=rows.time,
            views=views,
            sides=sides,
            on_demand=[_on_demand(view, wanted[view.projection.name_to_use()]) for view in ours],
            names=names,
            hide_late=filter_by_created_timestamp,
            finish=_Finish(tuple((view, tuple(left)) for view, left in feasts), full_feature_names),
        )

        def metadata() -> RetrievalMetadata:
            first, last = rows.range()
            keys = [column for column in rows.columns if column != rows.time]
            return RetrievalMetadata(feature_refs, keys, first, last)

        return AsofRetrievalJob(Joined(retrieval, rows.read), place, full_feature_names, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """The newest row of each key between the dates, both included; rows without a key are left out."""
        columns = [*join_key_columns, *feature_name_columns]
        rows = _pulled(
            config, data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date
        )
        by = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
        rows = rows.drop_nulls([timestamp_field, *join_key_columns])
        rows = rows.sort(by, nulls_last=False, maintain_order=True)
        if join_key_columns:
            rows = rows.unique(subset=join_key_columns, keep="last", maintain_order=True)
        else:
            rows = rows.tail(1).with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
        return AsofRetrievalJob(Pulled(rows, sliced=False), _place(config))

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> RetrievalJob:
        """Every row between the dates, both included, in the source's order."""
        columns = [*join_key_columns, *feature_name_columns]
        rows = _pulled(
            config, data_source, columns, timestamp_field, created_timestamp_column, start_date, end_date
        )
        return AsofRetrievalJob(Pulled(rows, sliced=True), _place(config))

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add the logs to a dataset (:class:`DatasetDestination`) in one commit, or to a folder as a file.

        Raises:
            InvalidInput: they have other columns than the dataset.
            DefinitionInvalid: the destination is of another kind.
        """
        place = _place(config)
        storage.log(logging_config.destination, data, place.lake, place.repo)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Add the rows to what the view reads: a dataset, in one commit, or Parquet files.

        Raises:
            InvalidInput: they have other columns, or hold what its types cannot.
            DefinitionInvalid: the view's source cannot be written.
        """
        if feature_view.batch_source is None:
            raise DefinitionInvalid(f"feature view {feature_view.name!r} has no batch source")
        place = _place(config)
        storage.append(feature_view.batch_source, table, place.lake, place.repo)
        if progress:
            progress(table.num_rows)


# --- inside -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Finish:
    """What remains when a block is joined: strings as all know them, and on-demand views that Feast itself
    computes, those in pandas mode, each with the columns that are wanted of it."""

    demands: tuple[tuple[OnDemandFeatureView, tuple[str, ...]], ...]
    full_feature_names: bool

    def __call__(self, table: pa.Table) -> pa.Table:
        table = plain(table)
        for view, wanted in self.demands:
            given = view.transform_arrow(table, self.full_feature_names)
            for name in wanted:
                table = table.append_column(name, given[name])
        return table


def _place(config: RepoConfig) -> Place:
    store = config.offline_store
    lake = Lake(store.lake) if store.lake else None
    spill = store.spill or (str(lake.folder / SPILL) if lake else None)
    limits = Limits(store.in_process_rows, store.partition_rows, spill)
    return Place(lake, config.repo_path, store.staging_location, limits)


def _frames(config: RepoConfig) -> Frames:
    place = _place(config)
    return Frames(place.lake, place.repo)


def _by_view(refs: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for ref in dict.fromkeys(refs):
        view, _, feature = ref.partition(":")
        found.setdefault(view, []).append(feature)
    return found


def _keys(view: Any, wanted: Mapping[str, list[str]]) -> list[tuple[str, str]]:
    name = view.projection.name_to_use()
    return [(name, feature) for feature in wanted[name]]


def _base_name(view: Any) -> str:
    """What prefixes a full feature name: never a version."""
    return str(view.projection.name_alias or view.name)


def _label(view: FeatureView) -> str:
    held = held_in(view.batch_source)
    return f"{held.label}, read by view {view.projection.name_to_use()!r},"


def _view(view: FeatureView, features: Any) -> View:
    typed = {field.name: field.dtype for field in view.features}
    kinds = {name: type_name(f"feature {name!r} of {view.name!r}", typed[name]) for name in features}
    held, ttl = held_in(view.batch_source), view.ttl.total_seconds() if view.ttl else 0.0
    if ttl and held.time is None:
        raise DefinitionInvalid(
            f"feature view {view.name!r} has a TTL, and its {held.label} has no time",
            hint="leave the ttl out, or name a timestamp_field",
        )
    return View(
        name=view.projection.name_to_use(),
        table="",
        dataset=held.dataset or held.label,
        time=held.time,
        created=held.created,
        ttl_seconds=ttl,
        keys=keys_of(view),
        features=tuple(Feature(name, kind, held.column(name)) for name, kind in kinds.items()),
    )


def _is_ours(view: OnDemandFeatureView) -> bool:
    return view.mode == "python" and not view.aggregations and not view.write_to_online_store


def _on_demand(view: OnDemandFeatureView, features: list[str]) -> tuple[OnDemand, Function]:
    transformation: Any = view.feature_transformation
    projection = view[features].projection
    return on_demand_of(view, projection, view.name, ""), transformation.udf


def _pulled(
    config: RepoConfig,
    source: DataSource,
    columns: list[str],
    time: str,
    created: str | None,
    start: datetime | None,
    end: datetime | None,
) -> pl.LazyFrame:
    """Columns of a source between two dates, its time in UTC. The names are the source's own."""
    rows, held = _frames(config).scan(source), held_in(source)
    there = rows.collect_schema()
    own = [time] if held.time is not None else []
    asof.require_columns(there.names(), [*columns, *own, *([created] if created else [])], held.label)
    at = asof.utc(time, there[time]) if own else pl.lit(datetime.fromtimestamp(0, UTC))
    bounds = [at >= _aware(start)] if start else []
    bounds += [at <= _aware(end)] if end else []
    wanted = dict.fromkeys([*columns, *([created] if created else [])])
    wanted.pop(time, None)
    return (rows.filter(*bounds) if bounds else rows).select(*wanted, at.alias(time))


def _aware(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
