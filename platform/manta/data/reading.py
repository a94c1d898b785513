"""Datasets by name and version, for people: what there is, what a version holds, and its rows in whatever
form a notebook or a job wants them. Reads the lake and the log of each dataset, and asks no server.

A version is named by its number, by ``name@number``, or by a time: the newest that was committed by then.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from pydantic import BaseModel, ConfigDict

from manta.data.commits import NOBODYS, Commit, When, commit_of, commits_of, moment, run_of, told_of
from manta.data.lake import Lake, quarantine_of
from manta.data.profile import Sketch, finish, merge, sketch
from manta.data.rows import Rows, bytes_of, height_of
from manta.errors import InvalidInput, NotFound

if TYPE_CHECKING:
    from manta.data.compaction import Compacted
    from manta.data.diff import Difference
    from manta.data.shown import Shown
    from manta.data.sql import Answer

BATCH_ROWS = 131_072
BATCHES_MERGED = 32
NOTHING_REFUSED = pl.DataFrame(
    schema={"run": pl.String, "reading": pl.String, "file": pl.String, "row": pl.Int64, "reason": pl.String}
)
HIDDEN = ("__quarantine", "__replay")


class Listed(BaseModel):
    """A dataset, and its newest version."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: int
    at: datetime
    rows: int
    columns: int
    bytes: int
    quarantined: int


class Datasets:
    """The datasets of a project. Holds no state: what is asked twice is read twice.

    Every method that takes a ``name`` takes ``name@version`` too, and raises NotFound, with the closest name,
    for a dataset or version that does not exist.

    Args:
        key_of: the columns that name a row, by the id of the run that made it, where a commit does not tell.
    """

    def __init__(self, folder: str | Path, key_of: Callable[[int], Sequence[str]] = lambda run: ()) -> None:
        self.lake = Lake(folder)
        self._key_of = key_of

    def __repr__(self) -> str:
        return f"<datasets {', '.join(self.names())}>"

    # --- what there is --------------------------------------------------------------------------------

    def names(self, *, hidden: bool = False) -> list[str]:
        """Those that have a version; with ``hidden`` also quarantines and what replays made."""
        found = sorted(log.parent.name for log in self.lake.folder.glob("*/_delta_log"))
        return [
            name
            for name in found
            if (hidden or not name.endswith(HIDDEN)) and DeltaTable.is_deltatable(self.lake.path(name))
        ]

    def history(self, name: str) -> list[Commit]:
        """Every version, newest first."""
        name, _ = self.resolve(name)
        return commits_of(self._open(name))

    def list(self) -> list[Listed]:
        """Every dataset, with its newest version and how many rows its quarantine holds."""
        return [self._listed(name) for name in self.names()]

    def resolve(
        self, name: str, version: int | str | None = None, as_of: When | None = None
    ) -> tuple[str, int]:
        """The dataset and the version that are meant; the newest unless a version or a time says which.

        Args:
            as_of: a naive time is UTC; a date is the end of that day.

        Raises:
            NotFound: no such dataset or version, or none that old.
            InvalidInput: the version is not a number or the time not ISO 8601, or both are given.
        """
        named, at, number = name.partition("@")
        if at and version is None and as_of is None:
            name, version = named, number
        if version is not None and as_of is not None:
            raise InvalidInput("a version and a time both say which one is read", hint="give one of them")
        self._require(name)
        if as_of is not None:
            return name, self._by_then(name, moment(as_of))
        newest = self._open(name).version()
        if version is None:
            return name, newest
        if not re.fullmatch(r"\d+", str(version)):
            raise InvalidInput(f"{version!r} is no version of {name!r}", hint=f"0 to {newest}, or a time")
        if int(version) > newest:
            raise NotFound(
                f"dataset {name!r} has no version {version}; its newest is {newest}",
                hint=f"`manta data history {name}` lists them",
            )
        return name, int(version)

    # --- rows -----------------------------------------------------------------------------------------

    def read(
        self,
        name: str,
        version: int | str | None = None,
        *,
        as_of: When | None = None,
        columns: Sequence[str] | None = None,
    ) -> Rows:
        """The rows of a version; nothing is read yet.

        Raises:
            InvalidInput: it has no such column.
        """
        name, found = self.resolve(name, version, as_of)
        return Rows(self.lake, name, found, columns)

    def sample(
        self, name: str, rows: int = 10, version: int | str | None = None, seed: int = 0
    ) -> pl.DataFrame:
        """So many rows, each as likely as any other, in the dataset's order; the same again for a seed."""
        return self.read(name, version).sample(rows, seed)

    def quarantine(self, name: str, version: int | str | None = None) -> pl.DataFrame:
        """The rows that were refused when a version was made, and why. Without a version: all of those since
        the content was last replaced. No rows where none were refused.
        """
        one = version is not None or "@" in name
        name, found = self.resolve(name, version)
        held = quarantine_of(name)
        if self.lake.version(held) is None:
            return NOTHING_REFUSED
        told = [told_of(each) for each in self._open(name).history() if each["version"] <= found]
        runs = [each for each in told if each.get("mode") not in NOBODYS]
        replaced = [i for i, each in enumerate(runs) if each.get("mode", "replace") == "replace"]
        since = runs[: replaced[0] + 1] if replaced else runs
        if len(since) > 1 and not one:
            return _of(self.lake.scan(held), since).collect()
        # What one reading was refused was added to the quarantine in one commit.
        version_made = self.lake.committed(held, f"{runs[0].get('run_key')}-{runs[0].get('source')}")
        rows = self.lake.scan(held, version_made)
        return _of(rows, runs[:1] if version_made is not None else []).collect()

    # --- what a version is like -----------------------------------------------------------------------

    def show(self, name: str, version: int | str | None = None, *, as_of: When | None = None) -> Shown:
        """A version's columns, size, origin and profile; a notebook draws it."""
        from manta.data.shown import Shown

        name, found = self.resolve(name, version, as_of)
        rows = Rows(self.lake, name, found)
        table = self._open(name, found)
        commit = next(each for each in commits_of(self._open(name)) if each.version == found)
        return Shown(
            name=name,
            version=found,
            rows=rows.height,
            files=len(table.file_uris()),
            bytes=bytes_of(table),
            columns={field.name: _arrow_type(field) for field in rows.schema},
            commit=commit,
            profile=self.profile(name, found),
        )

    def profile(self, name: str, version: int | str | None = None) -> dict[str, Any]:
        """See :func:`manta.data.profile.finish`: as it was kept with the version, or else found now."""
        name, found = self.resolve(name, version)
        rows = Rows(self.lake, name, found)
        kept = self.lake.metadata(name, found).get("profile")
        path = Path(self.lake.path(name), str(kept))
        if kept and path.is_file():
            told: dict[str, Any] = json.loads(path.read_text())
            if told.get("rows") == rows.height and set(told["columns"]) == set(rows.schema.names):
                return told
        return finish(_sketched(rows))

    def diff(
        self,
        name: str,
        before: int | str,
        after: int | str | None = None,
        *,
        key: Sequence[str] | None = None,
        sampled: int = 5,
    ) -> Difference:
        """What changed from one version to another, the newest unless given.

        Args:
            key: columns that name a row; unless given, those of the contract. Without any, rows are compared
                whole, and a changed row is one removed and one added.
            sampled: how many rows of each kind of change to show.
        """
        from manta.data.diff import difference

        name, first = self.resolve(name, before)
        _, second = self.resolve(name, after)
        if key is None:
            key = self._key(name, second)
        return difference(self.lake, name, first, second, tuple(key), sampled)

    def _key(self, name: str, version: int) -> Sequence[str]:
        made = self.lake.metadata(name, version)
        run = run_of(made)
        key = made["key"] if "key" in made else self._key_of(run) if run is not None else ()
        had = self.lake.schema(name, version).names
        return tuple(key) if set(key) <= set(had) else ()

    # --- over all of them -----------------------------------------------------------------------------

    def sql(self, query: str, *, as_of: When | None = None, memory: str = "") -> Answer:
        """One SELECT over the datasets, by DuckDB. A table is a dataset's newest version, or ``"flights@3"``;
        ``as_of`` holds for every table without a version of its own. Nothing can be written, and no other
        file be read.

        Args:
            memory: what DuckDB may use before it spills to disk, such as "2GB"; 80 % of the machine's unless
                given.

        Raises:
            InvalidInput: it is not a query, or not one that DuckDB can run.
        """
        from manta.data.sql import ask

        return ask(self, query, as_of=as_of, memory=memory)

    def compact(self, name: str) -> Compacted:
        """Put the rows of the newest version into fewer files, in one commit; not a row and not their order
        changes, and older versions stay as they are. Commits nothing where the files are large already.

        Raises:
            Conflict: others were writing all the time.
        """
        from manta.data.compaction import compact

        name, _ = self.resolve(name)
        return compact(self.lake, name)

    # --- inside ---------------------------------------------------------------------------------------

    def _require(self, name: str) -> None:
        if re.fullmatch(r"\w[\w-]*", name) and DeltaTable.is_deltatable(self.lake.path(name)):
            return
        known = self.names(hidden=True)
        shown = [each for each in known if not each.endswith(HIDDEN)]
        close = difflib.get_close_matches(name, shown, n=1)
        hint = f"there is {', '.join(shown[:8])}" if shown else "`manta apply` makes what the project defines"
        raise NotFound(f"there is no dataset {name!r}", hint=f"did you mean {close[0]!r}?" if close else hint)

    def _open(self, name: str, version: int | None = None) -> DeltaTable:
        return DeltaTable(self.lake.path(name), version=version)

    def _by_then(self, name: str, then: datetime) -> int:
        commits = commits_of(self._open(name))
        by_then = [each.version for each in commits if each.at <= then]
        if by_then:
            return max(by_then)
        oldest = min(commits, key=lambda each: each.version)
        raise NotFound(
            f"dataset {name!r} had no version by {then:%Y-%m-%d %H:%M:%S} UTC",
            hint=f"its oldest, {oldest.version}, is of {oldest.at:%Y-%m-%d %H:%M:%S} UTC",
        )

    def _listed(self, name: str) -> Listed:
        table = self._open(name)
        newest = commit_of(table.history(1)[0])
        held = quarantine_of(name)
        refused = self.lake.version(held)
        return Listed(
            name=name,
            version=newest.version,
            at=newest.at,
            rows=height_of(table),
            columns=len(table.schema().fields),
            bytes=bytes_of(table),
            quarantined=0 if refused is None else height_of(self._open(held)),
        )


def _sketched(rows: Rows) -> Sketch:
    whole = [sketch(pl.DataFrame(rows.schema.empty_table()))]
    for batch in rows.dataset().to_batches(batch_size=BATCH_ROWS):
        whole.append(sketch(pl.DataFrame(pa.Table.from_batches([batch]))))
        if len(whole) == BATCHES_MERGED:
            whole = [merge(whole)]
    return merge(whole)


def _of(refused: pl.LazyFrame, commits: Sequence[dict[str, Any]]) -> pl.LazyFrame:
    """Those of the rows that commits name: others are of runs that committed nothing in the end."""
    ours = pl.col("run").is_in([str(each.get("run_key")) for each in commits])
    if "reading" in refused.collect_schema().names():
        ours &= pl.col("reading").is_in([str(each.get("source")) for each in commits])
    return refused.filter(ours)


def _arrow_type(field: pa.Field) -> str:
    return str(field.type) + ("" if field.nullable else ", not null")
