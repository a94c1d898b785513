"""A SQL query over other datasets of the project, as a source: what is landed as it came becomes what is
worked with.

Each run reads named versions of its inputs, so a run on the same versions makes the same rows. The query is
computed by DuckDB on one thread, for several would add up floats in another order each time; what does not
fit in memory is spilled to disk.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pydantic import Field

from manta.definitions.base import Name, digest
from manta.definitions.sources import Ask, Reading, Rows, Source, Table
from manta.errors import SourceUnreadable
from manta.words import quoted

if TYPE_CHECKING:
    import duckdb

BATCH_ROWS = 250_000


class _Whole(NamedTuple):
    file: str
    size: int
    tables: dict[str, Table]


class Query(Source):
    """The rows of a query over datasets.

        Ingest(
            dataset="daily",
            source=Query(sql="select day, count(*) as n from flights group by day", inputs=("flights",)),
            contract=...,
        )

    Attributes:
        sql: one SELECT, in DuckDB's SQL.
        inputs: the datasets that it reads, by their names. A new version of one makes the last run stale.
        memory: how much DuckDB may use before it spills, such as ``2GB``.
    """

    kind: Literal["query"] = "query"
    sql: str
    inputs: tuple[Name, ...] = Field(min_length=1)
    memory: str = Field(default="1GB", pattern=r"^\d+(\.\d+)?\s*[KMGT]i?B$")

    def datasets(self) -> tuple[str, ...]:
        return self.inputs

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        versions = {name: table.version for name, table in ask.tables.items()}
        size = sum(table.size for table in ask.tables.values())
        yield Reading([_Whole("the query", size, dict(ask.tables))], token=digest([self.sql, versions]))

    def read(self, piece: _Whole, ask: Ask) -> Iterator[Rows]:
        import duckdb
        import polars as pl

        with tempfile.TemporaryDirectory(prefix="manta-query-") as spill:
            connection = duckdb.connect(":memory:")
            try:
                connection.execute("SET threads=1")
                connection.execute("SET TimeZone='UTC'")
                connection.execute("SET python_enable_replacements=false")
                connection.execute("SET temp_directory=?", [spill])
                connection.execute("SET memory_limit=?", [self.memory])
                for name, table in piece.tables.items():
                    _register(connection, name, table)
                # What the tables are is settled; the query itself opens nothing.
                connection.execute("SET enable_external_access=false; SET lock_configuration=true")
                relation = connection.sql(f"SELECT * FROM ({self.sql.strip().rstrip(';')}\n)")
                columns = relation.columns
                wanted = [name for name in ask.columns if name in columns]
                if not wanted:
                    yield Rows(0, pl.DataFrame(), [], columns)
                    return
                selected = relation.select(", ".join(map(quoted, wanted)))
                reader = selected.to_arrow_reader(BATCH_ROWS)
                yield Rows(0, pl.DataFrame(reader.schema.empty_table()), [], columns)
                for batch in reader:
                    yield Rows(batch.num_rows, pl.DataFrame(batch), [], columns)
            except duckdb.Error as error:
                raise _failed(error, piece) from None
            finally:
                connection.close()


def _register(connection: duckdb.DuckDBPyConnection, name: str, table: Table) -> None:
    import pyarrow.dataset

    files = pyarrow.dataset.dataset(list(table.files), schema=table.schema, format="parquet")
    connection.register(name, files)


def _failed(error: duckdb.Error, piece: Any) -> SourceUnreadable:
    told = re.split(r"\n\nLINE", str(error))[0].strip()
    return SourceUnreadable(
        f"the query cannot be run: {told}",
        hint=f"it has the datasets {', '.join(piece.tables)}: try it with `manta data sql`",
    )
