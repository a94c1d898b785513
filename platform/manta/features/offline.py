"""AsofOfflineStore: manta's as-of joins as a Feast offline store over the datasets of the lake."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal

import pandas as pd
import polars as pl
import pyarrow as pa
from feast import FeatureView, OnDemandFeatureView
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from manta.data.lake import Lake
from manta.errors import DefinitionInvalid, InvalidInput
from manta.features import asof
from manta.features.compiled import OnDemand, View
from manta.features.historical import columns_of, values_as_of
from manta.features.manifest import on_demand_of, type_name, view_of
from manta.features.on_demand import Function
from manta.features.source import DatasetSource

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


class AsofOfflineStoreConfig(FeastConfigBaseModel):
    """``lake``: the folder that holds the datasets."""

    type: Literal["manta.features.offline.AsofOfflineStore"] = "manta.features.offline.AsofOfflineStore"
    lake: str


class AsofRetrievalJob(RetrievalJob):
    """What Feast hands back for a retrieval; computed when asked for, on-demand features included."""

    def __init__(
        self,
        compute: Callable[[], pa.Table],
        full_feature_names: bool = False,
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._compute = compute
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._compute()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._compute().to_pandas()

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return []  # none is left to Feast, which would infer the types of what they give

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata


class AsofOfflineStore(OfflineStore):
    """Reads :class:`DatasetSource` only. See `asof.py` for what a retrieval gives, to the last tie."""

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
        **_range: Any,
    ) -> RetrievalJob:
        """
        Raises:
            InvalidInput: ``entity_df`` is not a DataFrame, or lacks a column.
        """
        if not isinstance(entity_df, pd.DataFrame):
            raise InvalidInput(
                "features are joined to the rows of a DataFrame, and entity_df is "
                f"{'a query' if isinstance(entity_df, str) else 'missing'}",
                hint="give entity_df with the join keys and an event_timestamp column",
            )
        time = infer_event_timestamp_from_entity_df(
            dict(zip(entity_df.columns, entity_df.dtypes, strict=True))
        )
        wanted = _by_view(feature_refs)
        views = [_view(view, wanted.get(view.projection.name_to_use(), ())) for view in feature_views]
        demands = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        on_demand = [_on_demand(view, wanted[view.projection.name_to_use()]) for view in demands]
        bases = {view.projection.name_to_use(): _base_name(view) for view in [*feature_views, *demands]}
        names = {
            (view, name): f"{bases[view]}__{name}" if full_feature_names else name
            for view in bases
            for name in wanted.get(view, ())
        }
        scan = _scanner(config)

        def compute() -> pa.Table:
            rows = pa.Table.from_pandas(entity_df, preserve_index=False)
            values = values_as_of(
                pl.DataFrame(rows), time, views, on_demand, scan, hide_late=filter_by_created_timestamp
            )
            columns = columns_of(values, names, rows.column_names)
            for column in columns:
                rows = rows.append_column(column.name, column.to_arrow())
            return plain(rows)

        times = entity_df[time]
        metadata = RetrievalMetadata(
            features=feature_refs,
            keys=[column for column in entity_df.columns if column != time],
            min_event_timestamp=times.min() if len(times) else None,
            max_event_timestamp=times.max() if len(times) else None,
        )
        return AsofRetrievalJob(compute, full_feature_names, metadata)

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime,
        end_date: datetime,
    ) -> RetrievalJob:
        """The newest row of each key between the dates, both included; rows without a key are left out."""
        every = AsofOfflineStore._pull(
            config,
            data_source,
            [*join_key_columns, *feature_name_columns],
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )

        def compute() -> pa.Table:
            rows = every().drop_nulls(join_key_columns or None) if join_key_columns else every()
            by = [timestamp_field, *([created_timestamp_column] if created_timestamp_column else [])]
            rows = rows.drop_nulls(timestamp_field).sort(by, nulls_last=False, maintain_order=True)
            if not join_key_columns:
                dummy = pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID)
                return plain(rows.tail(1).with_columns(dummy).to_arrow())
            return plain(rows.unique(subset=join_key_columns, keep="last", maintain_order=True).to_arrow())

        return AsofRetrievalJob(compute)

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
        """Every row between the dates, both included, in the dataset's order."""
        every = AsofOfflineStore._pull(
            config,
            data_source,
            [*join_key_columns, *feature_name_columns],
            timestamp_field,
            created_timestamp_column,
            start_date,
            end_date,
        )
        return AsofRetrievalJob(lambda: plain(every().to_arrow()))

    @staticmethod
    def _pull(
        config: RepoConfig,
        source: DataSource,
        columns: list[str],
        time: str,
        created: str | None,
        start: datetime | None,
        end: datetime | None,
    ) -> Callable[[], pl.DataFrame]:
        dataset = _dataset(source)
        scan = _scanner(config)

        def read() -> pl.DataFrame:
            rows = scan(dataset.dataset)
            held = rows.collect_schema()
            label = f"dataset {dataset.dataset!r}"
            asof.require_columns(held.names(), [*columns, *filter(None, (dataset.time, created))], label)
            at = asof.utc(time, held[time]) if dataset.time else pl.lit(datetime.fromtimestamp(0, UTC))
            wanted = [*columns, *([created] if created else [])]
            bounds = [at >= _aware(start)] if start else []
            bounds += [at <= _aware(end)] if end else []
            return (rows.filter(*bounds) if bounds else rows).select(*wanted, at.alias(time)).collect()

        return read


def _by_view(refs: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for ref in refs:
        view, _, feature = ref.partition(":")
        found.setdefault(view, []).append(feature)
    return found


def _base_name(view: Any) -> str:
    """What prefixes a full feature name: never a version."""
    return str(view.projection.name_alias or view.name)


def _view(view: FeatureView, features: Any) -> View:
    typed = {field.name: field.dtype for field in view.features}
    kinds = {name: type_name(f"feature {name!r} of {view.name!r}", typed[name]) for name in features}
    return view_of(view.projection.name_to_use(), view, kinds, table="")


def _on_demand(view: OnDemandFeatureView, features: list[str]) -> tuple[OnDemand, Function]:
    transformation: Any = view.feature_transformation
    projection = view[features].projection
    return on_demand_of(view, projection, view.name, ""), transformation.udf


def _dataset(source: DataSource) -> DatasetSource:
    if not isinstance(source, DatasetSource):
        raise DefinitionInvalid(
            f"source {source.name!r} is a {type(source).__name__}; this store reads datasets of the lake",
            hint="give the view source=DatasetSource(name=…, dataset=…, timestamp_field=…)",
        )
    return source


def _scanner(config: RepoConfig) -> Callable[[View | str], pl.LazyFrame]:
    """Reads a dataset at the version pinned now, or at the newest when the job is computed."""
    lake, pins = Lake(config.offline_store.lake), dict(_pins.get())

    def scan(what: View | str) -> pl.LazyFrame:
        dataset = what if isinstance(what, str) else what.dataset
        return lake.scan(dataset, pins.get(dataset))

    return scan


def _aware(at: datetime) -> datetime:
    return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)


def plain(table: pa.Table) -> pa.Table:
    """With the strings that every Arrow reader knows; Polars gives large ones or views, and Feast takes a
    large string for JSON."""
    fields = [pa.field(field.name, _plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def _plain_type(held: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(held) or pa.types.is_string_view(held):
        return pa.string()
    if pa.types.is_large_binary(held) or pa.types.is_binary_view(held):
        return pa.binary()
    if pa.types.is_large_list(held):
        return pa.list_(_plain_type(held.value_type))
    return held
