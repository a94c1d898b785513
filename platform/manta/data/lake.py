"""The lake: datasets as Delta tables, each version made by exactly one commit of exactly one run.

A writer stages Parquet files under a folder of its own inside the table, where no reader looks, and then
makes one Delta commit that removes what the table held and adds them. Before the commit nothing is visible;
after it, all is. A killed writer leaves at most files that no version names.
"""

from __future__ import annotations

import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Schema, Transaction
from deltalake.exceptions import DeltaError
from deltalake.transaction import AddAction, RemoveAction, create_table_with_add_actions

from manta.data.commits import told_of
from manta.errors import Conflict, NotFound

COMMIT_TRIES = 50
# A training set must be rebuildable years later: versions do not expire by themselves.
CONFIGURATION = {"delta.logRetentionDuration": "interval 36500 days"}


class Head(NamedTuple):
    """The newest version, None before the first, and what its writer kept with it."""

    version: int | None
    metadata: Mapping[str, Any]


class Change(NamedTuple):
    """What a commit does to the version before it.

    Attributes:
        add: staged Parquet files.
        remove: files of that version, as :meth:`Lake.files` names them; None removes all.
        metadata: JSON to be kept with the commit.
    """

    add: Sequence[str]
    remove: Sequence[str] | None
    metadata: Mapping[str, Any]


def quarantine_of(dataset: str) -> str:
    """The dataset that holds the rows refused by the newest ingest of ``dataset``."""
    return f"{dataset}__quarantine"


class Lake:
    """The datasets in one folder. Holds no state: make one where it is needed, in any process."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()

    def path(self, dataset: str) -> str:
        """The folder of the dataset's Delta table, whether it exists or not."""
        return str(self.folder / dataset)

    def version(self, dataset: str) -> int | None:
        """The newest version; None when nothing has been committed."""
        return self._open(dataset).version() if self._exists(dataset) else None

    def head(self, dataset: str) -> Head:
        """The newest version, and what its writer kept with it."""
        newest = self.version(dataset)
        return Head(newest, {} if newest is None else self.metadata(dataset, newest))

    # --- reading --------------------------------------------------------------------------------------

    def scan(
        self, dataset: str, version: int | str | None = None, only: Sequence[str] | None = None
    ) -> pl.LazyFrame:
        """The rows of a version, the newest when None, in the order in which its files were committed; of
        ``only`` some of its :meth:`files`, when given.

        Raises:
            NotFound: the dataset, or that version of it, does not exist.
        """
        table = self._open(dataset, version)
        # Part numbers are padded, so that the order of names is the order of rows.
        files = sorted(
            table.file_uris() if only is None else [f"{self.path(dataset)}/{file}" for file in only]
        )
        content = pl.DataFrame(pa.schema(table.schema()).empty_table())
        if not files:
            return content.lazy()
        # A file from before a column was added does not have it.
        return pl.scan_parquet(
            files, glob=False, hive_partitioning=False, schema=content.schema, missing_columns="insert"
        )

    def files(self, dataset: str, version: int | str | None = None) -> list[str]:
        """The files of a version, as paths inside the dataset's folder, sorted."""
        return sorted(pa.table(self._open(dataset, version).get_add_actions())["path"].to_pylist())

    def schema(self, dataset: str, version: int | str | None = None) -> pa.Schema:
        """The columns of a version, and which of them may be null."""
        return pa.schema(self._open(dataset, version).schema())

    def read(
        self, dataset: str, version: int | str | None = None, columns: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Like :meth:`scan`, in memory; only ``columns`` when given."""
        rows = self.scan(dataset, version)
        return (rows if columns is None else rows.select(columns)).collect()

    def metadata(self, dataset: str, version: int | str | None = None) -> dict[str, Any]:
        """What the writer of a version kept with it.

        Raises:
            NotFound: the dataset, or that version of it, does not exist.
        """
        wanted = self._open(dataset, version).version()
        table = self._open(dataset)
        # Delta gives the history from the newest commit on, whichever version is open.
        commits = {commit["version"]: commit for commit in table.history(table.version() - wanted + 1)}
        return told_of(commits[wanted])

    # --- writing --------------------------------------------------------------------------------------

    def stage(self, dataset: str, run_key: str) -> str:
        """A new empty folder inside the table, for Parquet files that :meth:`commit` will be given.

        Every call gives another one: two attempts of a run never share files.
        """
        folder = Path(self.path(dataset)) / "parts" / run_key / secrets.token_hex(4)
        folder.mkdir(parents=True)
        return str(folder)

    def inside(self, dataset: str, path: str) -> str:
        """Where a staged file is, as seen from the table's folder: how commits name files."""
        return Path(path).absolute().relative_to(self.path(dataset)).as_posix()

    @contextmanager
    def staged(self, dataset: str, run_key: str) -> Iterator[str]:
        """:meth:`stage` a folder, which is removed again if what is done with it fails."""
        folder = self.stage(dataset, run_key)
        try:
            yield folder
        except BaseException:
            # What ends a run may come when the commit is made: then the files are the dataset's.
            if self.committed(dataset, run_key) is None:
                self.discard(folder)
            raise

    def discard(self, folder: str) -> None:
        """Remove a staged folder that will not be committed."""
        shutil.rmtree(folder, ignore_errors=True)

    def committed(self, dataset: str, run_key: str) -> int | None:
        """The version that ``run_key`` made; None when it has made none."""
        return self._open(dataset).transaction_version(run_key) if self._exists(dataset) else None

    def commit(
        self,
        dataset: str,
        files: Sequence[str],
        *,
        run_key: str,
        schema: pa.Schema,
        metadata: Mapping[str, Any] | None = None,
    ) -> int:
        """Make the staged ``files`` the whole content of the dataset, in one commit; gives its version.

        As :meth:`change`.
        """
        return self.change(
            dataset, lambda _: Change(files, None, metadata or {}), run_key=run_key, schema=schema
        )

    def change(self, dataset: str, make: Callable[[Head], Change], *, run_key: str, schema: pa.Schema) -> int:
        """Commit what ``make`` finds is to be done to the newest version; gives the version made.

        ``make`` is called again when another writer was faster: the change is always one of the version
        directly before it. What it raises ends the attempt, with nothing committed. The same ``run_key``
        again commits nothing and gives the version it made. When several runs commit at once, each makes a
        version of its own, one after the other. Whatever else the run has staged is removed.

        Raises:
            Conflict: other writers were faster, many times in a row.
        """
        for tries in range(COMMIT_TRIES):
            head = self.head(dataset)
            made = self.committed(dataset, run_key)
            if made is None:
                change = make(head)
                try:
                    made = self._commit_after(head.version, dataset, change, run_key, schema)
                except DeltaError:
                    if self.version(dataset) == head.version:
                        raise  # nobody was faster: something else is wrong
                    time.sleep(0.005 * secrets.randbelow(min(tries, 10) + 2))
                    continue
            self._sweep(dataset, run_key, made)
            return made
        raise Conflict(
            f"dataset {dataset!r} is being written by others all the time",
            hint="let the other runs end, and try again",
        )

    def replace(
        self, dataset: str, frame: pl.DataFrame, *, run_key: str, metadata: Mapping[str, Any] | None = None
    ) -> int:
        """Stage a frame that is in memory, and make it the whole content."""
        return self._put(dataset, frame, None, run_key, metadata or {})

    def append(
        self, dataset: str, frame: pl.DataFrame, *, run_key: str, metadata: Mapping[str, Any] | None = None
    ) -> int:
        """Stage a frame that is in memory, and add it."""
        return self._put(dataset, frame, (), run_key, metadata or {})

    # --- inside ---------------------------------------------------------------------------------------

    def _put(
        self,
        dataset: str,
        frame: pl.DataFrame,
        remove: Sequence[str] | None,
        run_key: str,
        metadata: Mapping[str, Any],
    ) -> int:
        path = f"{self.stage(dataset, run_key)}/00000.parquet"
        write_part(frame, path)
        change = Change([path], remove, metadata)
        schema = frame.head(0).to_arrow().schema
        return self.change(dataset, lambda _: change, run_key=run_key, schema=schema)

    def _exists(self, dataset: str) -> bool:
        return DeltaTable.is_deltatable(self.path(dataset))

    def _open(self, dataset: str, version: int | str | None = None) -> DeltaTable:
        if not self._exists(dataset):
            raise NotFound(f"there is no dataset {dataset!r} yet", hint="`manta apply` makes what is missing")
        if version is None:
            return DeltaTable(self.path(dataset))
        try:
            return DeltaTable(self.path(dataset), version=int(version))
        except DeltaError as error:
            newest = self.version(dataset)
            raise NotFound(f"dataset {dataset!r} has no version {version}; its newest is {newest}") from error

    def _commit_after(
        self, newest: int | None, dataset: str, change: Change, run_key: str, schema: pa.Schema
    ) -> int:
        content = Schema.from_arrow(schema)
        adds = [self._add(dataset, path) for path in change.add]
        if newest is None:
            properties = self._properties(0, run_key, change.metadata)
            create_table_with_add_actions(
                self.path(dataset), content, adds, configuration=CONFIGURATION, commit_properties=properties
            )
            return 0
        table = self._open(dataset, newest)
        if change.remove is None:
            properties = self._properties(newest + 1, run_key, change.metadata)
            table.create_write_transaction([*adds], "overwrite", content, commit_properties=properties)
            return newest + 1
        had = {field.name for field in table.schema().fields}
        added = [field for field in content.fields if field.name not in had]
        if added:
            # Delta changes the schema of a table that keeps its rows in a commit of its own. It holds no
            # rows and is nobody's version; whoever dies after it has changed nothing that can be read.
            carried = {**self.metadata(dataset, newest), "mode": "schema"}
            newest += 1
            table.alter.add_columns(added, commit_properties=self._properties(newest, "", carried))
            table = self._open(dataset, newest)
        removes = [
            RemoveAction(path=path, data_change=True, deletion_timestamp=int(time.time() * 1000))
            for path in change.remove
        ]
        properties = self._properties(newest + 1, run_key, change.metadata)
        table.create_write_transaction(
            [*removes, *adds], "append", table.schema(), commit_properties=properties
        )
        return newest + 1

    def _properties(self, version: int, run_key: str, metadata: Mapping[str, Any]) -> CommitProperties:
        # The version this commit will be, or it will not be at all: Delta is told not to resolve conflicts
        # by itself, so that the number kept under the run's key is always the truth.
        kept = {**metadata, "run_key": run_key} if run_key else metadata
        return CommitProperties(
            max_commit_retries=0,
            custom_metadata={"manta": json.dumps(kept)},
            app_transactions=[Transaction(run_key, version)] if run_key else None,
        )

    def _add(self, dataset: str, path: str) -> AddAction:
        stat = Path(path).stat()
        return AddAction(
            path=self.inside(dataset, path),
            size=stat.st_size,
            partition_values={},
            modification_time=stat.st_mtime_ns // 1_000_000,
            data_change=True,
            stats=json.dumps({"numRecords": pq.read_metadata(path).num_rows}),
        )

    def _sweep(self, dataset: str, run_key: str, version: int) -> None:
        """Remove what the run's other attempts have staged: nothing of theirs can be committed any more."""
        kept = {Path(uri).parent for uri in self._open(dataset, version).file_uris()}
        kept.add(Path(self.path(dataset), self.metadata(dataset, version).get("profile", "")).parent)
        for folder in (Path(self.path(dataset)) / "parts" / run_key).glob("*"):
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def write_part(frame: pl.DataFrame, path: str) -> None:
    """Write a staged Parquet file: quickly, for a third more bytes. Compaction writes it again, small."""
    frame.write_parquet(path, compression="lz4")
