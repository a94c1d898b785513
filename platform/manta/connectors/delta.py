"""Delta tables that others write, on local disk or whatever storage ``deltalake`` opens."""

from __future__ import annotations

import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from manta import secrets
from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    import deltalake
    import pyarrow as pa

# What a reader must know of, and this one does: see `_require_readable`.
FEATURES = {
    *("columnMapping", "deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"),
    *("typeWidening", "typeWidening-preview"),
}
PATIENCE = {"connect_timeout": "5s", "timeout": "60s", "max_retries": "4", "retry_timeout": "30s"}
REMOTE = ("s3", "gs", "gcs", "az", "abfs", "http", "hdfs", "file")  # how URLs begin


class DeltaTable(Source):
    """A Delta table, read file by file at one version of it. Column mapping, deletion vectors and partition
    values are honoured; a table that needs what is not known here is refused, not misread.

    With ``new_only``, a reading gives the rows that were appended since the last one's version. Rewriting the
    same rows (OPTIMIZE) is no change. When rows were changed or deleted meanwhile, the reading is refused:
    what is new cannot be told then; read the table whole, with mode ``replace``.

    Attributes:
        path: a folder, relative to the project's, or a URL: ``s3://bucket/table``, ``gs://…``, ``abfs://…``.
        version: that version; the newest when not given.
        new_only: read on from the version that the last reading ended with.
        storage: options of deltalake's object store (``AWS_REGION``, …); may hold references to secrets.
    """

    kind: Literal["delta"] = "delta"
    path: str
    version: int | None = None
    new_only: bool = False
    storage: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_or_the_other(self) -> DeltaTable:
        if self.new_only and self.version is not None:
            raise ValueError("new_only reads up to the newest version: leave out `version`")
        return self

    @property
    def incremental(self) -> bool:
        return self.new_only

    def observe(self, root: Path) -> str | None:
        """Of a table on local disk: the newest entries of its log."""
        if self.version is not None:
            return str(self.version)
        log = Path(self._uri(root)) / "_delta_log"
        if "://" in self.path:
            return None
        if not log.is_dir():
            raise self._missing(f"{log} is not there")
        return max((path.name for path in log.glob("*.json")), default="")

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        from deltalake.exceptions import DeltaError

        table = self._open(ask.root, self.version)
        _require_readable(self.path, table)
        version, identity = table.version(), str(table.metadata().id)
        try:
            pieces = self._files(table)
            if self.new_only and ask.cursor is not None:
                pieces = self._added(table, pieces, ask)
        except (DeltaError, OSError) as error:
            raise SourceUnreadable(
                f"the log of the Delta table {self.path} cannot be read: {_told(error)}",
                hint="see that the table is whole: its own engine should complain too",
            ) from None
        cursor = {"version": version, "table": identity} if self.new_only else None
        yield Reading(pieces, f"{identity}@{version}", cursor)

    def read(self, piece: File, ask: Ask) -> Iterator[Rows]:
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        from manta.connectors._arrow import BATCH_ROWS, rows_of

        schema: pa.Schema = pa.ipc.read_schema(pa.py_buffer(piece.schema))
        fields = [field for field in schema if field.name in ask.columns]
        deleted = np.frombuffer(piece.deleted, dtype=np.int64)
        try:
            with pq.ParquetFile(_store(piece.table, self._options()).open_input_file(piece.path)) as file:
                there = set(file.schema_arrow.names)
                stored = [_physical(field).name for field in fields]
                first = 0
                batches = file.iter_batches(BATCH_ROWS, columns=[name for name in stored if name in there])
                for batch in batches:
                    columns = [_column(batch, field, piece.partition) for field in fields]
                    table = pa.Table.from_arrays(columns, names=[field.name for field in fields])
                    if len(deleted):
                        gone = deleted[(deleted >= first) & (deleted < first + batch.num_rows)] - first
                        table = table.take(pa.array(np.delete(np.arange(batch.num_rows), gone)))
                    first += batch.num_rows
                    for rows in rows_of(table, ask.columns, piece.file) if fields else ():
                        yield rows._replace(columns=schema.names)
        except (OSError, pa.ArrowException) as error:
            raise SourceUnreadable(
                f"{piece.file} of the Delta table {self.path} cannot be read: {_told(error)}",
                hint="if it was vacuumed away, read the table again, or an incremental one whole; "
                "otherwise see that the table's files are all there",
            ) from None

    # --- where the reading begins -------------------------------------------------------------------------

    def _uri(self, root: Path) -> str:
        return secrets.resolve_url(self.path) if "://" in self.path else str(root / self.path)

    def _options(self) -> dict[str, str]:
        return PATIENCE | dict(secrets.resolve(self.storage))

    def _open(self, root: Path, version: int | None) -> deltalake.DeltaTable:
        from deltalake import DeltaTable as Table
        from deltalake.exceptions import DeltaError, TableNotFoundError

        try:
            return Table(self._uri(root), version=version, storage_options=self._options())
        except TableNotFoundError as error:
            raise self._missing(_told(error)) from None
        except (DeltaError, OSError, ValueError) as error:
            which = "" if version is None else f" at version {version}"
            raise SourceUnreadable(
                f"the Delta table {self.path}{which} cannot be opened: {_told(error)}",
                hint="correct `version`, the address or the credentials in `storage`",
            ) from None

    def _missing(self, why: str) -> SourceUnreadable:
        return SourceUnreadable(
            f"there is no Delta table at {self.path}: {why}", hint="correct `path` in DeltaTable(…)"
        )

    def _files(self, table: deltalake.DeltaTable) -> list[File]:
        """Those of the version that is open, from the oldest on."""
        import pyarrow as pa

        schema = pa.schema(table.schema()).serialize().to_pybytes()
        deleted = _deleted(table)
        found = []
        for add in sorted(
            pa.table(table.get_add_actions()).to_pylist(),
            key=lambda add: (add["modification_time"], add["path"]),
        ):
            path = urllib.parse.unquote(add["path"])
            if path.partition(":")[0] in REMOTE or path.startswith("/"):
                raise SourceUnreadable(
                    f"the Delta table {self.path} is a shallow clone: {path} belongs to another table",
                    hint="read the table that it was cloned from, or clone it deeply",
                )
            of = add.get("partition") or {}
            rows = deleted.get(path, b"")
            found.append(File(path, add["size_bytes"], table.table_uri, schema, of, rows))
        return found

    def _added(self, table: deltalake.DeltaTable, files: list[File], ask: Ask) -> list[File]:
        """What the commits after the cursor's version added, in their order."""
        since, version, held = ask.cursor["version"], table.version(), {file.path: file for file in files}
        if ask.cursor["table"] != str(table.metadata().id):
            raise self._not_appended("it is another table than the one read before")
        if version < since:
            raise self._not_appended(f"its newest version is {version}, and {since} was read")
        log = _store(table.table_uri, self._options())
        found: list[File] = []
        for commit in range(since + 1, version + 1):
            added = _commit(log, commit)
            if added is None:
                raise self._not_appended(f"the log of version {commit} is no longer kept")
            if added.removes:
                raise self._not_appended(f"version {commit} ({added.operation}) changed or deleted rows")
            if not added.paths <= set(held):
                # They were rewritten since: as that version has them.
                held |= {file.path: file for file in self._files(self._open(ask.root, commit))}
            found += sorted((held[path] for path in added.paths), key=lambda file: file.path)
        return found

    def _not_appended(self, why: str) -> SourceUnreadable:
        return SourceUnreadable(
            f"what is new in the Delta table {self.path} cannot be told: {why}",
            hint="read it whole once: without new_only, with mode='replace'",
        )


@dataclass(frozen=True)
class File:
    """A file of the table, with what it does not hold itself: see Delta's protocol.

    ``path`` is within ``table``, a URL; ``schema`` Arrow's, serialized; ``partition`` has the values of the
    columns by which the table is partitioned; ``deleted`` the numbers of rows that are gone, int64 from 0.
    """

    path: str
    size: int
    table: str
    schema: bytes
    partition: Mapping[str, Any]
    deleted: bytes

    @property
    def file(self) -> str:
        return self.path


@dataclass(frozen=True)
class Commit:
    """What a version did to the rows of the one before: the files that it added, and whether it took some."""

    operation: str
    paths: frozenset[str]
    removes: bool


def _commit(log: Any, version: int) -> Commit | None:
    """None when the log of that version is gone."""
    try:
        with log.open_input_stream(f"_delta_log/{version:020d}.json") as stream:
            actions = [json.loads(line) for line in stream.read().splitlines() if line.strip()]
    except FileNotFoundError:
        return None
    adds = [action["add"] for action in actions if action.get("add", {}).get("dataChange")]
    removes = any(action.get("remove", {}).get("dataChange") for action in actions)
    operation = next(
        (action["commitInfo"].get("operation") for action in actions if "commitInfo" in action), None
    )
    return Commit(operation or "?", frozenset(urllib.parse.unquote(add["path"]) for add in adds), removes)


def _require_readable(path: str, table: deltalake.DeltaTable) -> None:
    unknown = sorted(set(table.protocol().reader_features or ()) - FEATURES)
    if unknown:
        raise SourceUnreadable(
            f"the Delta table {path} uses {', '.join(unknown)}, which is not known here",
            hint="drop the feature from the table, or read it with its own engine through FromRay",
        )
    if table.metadata().configuration.get("delta.columnMapping.mode") == "id":
        raise SourceUnreadable(
            f"the columns of the Delta table {path} are mapped by id, which is not known here",
            hint="rewrite it with delta.columnMapping.mode = name",
        )


def _deleted(table: deltalake.DeltaTable) -> dict[str, bytes]:
    """The rows that deletion vectors take from files, by the file's path in the table."""
    import numpy as np
    import pyarrow as pa

    found = {}
    for batch in pa.RecordBatchReader.from_stream(table.deletion_vectors()):
        for path, kept in zip(batch["filepath"], batch["selection_vector"], strict=True):
            keep = kept.values.to_numpy(zero_copy_only=False).astype(bool)
            rows = np.flatnonzero(~keep).astype(np.int64)
            found[urllib.parse.unquote(path.as_py()).removeprefix(urllib.parse.unquote(table.table_uri))] = (
                rows.tobytes()
            )
    return found


def _store(table: str, options: dict[str, str]) -> Any:
    import pyarrow.fs
    from deltalake.fs import DeltaStorageHandler

    return pyarrow.fs.PyFileSystem(DeltaStorageHandler(table, options))


# --- in a task --------------------------------------------------------------------------------------------


def _column(batch: pa.RecordBatch, field: pa.Field, partition: Mapping[str, Any]) -> pa.Array:
    """As the table has it: its value for the file, or the file's column under its own name and type."""
    import pyarrow as pa

    if field.name in partition:
        return pa.repeat(pa.scalar(partition[field.name], field.type), batch.num_rows)
    stored = _physical(field)
    if stored.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, field.type)
    return batch.column(stored.name).cast(stored.type).view(_logical(field.type))


def _physical(field: pa.Field) -> pa.Field:
    """With the names that the files use, also within."""
    import pyarrow as pa

    name = (field.metadata or {}).get(b"delta.columnMapping.physicalName", field.name.encode()).decode()
    return pa.field(name, _named(field.type, _physical))


def _logical(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    return _named(kind, lambda field: pa.field(field.name, _logical(field.type)))


def _named(kind: pa.DataType, rename: Any) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return pa.struct([rename(field) for field in kind])
    if pa.types.is_list(kind):
        return pa.list_(rename(kind.value_field))
    if pa.types.is_map(kind):
        return pa.map_(_named(kind.key_type, rename), rename(kind.item_field))
    return kind


def _told(error: Exception) -> str:
    """An error of deltalake's in one line."""
    text = " ".join(str(error).replace("\x1b[31m↳\x1b[0m", " ").split())
    return secrets.redactor.text(secrets.without_passwords(text))[:400]
