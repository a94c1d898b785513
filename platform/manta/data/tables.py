"""Executes a feature table: the user's function over pinned versions of its inputs makes one new version.

With ``partition_by`` the function runs once for each hash partition, in parallel tasks; each reads its share
of the inputs itself and stages what it made. Then there is one commit.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pyarrow as pa

from manta.data import profile
from manta.data.lake import Lake, write_part
from manta.data.parallel import cpus, each
from manta.data.sketch import Sketch, sketch
from manta.definitions import FeatureTable
from manta.definitions.base import digest, load_function
from manta.errors import DefinitionInvalid, MantaError, Unavailable
from manta.ledger.context import RunContext

ROWS_PER_PARTITION = 100_000
PARTITIONS_PER_CPU = 2
UTC = pl.Datetime("us", "UTC")


class _Work(NamedTuple):
    """What a task needs to know."""

    table: FeatureTable
    lake: str
    versions: dict[str, str]
    partitioned: frozenset[str]  # the inputs that have the columns to partition by
    partitions: int
    hashed: int
    folder: str
    root: str


class _Made(NamedTuple):
    """A staged partition; ``path`` is empty when it had no rows to compute from."""

    path: str
    rows: int
    schema: dict[str, pl.DataType]
    sketch: Sketch | None = None


def execute(context: RunContext) -> None:
    """Compute the table and commit it, or commit nothing.

    The same inputs give the same rows; within a partition they are sorted by key and time. A run that had
    committed before it was killed reports what it made.

    Raises:
        NotFound: an input has no version yet.
        DefinitionInvalid: the function failed, or what it made is not the table that the definition promises.
    """
    table: FeatureTable = context.definition
    lake = Lake(context.settings.datasets)
    version = lake.committed(table.dataset, context.run_key)
    if version is None:
        version = _compute(context, table, lake)
    rows = int(lake.metadata(table.dataset, version)["rows"])
    context.measured(rows=rows)
    context.produced("dataset", table.dataset, version, rows=rows)


def _compute(context: RunContext, table: FeatureTable, lake: Lake) -> int:
    versions = {name: context.read("dataset", name).version for name in table.inputs_from}
    partitioned, rows = _inputs(table, lake, versions)
    partitions = 1
    if table.partition_by:
        automatic = min(PARTITIONS_PER_CPU * cpus(), -(-rows // ROWS_PER_PARTITION))
        partitions = table.partitions or max(1, automatic)
    with lake.staged(table.dataset, context.run_key) as folder:
        work = _Work(
            table=table,
            lake=str(lake.folder),
            versions=versions,
            partitioned=partitioned,
            partitions=partitions,
            hashed=_known_hash(),
            folder=folder,
            root=str(context.root),
        )
        made = _partitions(context, work)
        if not any(part.path for part in made):
            # No input has any row. The function still says what the columns are.
            made = _partitions(context, work._replace(partitions=1))
        schema = _one_schema(table, made)
        told = profile.keep([part.sketch for part in made if part.sketch is not None], folder)
        return lake.commit(
            table.dataset,
            [part.path for part in made if part.path],
            run_key=context.run_key,
            schema=schema,
            metadata={
                "inputs": json.dumps(versions),
                "key": [*table.key, *([table.time] if table.time else [])],
                "schema": digest([str(field) for field in schema]),
                "rows": sum(part.rows for part in made),
                "profile": lake.inside(table.dataset, told),
            },
        )


def _inputs(table: FeatureTable, lake: Lake, versions: dict[str, str]) -> tuple[frozenset[str], int]:
    """Which inputs can be partitioned, and how many rows those have together."""
    if not table.partition_by:
        return frozenset(), 0
    scans = {name: lake.scan(name, version) for name, version in versions.items()}
    columns = {name: scan.collect_schema().names() for name, scan in scans.items()}
    having = frozenset(name for name in scans if set(table.partition_by) <= set(columns[name]))
    if not having:
        raise DefinitionInvalid(
            f"{table.name}: none of its inputs has the columns {_listed(table.partition_by)} to partition by",
            hint="inputs and key must call them the same; or leave partition_by out",
        )
    return having, sum(scans[name].select(pl.len()).collect().item() for name in having)


def _partitions(context: RunContext, work: _Work) -> list[_Made]:
    made: dict[int, _Made] = {}
    context.progress(0, work.partitions, "partitions")
    for index, part in each(
        partial(_partition, work), range(work.partitions), name=f"make {work.table.name}"
    ):
        made[index] = part
        context.progress(len(made), work.partitions, "partitions")
    return [made[index] for index in range(work.partitions)]


def _one_schema(table: FeatureTable, made: Sequence[_Made]) -> pa.Schema:
    parts = [(number, part.schema) for number, part in enumerate(made) if part.path]
    first, wanted = parts[0]
    for number, found in parts[1:]:
        if found != wanted:
            differ = [name for name in {**wanted, **found} if wanted.get(name) != found.get(name)]
            name = differ[0] if differ else "the order of columns"
            raise DefinitionInvalid(
                f"{table.fn} gives partitions of different types: {name} is {wanted.get(name)} in "
                f"partition {first} and {found.get(name)} in partition {number}",
                hint="name and cast the columns in the function, in one order",
            )
    required = {*table.key, table.time}
    arrow = pl.DataFrame(schema=wanted).to_arrow().schema
    return pa.schema([field.with_nullable(field.name not in required) for field in arrow])


# --- in a task ----------------------------------------------------------------------------------------


def _partition(work: _Work, index: int) -> _Made:
    table = work.table
    if work.hashed != _known_hash():
        raise Unavailable(
            "the machines of the cluster do not hash alike, so a table cannot be partitioned over them",
            hint="install the same build of polars on all of them",
        )
    if work.root not in sys.path and Path(work.root).is_dir():
        sys.path.insert(0, work.root)
    function = load_function(table.fn)
    inputs = {name: _input(work, name, index) for name in table.inputs_from}
    if work.partitions > 1 and all(inputs[name].is_empty() for name in work.partitioned):
        return _Made("", 0, {})
    result = _call(function, inputs, work, index)
    result = _checked(table, result)
    if work.partitions > 1 and not (_partition_of(result, work) == index).all():
        raise DefinitionInvalid(
            f"{table.fn} gave a row of another partition: from the rows of one {_listed(table.partition_by)} "
            "it must make rows of the same",
            hint=f"partition by other columns than {_listed(table.partition_by)}, or by none",
        )
    path = f"{work.folder}/{index:06d}.parquet"
    write_part(result, path)
    return _Made(path, result.height, dict(result.schema), sketch(result))


def _input(work: _Work, name: str, index: int) -> pl.DataFrame:
    rows = Lake(work.lake).scan(name, work.versions[name])
    if work.partitions > 1 and name in work.partitioned:
        rows = rows.filter(_hash(rows.collect_schema(), work.table.partition_by) % work.partitions == index)
    return rows.collect()


def _partition_of(rows: pl.DataFrame, work: _Work) -> pl.Series:
    return rows.select(_hash(rows.schema, work.table.partition_by) % work.partitions).to_series()


def _hash(schema: pl.Schema, columns: Sequence[str]) -> pl.Expr:
    # Equal values of unlike integer types must meet in one partition.
    alike = [pl.col(name).cast(pl.Int64) if schema[name].is_integer() else pl.col(name) for name in columns]
    return pl.struct(alike).hash(seed=7)


def _known_hash() -> int:
    """The same wherever this build of Polars runs, for a hash that is kept nowhere."""
    rows = pl.DataFrame({"a": ["x", None], "b": [1, 2]})
    return int(rows.select(_hash(rows.schema, ["a", "b"]).sum()).item())


def _call(function: Any, inputs: dict[str, pl.DataFrame], work: _Work, index: int) -> pl.DataFrame:
    path = work.table.fn
    try:
        result = function(inputs)
        if isinstance(result, pl.LazyFrame):
            result = result.collect()
    except MantaError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(work.root)]
        place = f" at {Path(own[-1].filename).relative_to(work.root)}:{own[-1].lineno}" if own else ""
        share = f" on partition {index} of {work.partitions}" if work.partitions > 1 else ""
        failed = DefinitionInvalid(
            f"{path} failed{share}: {type(error).__name__}: {error}{place}",
            hint="the traceback is in the run's log",
        )
        # Notes are pickled with the error, its traceback would not be.
        failed.add_note("".join(traceback.format_exception(error)))
        raise failed from None
    if not isinstance(result, pl.DataFrame):
        raise DefinitionInvalid(f"{path} gave {type(result).__name__}, not a polars.DataFrame")
    return result


def _checked(table: FeatureTable, result: pl.DataFrame) -> pl.DataFrame:
    """The rows as they are kept: types that Delta has, sorted by key and time."""
    required = [*table.key, *([table.time] if table.time else [])]
    missing = [name for name in required if name not in result.columns]
    if missing:
        raise DefinitionInvalid(
            f"{table.fn} gave no column {_listed(missing)}; it gave {_listed(result.columns)}"
        )
    result = result.with_columns(_kept(table, name, kind) for name, kind in result.schema.items())
    if table.time and result.schema[table.time] != UTC:
        raise DefinitionInvalid(
            f"{table.fn} gave {table.time!r} as {result.schema[table.time]}, it must be a UTC time",
            hint="for texts: .str.to_datetime(time_zone='UTC')",
        )
    for name in required:
        nulls = result[name].null_count()
        if nulls:
            example = result.filter(pl.col(name).is_null()).row(0, named=True)
            raise DefinitionInvalid(
                f"{table.fn} gave {nulls:,} rows without {name!r}, such as {_row(example)}",
                hint="every row needs its key and its time: drop those rows in the function",
            )
    repeated = result.select(pl.struct(required).is_duplicated()).to_series()
    if repeated.any():
        example = result.filter(repeated).row(0, named=True)
        raise DefinitionInvalid(
            f"{table.fn} gave {int(repeated.sum()):,} rows that share their {_listed(required)}, "
            f"such as {_row({name: example[name] for name in required})}",
            hint="group by the key and the time, or keep one row of each",
        )
    return result.sort(required)


def _kept(table: FeatureTable, name: str, kind: pl.DataType) -> pl.Expr:
    column = pl.col(name)
    if kind.is_unsigned_integer():
        return column.cast(pl.Int64)
    if isinstance(kind, (pl.Categorical, pl.Enum)):
        return column.cast(pl.String)
    if isinstance(kind, pl.Datetime):
        if kind.time_zone is None:
            raise DefinitionInvalid(
                f"{table.fn} gave {name!r} without a time zone",
                hint=f"pl.col({name!r}).dt.replace_time_zone('UTC'), if it is UTC",
            )
        return column.dt.convert_time_zone("UTC").dt.cast_time_unit("us")
    if isinstance(kind, (pl.Duration, pl.Time, pl.Null, pl.Object)):
        raise DefinitionInvalid(
            f"{table.fn} gave {name!r} as {kind}, which a dataset cannot hold", hint="cast it in the function"
        )
    return column


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names)


def _row(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
