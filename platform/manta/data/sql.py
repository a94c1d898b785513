"""SQL over the datasets of a project, by DuckDB in this process.

Each dataset that a query names is given to DuckDB as an Arrow dataset, so columns and filters reach the
Parquet files. DuckDB itself may open no file at all: were it allowed the datasets' own, `WITH x AS (COPY …)`
could write them.
"""

from __future__ import annotations

import difflib
import json
import re
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from manta.data.commits import When
from manta.data.rows import Rows
from manta.errors import InvalidInput, MantaError, NotFound

if TYPE_CHECKING:
    import pandas

    from manta.data.reading import Datasets

READING = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
SHOWN_ROWS = 20
BATCH_ROWS = 65_536
# A version may be written without quotes; what is inside quotes, literals and comments is left alone.
VERSIONED = re.compile(
    r"""'(?:[^']|'')*' | "(?:[^"]|"")*" | --[^\n]* | /\*.*?\*/ | \$\$.*?\$\$
    | \b(?P<table>[A-Za-z_]\w*@\d+)\b""",
    re.VERBOSE | re.DOTALL,
)


class Batches:
    """Batches of rows, once, as DuckDB computes them; their ``schema`` is known before."""

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        self.schema = reader.schema
        self._reader = reader

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Raises:
        InvalidInput: a value made the query fail.
        """
        while True:
            try:
                batch = self._reader.read_next_batch()
            except StopIteration:
                return
            except (pa.ArrowException, OSError) as error:
                raise InvalidInput(f"the query cannot be run: {_line(str(error))}") from None
            yield batch


class Answer:
    """What a query gives. It is computed when it is asked for, each time, from the versions that were the
    newest when the query was made.

    Attributes:
        query: as DuckDB has it.
        versions: which version of each dataset it reads.
    """

    def __init__(self, connection: duckdb.DuckDBPyConnection, query: str, versions: dict[str, int]) -> None:
        self.query = query
        self.versions = versions
        self._connection = connection

    def batches(self) -> Batches:
        """The rows as they come, for what does not fit in memory."""
        return Batches(_told(lambda: self._connection.sql(self.query).to_arrow_reader(BATCH_ROWS)))

    def arrow(self) -> pa.Table:
        return _told(lambda: self._connection.sql(self.query).to_arrow_table())

    def polars(self) -> pl.DataFrame:
        return pl.DataFrame(self.arrow())

    def pandas(self) -> pandas.DataFrame:
        frame: pandas.DataFrame = self.arrow().to_pandas()
        return frame

    def write(self, path: str | Path) -> int:
        """Write the rows into a Parquet file, whole or not at all; gives how many."""
        partial, rows = Path(f"{path}.{secrets.token_hex(4)}.partial"), 0
        try:
            batches = self.batches()
            with pq.ParquetWriter(partial, batches.schema, compression="zstd") as file:
                for batch in batches:
                    file.write_batch(batch)
                    rows += batch.num_rows
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return rows

    def explain(self) -> str:
        """How DuckDB would do it."""
        plan = _told(lambda: self._connection.execute(f"EXPLAIN {self.query}").fetchall())
        return str(plan[0][1])

    def head(self, rows: int = SHOWN_ROWS) -> pl.DataFrame:
        """The first rows; no more are computed than DuckDB needs for them."""
        batches, wanted = self.batches(), int(rows)
        found = batches.schema.empty_table()
        for batch in batches:
            found = pa.concat_tables([found, pa.Table.from_batches([batch])]).slice(0, wanted)
            if found.num_rows == wanted:
                break
        return pl.DataFrame(found)

    def _repr_html_(self) -> str:
        return self.head()._repr_html_()

    def __repr__(self) -> str:
        return repr(self.head())


def ask(datasets: Datasets, query: str, *, as_of: When | None, memory: str) -> Answer:
    """See :meth:`manta.data.reading.Datasets.sql`."""
    query = VERSIONED.sub(lambda found: f'"{found["table"]}"' if found["table"] else found[0], query)
    query = query.strip().rstrip(";")
    connection = _connection(memory)
    tables = _tables(connection, query)
    versions: dict[str, int] = {}
    for table in sorted(tables):
        try:
            own = "@" in table
            name, version = datasets.resolve(table.lower(), as_of=None if own else as_of)
        except NotFound:
            if "@" in table or (as_of is not None and table.lower() in datasets.names(hidden=True)):
                raise
            continue  # an expression of the query's own, or DuckDB says that there is no such table
        connection.register(table, Rows(datasets.lake, name, version).dataset())
        versions[table] = version
    # Only now, for these settings cannot be taken back.
    connection.execute("SET enable_external_access=false; SET lock_configuration=true")
    answer = Answer(connection, query, versions)
    try:
        answer.explain()
    except NotFound as error:
        raise _unknown(datasets, error) from None
    return answer


def _connection(memory: str) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:")
    spill = tempfile.mkdtemp(prefix="manta-sql-")
    weakref.finalize(connection, shutil.rmtree, spill, ignore_errors=True)
    connection.execute("SET temp_directory=?", [spill])
    connection.execute("SET TimeZone='UTC'")
    if memory:
        try:
            connection.execute("SET memory_limit=?", [memory])
        except duckdb.Error as error:
            raise InvalidInput(f"{memory!r} is no size: {_line(str(error))}", hint="such as 2GB") from None
    return connection


def _tables(connection: duckdb.DuckDBPyConnection, query: str) -> set[str]:
    """The tables that a query reads.

    Raises:
        InvalidInput: it is not one query that only reads.
    """
    found = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    parsed = json.loads(found[0][0])
    if parsed["error"] and parsed.get("error_type") == "parser":
        raise InvalidInput(f"the query is no SQL: {parsed['error_message']}", hint=_pointed(query, parsed))
    nodes = list(_nodes(parsed.get("statements", [])))
    kinds = {str(node["type"]) for node in nodes if str(node.get("type")).endswith("_NODE")}
    if parsed["error"] or len(parsed["statements"]) != 1 or kinds - READING:
        raise InvalidInput(
            "only one SELECT can be asked at a time, and nothing be written",
            hint="a run writes: see `manta run`",
        )
    tables = {
        node["table_name"] for node in nodes if node.get("type") == "BASE_TABLE" and not node["schema_name"]
    }
    described = {
        node["table_name"] for node in nodes if node.get("type") == "SHOW_REF" and node["table_name"]
    }
    return tables | {each.strip('"') for each in described}


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _nodes(each)


def _told(act: Any) -> Any:
    """What DuckDB gives, or its error as one of ours."""
    try:
        return act()
    except duckdb.CatalogException as error:
        raise NotFound(_line(str(error))) from None
    except duckdb.OutOfMemoryException as error:
        raise InvalidInput(
            f"the query needs more memory than it was given: {_line(str(error))}",
            hint="give more: `--memory 8GB`",
        ) from None
    except duckdb.Error as error:
        raise InvalidInput(f"the query cannot be run: {_line(str(error))}") from None


def _line(told: str) -> str:
    """What is wrong, in a line; where in the query it is, DuckDB shows below."""
    told = re.split(r"\n\nLINE|\n+Possible solutions", told)[0]
    return re.sub(r"^[\w ]+ Error: ", "", " ".join(told.split()))


def _pointed(query: str, parsed: dict[str, Any]) -> str:
    at = int(parsed.get("position") or 0)
    return f"at: {query[at : at + 40]}"


def _unknown(datasets: Datasets, error: NotFound) -> MantaError:
    named = re.search(r"Table with name (.+?) does not exist", error.message)
    if named is None:
        return InvalidInput(f"the query cannot be run: {error.message}")
    known = datasets.names()
    close = difflib.get_close_matches(named[1], known, n=1)
    return NotFound(
        f"there is no dataset {named[1]!r}",
        hint=f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known[:8]) or 'none yet'}",
    )
