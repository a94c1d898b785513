"""DatasetSource: a dataset of the lake as a Feast data source."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from feast import ValueType
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.repo_config import RepoConfig
from feast.type_map import pa_to_feast_value_type

from manta.data.lake import Lake
from manta.errors import DefinitionInvalid, NotFound

TIMELESS = "__always"
"""What Feast is told is the timestamp field of a dataset without one: all its rows hold from 1970 on."""


class DatasetSource(DataSource):
    """A dataset of the lake, for feature views; read by `manta.features.offline.AsofOfflineStore`.

    Attributes:
        dataset: the dataset's name.
        timestamp_field: the column, UTC, from when on a row is known; None for facts without a time, whose
            views must have no TTL.
        created_timestamp_column: when a row was written; among rows of one time the last written counts, and
            a training set does not see a row before it was written.
    """

    dataset: str

    def __init__(
        self,
        *,
        name: str,
        dataset: str,
        timestamp_field: str | None,
        created_timestamp_column: str = "",
        field_mapping: dict[str, str] | None = None,
        description: str = "",
        tags: dict[str, str] | None = None,
        owner: str = "",
    ) -> None:
        super().__init__(
            name=name,
            timestamp_field=timestamp_field or TIMELESS,
            created_timestamp_column=created_timestamp_column,
            field_mapping=field_mapping,
            description=description,
            tags=tags,
            owner=owner,
        )
        self.dataset = dataset

    @property
    def time(self) -> str | None:
        """The dataset's own time column; None when it has none."""
        return None if self.timestamp_field == TIMELESS else self.column(self.timestamp_field)

    @property
    def created(self) -> str | None:
        return self.column(self.created_timestamp_column) if self.created_timestamp_column else None

    def column(self, name: str) -> str:
        """The dataset's column behind a name that Feast knows."""
        return {new: old for old, new in self.field_mapping.items()}.get(name, name)

    # --- Feast's side ---------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, DatasetSource) and self.dataset == other.dataset and bool(super().__eq__(other))
        )

    def __hash__(self) -> int:
        return hash((self.name, self.dataset, self.timestamp_field))

    def source_type(self) -> Any:
        return DataSourceProto.CUSTOM_SOURCE

    @staticmethod
    def from_proto(data_source: DataSourceProto) -> DatasetSource:
        options = json.loads(data_source.custom_options.configuration)
        return DatasetSource(
            name=data_source.name,
            dataset=options["dataset"],
            timestamp_field=data_source.timestamp_field,
            created_timestamp_column=data_source.created_timestamp_column,
            field_mapping=dict(data_source.field_mapping),
            description=data_source.description,
            tags=dict(data_source.tags),
            owner=data_source.owner,
        )

    def _to_proto_impl(self) -> DataSourceProto:
        return DataSourceProto(
            type=DataSourceProto.CUSTOM_SOURCE,
            data_source_class_type=f"{type(self).__module__}.{type(self).__qualname__}",
            custom_options=DataSourceProto.CustomSourceOptions(
                configuration=json.dumps({"dataset": self.dataset}, sort_keys=True).encode()
            ),
            name=self.name,
            timestamp_field=self.timestamp_field,
            created_timestamp_column=self.created_timestamp_column,
            field_mapping=self.field_mapping,
            description=self.description,
            tags=self.tags,
            owner=self.owner,
        )

    def validate(self, config: RepoConfig) -> None:
        """Check the dataset against the source. One that has not been made yet is no fault.

        Raises:
            DefinitionInvalid: it has no such time column.
        """
        try:
            held = dict(self.get_table_column_names_and_types(config))
        except NotFound:
            return
        for column in filter(None, (self.time, self.created)):
            if not held.get(column, "").startswith(("timestamp", "date")):
                raise DefinitionInvalid(
                    f"source {self.name!r}: dataset {self.dataset!r} has no time column {column!r}",
                    hint=f"it has: {', '.join(f'{name} {kind}' for name, kind in held.items())}",
                )

    def get_table_column_names_and_types(self, config: RepoConfig) -> Iterable[tuple[str, str]]:
        empty = Lake(config.offline_store.lake).scan(self.dataset).head(0).collect().to_arrow()
        return [(field.name, _type_name(field.type)) for field in empty.schema]

    @staticmethod
    def source_datatype_to_feast_value_type() -> Callable[[str], ValueType]:
        return pa_to_feast_value_type

    def get_table_query_string(self) -> str:
        return f'"{self.dataset}"'


def _type_name(held: pa.DataType) -> str:
    """Arrow's name of a type as Feast's type map has it, which knows one kind of string only."""
    if pa.types.is_large_string(held) or pa.types.is_string_view(held):
        return "string"
    if pa.types.is_large_binary(held) or pa.types.is_binary_view(held):
        return "binary"
    if pa.types.is_large_list(held) or pa.types.is_list(held):
        return f"list<item: {_type_name(held.value_type)}>"
    return str(held)


# --- what any source holds ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """What a source says of its columns, under the names that they have there.

    ``label`` names the source in errors; ``dataset`` is None where it holds files.
    """

    label: str
    dataset: str | None
    time: str | None
    created: str | None
    column: Callable[[str], str]


def held_in(source: DataSource | None) -> Held:
    """Raises:
    DefinitionInvalid: it is neither a dataset nor files.
    """
    if isinstance(source, DatasetSource):
        label = f"dataset {source.dataset!r}"
        return Held(label, source.dataset, source.time, source.created, source.column)
    if isinstance(source, FileSource):
        old = {new: name for name, new in source.field_mapping.items()}
        time, created = source.timestamp_field, source.created_timestamp_column or ""
        return Held(
            label=f"file source {source.name!r}",
            dataset=None,
            time=old.get(time, time),
            created=old.get(created, created) or None,
            column=lambda name: old.get(name, name),
        )
    raise _not_read(source)


def scan_files(source: DataSource | None, repo: Path | None) -> pl.LazyFrame:
    """The rows of Parquet files or of a Delta table; a relative path begins in Feast's repository.

    Raises:
        NotFound: nothing is there.
        DefinitionInvalid: they have another format, or the source is of another kind.
    """
    if not isinstance(source, FileSource):
        raise _not_read(source)
    uri = FileSource.get_uri_for_file_path(repo, source.path)
    local = Path(uri.removeprefix("file://"))
    if "://" not in uri.removeprefix("file://"):
        uri = str(local)
        if not local.exists() and not any(local.parent.glob(local.name)):
            raise NotFound(
                f"file source {source.name!r}: there is no {uri}", hint="make it, or correct its path"
            )
    endpoint = source.s3_endpoint_override
    options = {"aws_endpoint_url": endpoint, "aws_allow_http": "true"} if endpoint else None
    if isinstance(source.file_format, DeltaFormat):
        return pl.scan_delta(uri, storage_options=options)
    if source.file_format is not None and not isinstance(source.file_format, ParquetFormat):
        raise DefinitionInvalid(
            f"file source {source.name!r} is of {type(source.file_format).__name__}",
            hint="Parquet files and Delta tables are read",
        )
    return pl.scan_parquet(uri, storage_options=options, missing_columns="insert")


def _not_read(source: object) -> DefinitionInvalid:
    return DefinitionInvalid(
        f"source {getattr(source, 'name', '')!r} is a {type(source).__name__}: this store does not read it",
        hint="give the view source=DatasetSource(…), or a FileSource of Parquet files or a Delta table",
    )
