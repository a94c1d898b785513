"""Where Feast writes offline: saved datasets, logs of what was served, batches for a view's source.

Each is a dataset of the lake, in one commit, or Parquet files, as Feast's own file stores have them. What is
written is whole or not there at all.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat
from feast.data_source import DataSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.feature_logging import LoggingDestination
from feast.infra.offline_stores.file_source import (
    FileLoggingDestination,
    FileSource,
    SavedDatasetFileStorage,
)
from feast.protos.feast.core.DataSource_pb2 import DataSource as DataSourceProto
from feast.protos.feast.core.FeatureService_pb2 import LoggingConfig as LoggingConfigProto
from feast.protos.feast.core.SavedDataset_pb2 import SavedDatasetStorage as SavedDatasetStorageProto
from feast.saved_dataset import SavedDatasetStorage

from manta.data.lake import Change, Head, Lake, write_part
from manta.errors import DefinitionInvalid, InvalidInput
from manta.features import asof
from manta.features.source import DatasetSource


class DatasetStorage(SavedDatasetStorage):
    """A saved dataset of Feast that is a dataset of the lake.

    Attributes:
        dataset: its name; each time it is saved is a version.
        timestamp_field: the time column of the rows that are saved.
    """

    def __init__(self, dataset: str, timestamp_field: str = "event_timestamp") -> None:
        self.dataset = dataset
        self.timestamp_field = timestamp_field

    @staticmethod
    def from_proto(storage_proto: SavedDatasetStorageProto) -> SavedDatasetStorage:
        told = json.loads(storage_proto.custom_storage.configuration)
        return DatasetStorage(told["dataset"], told["timestamp_field"])

    def to_proto(self) -> SavedDatasetStorageProto:
        told = {"dataset": self.dataset, "timestamp_field": self.timestamp_field}
        options = DataSourceProto.CustomSourceOptions(configuration=json.dumps(told).encode())
        return self._custom_storage_proto(options)

    def to_data_source(self) -> DataSource:
        return DatasetSource(name=self.dataset, dataset=self.dataset, timestamp_field=self.timestamp_field)


class DatasetDestination(LoggingDestination):
    """Logs of what a feature service gave, appended to a dataset of the lake."""

    _proto_kind = "manta.dataset"

    def __init__(self, dataset: str) -> None:
        self.dataset = dataset

    @classmethod
    def from_proto(cls, config_proto: LoggingConfigProto) -> LoggingDestination:
        return cls(config_proto.custom_destination.config["dataset"])

    def to_proto(self) -> LoggingConfigProto:
        custom = LoggingConfigProto.CustomDestination(kind=self._proto_kind, config={"dataset": self.dataset})
        return LoggingConfigProto(custom_destination=custom)

    def to_data_source(self) -> DataSource:
        return DatasetSource(name=self.dataset, dataset=self.dataset, timestamp_field="__log_timestamp")


def save(
    blocks: Iterable[pa.Table], storage: SavedDatasetStorage, lake: Lake | None, repo: Any, overwrite: bool
) -> None:
    """Write the blocks, at least one of them, as a saved dataset.

    Raises:
        SavedDatasetLocationAlreadyExists: there is one, and it may not be overwritten.
        DefinitionInvalid: the storage is neither a dataset nor files here.
    """
    if isinstance(storage, DatasetStorage):
        _save_dataset(blocks, storage.dataset, required(lake), overwrite)
    elif isinstance(storage, SavedDatasetFileStorage):
        target = local_path(storage.to_data_source(), repo)
        if target.exists() and not overwrite:
            raise SavedDatasetLocationAlreadyExists(location=str(target))
        if target.suffix == ".parquet":
            with _aside(target) as partial:
                _write_file(blocks, partial)
        else:
            with _aside(target) as partial:
                write_files(blocks, partial)
    else:
        raise DefinitionInvalid(
            f"a saved dataset cannot be kept in a {type(storage).__name__}",
            hint="give storage=DatasetStorage(dataset=…), or SavedDatasetFileStorage(path=…)",
        )


def write_files(blocks: Iterable[pa.Table], folder: Path) -> list[str]:
    """Write each block into a Parquet file of its own, named in their order; gives the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, block in enumerate(blocks):
        files.append(str(folder / f"{number:05}.parquet"))
        pq.write_table(block, files[-1], compression="zstd")
    return files


def append(source: DataSource, rows: pa.Table, lake: Lake | None, repo: Any) -> None:
    """Add rows to the dataset or the files behind a source, under the source's own names and types.

    Raises:
        InvalidInput: they have other columns, or hold what its types cannot.
        DefinitionInvalid: the source cannot be written.
    """
    if isinstance(source, DatasetSource):
        _append(required(lake), source.dataset, pl.DataFrame(_unmapped(source, rows)))
        return
    target = local_path(source, repo)
    rows = _unmapped(source, rows)
    held = pq.read_schema(target) if target.is_file() else None
    if held is not None:
        rows = _as(rows, held, str(target))
    if target.suffix != ".parquet":
        target.mkdir(parents=True, exist_ok=True)
        target = target / f"{secrets.token_hex(8)}.parquet"
    with _aside(target) as partial:
        old = [pq.read_table(target, partitioning=None)] if held is not None else []
        _write_file([*old, rows], partial)


def log(destination: LoggingDestination, logs: pa.Table | Path, lake: Lake | None, repo: Any) -> None:
    """Add logs to their destination; ``logs`` may be a folder of Parquet files.

    Raises:
        DefinitionInvalid: the destination is neither a dataset nor files here.
    """
    table = logs if isinstance(logs, pa.Table) else pq.read_table(logs, partitioning=None)
    if isinstance(destination, DatasetDestination):
        _append(required(lake), destination.dataset, pl.DataFrame(table))
    elif isinstance(destination, FileLoggingDestination):
        folder = local_path(destination.to_data_source(), repo)
        name = f"{secrets.token_hex(8)}-{{i}}.parquet"
        by = destination.partition_by or None
        pq.write_to_dataset(table, folder, partition_cols=by, basename_template=name)
    else:
        raise DefinitionInvalid(
            f"features cannot be logged to a {type(destination).__name__}",
            hint="give LoggingConfig(destination=DatasetDestination(dataset=…))",
        )


def local_path(source: DataSource, repo: Any) -> Path:
    """Where the files of a source are on this machine.

    Raises:
        DefinitionInvalid: it is of another kind, or elsewhere.
    """
    uri = FileSource.get_uri_for_file_path(repo, source.path) if isinstance(source, FileSource) else "://"
    if "://" in uri.removeprefix("file://") or isinstance(source.file_format, DeltaFormat):  # type: ignore[attr-defined]
        raise DefinitionInvalid(
            f"source {source.name!r} is a {type(source).__name__} that this store does not write",
            hint="it writes datasets of the lake (DatasetSource) and Parquet files on this machine",
        )
    return Path(uri.removeprefix("file://"))


def required(lake: Lake | None) -> Lake:
    """Raises:
    DefinitionInvalid: the store was given no lake.
    """
    if lake is None:
        raise DefinitionInvalid(
            "the offline store knows no lake", hint="give offline_store.lake, the folder of the datasets"
        )
    return lake


# --- inside -------------------------------------------------------------------------------------------------


def _key() -> str:
    """A key of the lake's for a write that is no run's."""
    return f"feast-{secrets.token_hex(8)}-write"


def _save_dataset(blocks: Iterable[pa.Table], dataset: str, lake: Lake, overwrite: bool) -> None:
    def there() -> None:
        if not overwrite and lake.version(dataset) is not None:
            raise SavedDatasetLocationAlreadyExists(location=dataset)

    there()
    key, files, rows, schema = _key(), list[str](), 0, pa.schema([])
    with lake.staged(dataset, key) as folder:
        for number, block in enumerate(blocks):
            frame = _micros(pl.DataFrame(block))
            files.append(f"{folder}/{number:05}.parquet")
            write_part(frame, files[-1])
            rows, schema = rows + frame.height, frame.head(0).to_arrow().schema

        def change(_: Head) -> Change:
            there()
            return Change(files, None, {"mode": "replace", "rows": rows})

        lake.change(dataset, change, run_key=key, schema=schema)


def _append(lake: Lake, dataset: str, rows: pl.DataFrame) -> None:
    if lake.version(dataset) is not None:
        held = lake.scan(dataset).collect_schema()
        _same_columns(rows.columns, held.names(), f"dataset {dataset!r}")
        try:
            rows = rows.select(_cast(rows[name], kind, f"dataset {dataset!r}") for name, kind in held.items())
        except pl.exceptions.PolarsError as error:
            raise InvalidInput(f"dataset {dataset!r} cannot hold these rows: {error}") from error
    told = {"mode": "append", "rows": rows.height}
    lake.append(dataset, _micros(rows), run_key=_key(), metadata=told)


def _cast(given: pl.Series, wanted: pl.DataType, where: str) -> pl.Expr:
    """As the dataset has it, without loss: a cast that would lose a value fails."""
    name, held = given.name, given.dtype
    if isinstance(wanted, pl.Datetime) and isinstance(held, pl.Datetime | pl.Date):
        instant = asof.utc(name, held)
        return instant if wanted.time_zone else instant.dt.replace_time_zone(None)
    if held.is_float() and wanted.is_integer():  # pandas keeps integers with gaps as floats
        whole = given.fill_nan(None).drop_nulls()
        fits = bool((whole % 1 == 0).all())
        return pl.col(name).fill_nan(None).cast(wanted) if fits else _refuse(name, held, wanted, where)
    texts = isinstance(held, pl.String | pl.Categorical | pl.Enum) and wanted == pl.String
    numbers = held.is_numeric() and wanted.is_numeric()
    if held in (wanted, pl.Null) or texts or numbers or (held.is_nested() and wanted.is_nested()):
        return pl.col(name).cast(wanted)
    return _refuse(name, held, wanted, where)


def _refuse(name: str, held: pl.DataType, wanted: pl.DataType, where: str) -> NoReturn:
    raise InvalidInput(f"{where} has {name!r} as {wanted}, and the rows as {held}", hint=f"cast {name!r}")


def _micros(rows: pl.DataFrame) -> pl.DataFrame:
    """Times as Delta keeps them."""
    times = {name: kind for name, kind in rows.schema.items() if isinstance(kind, pl.Datetime)}
    return rows.with_columns(
        pl.col(name).cast(pl.Datetime("us", kind.time_zone)) for name, kind in times.items()
    )


def _unmapped(source: DataSource, rows: pa.Table) -> pa.Table:
    """Under the names that the source's columns have, which Feast has mapped already."""
    back = {new: old for old, new in source.field_mapping.items()}
    return rows.rename_columns([back.get(name, name) for name in rows.column_names])


def _as(rows: pa.Table, held: pa.Schema, where: str) -> pa.Table:
    _same_columns(rows.column_names, held.names, where)
    try:
        return rows.select(held.names).cast(held)
    except pa.ArrowInvalid as error:
        raise InvalidInput(f"{where} cannot hold these rows: {error}") from error


def _same_columns(given: list[str], held: list[str], where: str) -> None:
    if set(given) != set(held):
        raise InvalidInput(
            f"{where} has the columns {', '.join(held)}, and the rows {', '.join(given)}",
            hint="give each of them, and no other",
        )


def _write_file(blocks: Iterable[pa.Table], path: Path) -> None:
    every = iter(blocks)
    first = next(every)
    with pq.ParquetWriter(path, first.schema, compression="zstd") as file:
        file.write_table(first)
        for block in every:
            file.write_table(block)


@contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A path beside ``target``; what was written there takes its place at the end."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        if target.is_dir():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
