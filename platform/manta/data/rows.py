"""The rows of one version of a dataset, in whatever form a notebook or a job wants them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
import pyarrow.dataset
from deltalake import DeltaTable

from manta.data.lake import Lake
from manta.errors import InvalidInput
from manta.words import quoted

if TYPE_CHECKING:
    import duckdb
    import pandas
    import ray.data


class Rows:
    """The rows of one version of a dataset, in the dataset's order. Each form is read anew when it is asked
    for; what is not asked for (columns, or rows that a lazy query filters out) is not read.

    Attributes:
        name, version: whose they are.
        columns: those that are read.
    """

    def __init__(self, lake: Lake, name: str, version: int, columns: Sequence[str] | None = None) -> None:
        self.name = name
        self.version = version
        self._lake = lake
        whole = lake.schema(name, version)
        self.columns = list(whole.names if columns is None else columns)
        for column in self.columns:
            if column not in whole.names:
                close = difflib.get_close_matches(column, whole.names, n=1)
                raise InvalidInput(
                    f"{name}@{version} has no column {column!r}",
                    hint=f"did you mean {close[0]!r}?" if close else f"it has {', '.join(whole.names)}",
                )
        self.schema = pa.schema([whole.field(column) for column in self.columns])

    def __repr__(self) -> str:
        return f"<{self.name}@{self.version}: {self.height:,} rows of {', '.join(self.columns)}>"

    def __len__(self) -> int:
        return self.height

    @cached_property
    def height(self) -> int:
        """How many rows; told by the log, without reading them."""
        return height_of(DeltaTable(self._lake.path(self.name), version=self.version))

    @property
    def files(self) -> list[str]:
        """The Parquet files that hold them, in the order of the rows."""
        folder = self._lake.path(self.name)
        return [f"{folder}/{path}" for path in self._lake.files(self.name, self.version)]

    def lazy(self) -> pl.LazyFrame:
        """For a query of Polars, which reads what it needs."""
        return self._lake.scan(self.name, self.version).select(self.columns)

    def polars(self) -> pl.DataFrame:
        return self.lazy().collect()

    def dataset(self) -> pyarrow.dataset.Dataset:
        """For whatever reads Arrow datasets, in batches; with all columns."""
        schema = self._lake.schema(self.name, self.version)
        found: pyarrow.dataset.Dataset = pyarrow.dataset.dataset(
            self.files, format="parquet", schema=schema, partitioning=None
        )
        return found

    def arrow(self) -> pa.Table:
        return self.dataset().to_table(columns=self.columns)

    def pandas(self) -> pandas.DataFrame:
        frame: pandas.DataFrame = self.arrow().to_pandas()
        return frame

    def ray(self) -> ray.data.Dataset:
        """For Ray Data, which reads the files in parallel tasks; ray must be connected, or is started."""
        import ray.data

        files = self.files
        if not files:
            return ray.data.from_arrow(self.schema.empty_table())
        whole = self._lake.schema(self.name, self.version)
        found = ray.data.read_parquet(files, schema=whole, columns=self.columns, partitioning=None)
        return found

    def duckdb(self) -> duckdb.DuckDBPyRelation:
        """A relation of DuckDB's own, on a connection of its own, to go on querying from."""
        import duckdb

        relation = duckdb.connect().from_arrow(self.dataset())
        return relation.project(", ".join(map(quoted, self.columns)))

    def sample(self, rows: int = 10, seed: int = 0) -> pl.DataFrame:
        """See :meth:`Datasets.sample`."""
        import numpy as np

        if rows >= self.height:
            return self.polars()
        if rows < 0:
            raise InvalidInput("a sample of less than no rows", hint="give a positive number")
        picked = np.sort(np.random.default_rng(seed).choice(self.height, rows, replace=False))
        found = self.dataset().take(pa.array(picked), columns=self.columns)
        return pl.DataFrame(found)


def height_of(table: DeltaTable) -> int:
    actions = pa.table(table.get_add_actions())
    if actions.num_rows == 0:
        return 0
    counts = actions["num_records"].to_pylist()
    if None in counts:  # a table that somebody else has written
        return int(table.to_pyarrow_dataset().count_rows())
    return sum(counts)


def bytes_of(table: DeltaTable) -> int:
    return sum(pa.table(table.get_add_actions())["size_bytes"].to_pylist())
