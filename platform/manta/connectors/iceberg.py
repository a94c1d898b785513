"""Apache Iceberg tables, of whatever catalog ``pyiceberg`` knows: REST, SQL, Hive, Glue."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from manta import secrets
from manta.definitions.sources import Ask, Reading, Rows, Source, driver
from manta.errors import SourceUnreadable

SKIPPED = "replace"  # an operation that only rewrites the same rows


class IcebergTable(Source):
    """An Iceberg table, read file by file at one snapshot of it. Rows that delete files take away are left
    out; tables with equality deletes, which pyiceberg cannot read, are refused.

        IcebergTable(table="shop.orders", catalog={"uri": "https://…", "token": Secret("env:TOKEN")})

    With ``new_only``, a reading gives the rows that were appended since the last one's snapshot. Compaction
    is no change. When rows were overwritten or deleted meanwhile, the reading is refused: what is new cannot
    be told then; read the table whole, with mode ``replace``.

    Attributes:
        table: its name in the catalog, with its namespace.
        catalog: pyiceberg's properties of the catalog and of the storage, and its ``name`` where that counts,
            as in a SQL catalog (``default`` unless given). May hold references to secrets.
        snapshot: the id of one; the current one when not given.
        new_only: read on from the snapshot that the last reading ended with.
    """

    kind: Literal["iceberg"] = "iceberg"
    table: str
    catalog: dict[str, str]
    snapshot: int | None = None
    new_only: bool = False

    @model_validator(mode="after")
    def _one_or_the_other(self) -> IcebergTable:
        if self.new_only and self.snapshot is not None:
            raise ValueError("new_only reads up to the current snapshot: leave out `snapshot`")
        return self

    @property
    def incremental(self) -> bool:
        return self.new_only

    def observe(self, root: Path) -> str | None:
        return None if self.snapshot is None else str(self.snapshot)

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        table = self._load()
        current = table.current_snapshot()
        snapshot = self.snapshot or (current.snapshot_id if current else None)
        if self.snapshot is not None and table.snapshot_by_id(self.snapshot) is None:
            raise SourceUnreadable(
                f"the Iceberg table {self.table} has no snapshot {self.snapshot}",
                hint="it has expired, or never was: leave `snapshot` out for the current one",
            )
        identity = str(table.metadata.table_uuid)
        pieces = [] if snapshot is None else self._files(table, snapshot, ask.cursor, identity)
        cursor = {"snapshot": snapshot, "table": identity} if self.new_only else None
        yield Reading(pieces, f"{identity}@{snapshot}", cursor)

    def read(self, piece: File, ask: Ask) -> Iterator[Rows]:
        import pyarrow as pa
        from pyiceberg.expressions import AlwaysTrue
        from pyiceberg.io.pyarrow import ArrowScan

        from manta.connectors._arrow import rows_of

        table = self._load()
        whole = table.scan(snapshot_id=piece.snapshot).projection()
        names = [field.name for field in whole.fields]
        # With none of the columns asked for, one of its own tells how many rows there are.
        wanted = [name for name in names if name in ask.columns] or names[:1]
        try:
            scan = ArrowScan(table.metadata, table.io, whole.select(*wanted), AlwaysTrue())
            for batch in scan.to_record_batches([pickle.loads(piece.task)]):
                for rows in rows_of(pa.Table.from_batches([batch]), ask.columns, piece.file):
                    yield rows._replace(columns=names)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise SourceUnreadable(
                f"{piece.file} of the Iceberg table {self.table} cannot be read: {_told(error)}",
                hint="if its snapshot has expired, run the ingest again; otherwise the file is damaged",
            ) from None

    def _load(self) -> Any:
        driver("pyiceberg", "iceberg")
        from pyiceberg.catalog import load_catalog
        from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError, NotInstalledError

        properties = dict(secrets.resolve(self.catalog))
        try:
            return load_catalog(properties.pop("name", "default"), **properties).load_table(self.table)
        except (NoSuchTableError, NoSuchNamespaceError):
            raise SourceUnreadable(
                f"the catalog has no Iceberg table {self.table!r}", hint="correct `table`: namespace.name"
            ) from None
        except NotInstalledError as error:
            raise SourceUnreadable(
                f"the catalog of {self.table!r} needs another package: {error}", hint="install what it names"
            ) from None
        except Exception as error:
            # Each kind of catalog has its own client, and each client errors of its own.
            raise SourceUnreadable(
                f"the Iceberg table {self.table!r} cannot be opened: {type(error).__name__}: {_told(error)}",
                hint="see that the catalog answers, and correct its address or credentials in `catalog`",
            ) from None

    def _files(self, table: Any, snapshot: int, cursor: Any, identity: str) -> list[File]:
        if not self.new_only or cursor is None or cursor["snapshot"] is None:
            scan = table.scan(snapshot_id=snapshot)
        elif cursor["table"] != identity:
            raise self._not_appended("it is another table than the one read before")
        elif cursor["snapshot"] == snapshot:
            return []
        else:
            self._require_appended(table, cursor["snapshot"], snapshot)
            scan = table.incremental_append_scan(
                from_snapshot_id_exclusive=cursor["snapshot"], to_snapshot_id_inclusive=snapshot
            )
        try:
            tasks = list(scan.plan_files())
        except (OSError, ValueError) as error:
            raise SourceUnreadable(
                f"the files of the Iceberg table {self.table} cannot be listed: {_told(error)}",
                hint="for equality deletes: compact the table; otherwise its metadata is damaged",
            ) from None
        found = [
            File(task.file.file_path, task.file.file_size_in_bytes, snapshot, pickle.dumps(task))
            for task in tasks
        ]
        return sorted(found, key=lambda file: file.file)

    def _require_appended(self, table: Any, since: int, snapshot: int) -> None:
        """Raises:
        SourceUnreadable: the snapshots between the two are not all there, or did more than append.
        """
        at = table.snapshot_by_id(snapshot)
        while at is not None and at.snapshot_id != since:
            operation = at.summary.operation.value if at.summary else "?"
            if operation not in ("append", SKIPPED):
                raise self._not_appended(f"snapshot {at.snapshot_id} ({operation}) changed or deleted rows")
            parent = at.parent_snapshot_id
            if parent == since:
                return
            at = table.snapshot_by_id(parent) if parent is not None else None
        if at is None:
            raise self._not_appended(f"snapshot {since}, the last that was read, is not one of its past")

    def _not_appended(self, why: str) -> SourceUnreadable:
        return SourceUnreadable(
            f"what is new in the Iceberg table {self.table} cannot be told: {why}",
            hint="read it whole once: without new_only, with mode='replace'",
        )


@dataclass(frozen=True)
class File:
    """A data file of a snapshot; ``task`` is pyiceberg's plan for it, with its delete files, pickled."""

    file: str
    size: int
    snapshot: int
    task: bytes


def _told(error: Exception) -> str:
    return secrets.redactor.text(secrets.without_passwords(" ".join(str(error).split())))[:400]
