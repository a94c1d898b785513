"""ArrowComputeEngine: Feast's own `materialize` and `materialize_incremental`, through manta's writers.

In any `feature_store.yaml`:

    batch_engine:
      type: manta.features.engine.ArrowComputeEngine

What the offline store gives as Arrow is encoded column by column and written in batches; no value becomes a
protobuf object. The newest event time wins, also against what is pushed meanwhile. Every failure is raised,
so that Feast moves its watermark only past what is online; a run that was killed is simply made again.
"""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from feast import FeatureView
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _get_column_names

from manta.errors import DefinitionInvalid
from manta.features import asof
from manta.features.compiled import Feature, View
from manta.features.historical import side_of
from manta.features.manifest import keys_of, store_of, type_name
from manta.features.stores import open_store_of

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class ArrowComputeEngineConfig(FeastConfigBaseModel):
    type: Literal["manta.features.engine.ArrowComputeEngine"] = "manta.features.engine.ArrowComputeEngine"


class ArrowMaterializationJob(MaterializationJob):
    """One that has succeeded: what fails is raised."""

    def __init__(self, task: MaterializationTask, rows: int) -> None:
        self.task = task
        self.rows = rows

    def status(self) -> MaterializationJobStatus:
        return MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        return None

    def should_be_retried(self) -> bool:
        return False

    def job_id(self) -> str:
        return f"{self.task.feature_view.name}-{self.task.start_time}-{self.task.end_time}"

    def url(self) -> str | None:
        return None


class ArrowComputeEngine(ComputeEngine):
    """Materializes views without transformations, into the kinds of online store that manta writes, from any
    offline store."""

    def update(self, *_args: Any, **_kwargs: Any) -> None:
        """Nothing has to be there before it runs."""

    def teardown_infra(self, *_args: Any, **_kwargs: Any) -> None: ...

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **_kwargs: Any
    ) -> ArrowMaterializationJob:
        """
        Raises:
            DefinitionInvalid: the view transforms or aggregates, or has a type that manta does not write.
            FeaturesUnavailable: the online store is of another kind, cannot be written, or then holds another
                count than was written.
        """
        rows = 0
        if task.feature_view.online:
            table = self._pulled(registry, task)
            view = self._view(task.feature_view, task.project)
            rows_online = asof.newest(side_of(view, _frame(table, task).lazy(), f"view {view.name!r}"))
            with closing(open_store_of(store_of(self.repo_config))) as store:
                rows = store.write(view, rows_online)
        return ArrowMaterializationJob(task, rows)

    def _pulled(self, registry: BaseRegistry, task: MaterializationTask) -> pa.Table:
        """The newest row of each key, as the offline store gives it, under the names that the view has."""
        view = task.feature_view
        if getattr(view, "feature_transformation", None) or getattr(view, "aggregations", None):
            raise DefinitionInvalid(
                f"feature view {view.name!r} transforms or aggregates, which this engine does not do",
                hint="write the result as a feature table, and let the view read that; or take another "
                "batch_engine",
            )
        source: Any = view.batch_source
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        keys, features, time, created = _get_column_names(view, entities)
        job = self.offline_store.pull_latest_from_table_or_query(
            config=self.repo_config,
            data_source=source,
            join_key_columns=keys,
            feature_name_columns=features,
            timestamp_field=time,
            created_timestamp_column=created,
            start_date=_beginning(task),
            end_date=task.end_time,
        )
        table = job.to_arrow()
        mapping = source.field_mapping or {}
        return table.rename_columns([mapping.get(name, name) for name in table.column_names])

    def _view(self, view: FeatureView, project: str) -> View:
        where = f"of feature view {view.name!r}"
        versions = self.repo_config.registry.enable_online_feature_view_versioning
        source: Any = view.batch_source
        return View(
            name=view.name,
            table=compute_table_id(project, view, versions),
            dataset=source.name,
            time=source.timestamp_field,
            created=source.created_timestamp_column or None,
            ttl_seconds=0.0,
            keys=keys_of(view),
            features=tuple(
                Feature(f.name, type_name(f"feature {f.name!r} {where}", f.dtype), f.name)
                for f in view.features
            ),
        )


def _beginning(task: MaterializationTask) -> datetime:
    """From when on rows count. An interval that follows the last one is widened backwards, to all that a
    reader may still be given: rows that have come late lie before its beginning."""
    view = task.feature_view
    if not _same(getattr(view, "most_recent_end_time", None), task.start_time):
        return task.start_time
    return task.end_time - view.ttl if view.ttl else BEGINNING


def _same(one: datetime | None, other: datetime) -> bool:
    return one is not None and abs(_aware(one) - _aware(other)) < timedelta(seconds=1)


def _aware(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _frame(table: pa.Table, task: MaterializationTask) -> pl.DataFrame:
    frame = pl.DataFrame(table)
    if task.disable_event_timestamp:
        source: Any = task.feature_view.batch_source
        at = pl.lit(_aware(task.end_time)).dt.cast_time_unit("us")
        frame = frame.with_columns(at.alias(source.timestamp_field))
    return frame
