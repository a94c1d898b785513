"""What Feast hands back for a retrieval: computed when it is asked for, in the form that is asked for."""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
from feast import OnDemandFeatureView
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.saved_dataset import SavedDatasetStorage

from manta.data.lake import Lake
from manta.features.historical import Batches, Retrieval
from manta.features.partitioned import Limits, height_of
from manta.features.storage import save, write_files

if TYPE_CHECKING:
    import ray


@dataclass(frozen=True)
class Place:
    """Where a job may write: the lake, Feast's repository, and the folder that it exports to."""

    lake: Lake | None
    repo: Path | None
    staging: str | None
    limits: Limits


class Answer(ABC):
    """Rows that can be had in several ways; each computes them anew."""

    @abstractmethod
    def table(self, limits: Limits) -> pa.Table: ...

    @abstractmethod
    def blocks(self, limits: Limits) -> Iterator[pa.Table]:
        """One at a time, at least one; their schemas are the same."""

    @abstractmethod
    def on_ray(self, limits: Limits) -> list[ray.ObjectRef]:
        """The blocks, in Ray's object store; none comes to this process."""


@dataclass(frozen=True)
class Joined(Answer):
    """Features beside rows, which ``rows`` gives: in memory, or in batches."""

    retrieval: Retrieval
    rows: Callable[[], pa.Table | Batches]

    def table(self, limits: Limits) -> pa.Table:
        return self.retrieval.table(self.rows(), limits)

    def blocks(self, limits: Limits) -> Iterator[pa.Table]:
        return self.retrieval.blocks(self.rows(), limits)

    def on_ray(self, limits: Limits) -> list[ray.ObjectRef]:
        return self.retrieval.on_ray(self.rows(), limits)


@dataclass(frozen=True)
class Pulled(Answer):
    """Rows of one source. ``sliced``: a slice of them costs no more than it reads."""

    rows: pl.LazyFrame
    sliced: bool

    def table(self, limits: Limits) -> pa.Table:
        return plain(self.rows.collect(engine="streaming").to_arrow())

    def blocks(self, limits: Limits) -> Iterator[pa.Table]:
        if self.sliced:
            for start in self._starts(limits):
                yield _collect(self.rows.slice(start, limits.partition_rows))
        else:
            yield self.table(limits)

    def on_ray(self, limits: Limits) -> list[ray.ObjectRef]:
        import ray

        collect = ray.remote(num_cpus=1)(_collect).options(name="pull")
        size = limits.partition_rows
        slices = (
            [self.rows.slice(start, size) for start in self._starts(limits)] if self.sliced else [self.rows]
        )
        return [collect.remote(each) for each in slices]

    def _starts(self, limits: Limits) -> range:
        return range(0, max(1, height_of(self.rows)), limits.partition_rows)


class AsofRetrievalJob(RetrievalJob):
    """On-demand features are part of the answer, computed like all others."""

    def __init__(
        self,
        answer: Answer,
        place: Place,
        full_feature_names: bool = False,
        metadata: Callable[[], RetrievalMetadata | None] = lambda: None,
    ) -> None:
        self._answer = answer
        self._place = place
        self._full_feature_names = full_feature_names
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        return self._answer.table(self._place.limits)

    def _to_df_internal(self, timeout: int | None = None) -> Any:
        return self._to_arrow_internal(timeout).to_pandas()

    def to_ray_dataset(self) -> ray.data.Dataset:
        """The rows as a Ray Dataset. Ray's workers compute them and hold them in its object store, which
        spills; none passes through this process. They are computed now."""
        import ray.data

        blocks: list[Any] = self._answer.on_ray(self._place.limits)
        return ray.data.from_arrow_refs(blocks)

    def persist(
        self, storage: SavedDatasetStorage, allow_overwrite: bool = False, timeout: int | None = None
    ) -> None:
        """Write the rows, a block in memory at a time. See `storage.save`."""
        blocks = self._answer.blocks(self._place.limits)
        save(blocks, storage, self._place.lake, self._place.repo, allow_overwrite)

    def supports_remote_storage_export(self) -> bool:
        return self._place.staging is not None

    def to_remote_storage(self) -> list[str]:
        """Write the rows into new Parquet files under the store's `staging_location`; gives the files."""
        if self._place.staging is None:
            return super().to_remote_storage()
        folder = Path(self._place.staging) / secrets.token_hex(8)
        return write_files(self._answer.blocks(self._place.limits), folder)

    @property
    def full_feature_names(self) -> bool:
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return []  # none is left to Feast, which would infer the types of what they give

    @property
    def metadata(self) -> RetrievalMetadata | None:
        return self._metadata()


def plain(table: pa.Table) -> pa.Table:
    """With the strings that every Arrow reader knows; Polars gives large ones or views, and Feast takes a
    large string for JSON."""
    fields = [pa.field(field.name, _plain_type(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields, metadata=table.schema.metadata))


def _collect(rows: pl.LazyFrame) -> pa.Table:
    return plain(rows.collect().to_arrow())


def _plain_type(held: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(held) or pa.types.is_string_view(held):
        return pa.string()
    if pa.types.is_large_binary(held) or pa.types.is_binary_view(held):
        return pa.binary()
    if pa.types.is_large_list(held):
        return pa.list_(_plain_type(held.value_type))
    return held
