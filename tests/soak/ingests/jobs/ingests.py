"""The ingests of the soak: one from each kind of source that has a cursor."""

from __future__ import annotations

import os

from manta import Column, Contract, Files, Ingest, Kafka, Retry, Sql

# Lost attempts are not what is counted here: a run is tried again as often as it is lost.
PATIENT = Retry(lost=50, out_of_memory=50, user_error=0, backoff=0.2, backoff_most=1.0)
COLUMNS = {"id": Column(type="int64"), "round": Column(type="int64"), "text": Column(type="string")}

files = Ingest(
    dataset="files",
    source=Files(path="incoming/*.csv", new_only=True),
    contract=Contract(columns=COLUMNS),
    retry=PATIENT,
)
# Rows are changed too, and read again within the lateness: only their newest state may be there.
sql = Ingest(
    dataset="sql",
    source=Sql(url="${env:SOAK_SQL}", table="rows", partition_on="id", cursor="round", lateness=1),
    contract=Contract(columns=COLUMNS, key=("id",)),
    retry=PATIENT,
)
kafka = Ingest(
    dataset="kafka",
    source=Kafka(servers=os.environ.get("SOAK_KAFKA", "nowhere:9092"), topic="rows"),
    contract=Contract(columns=COLUMNS),
    retry=PATIENT,
)
