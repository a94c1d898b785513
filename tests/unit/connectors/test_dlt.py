"""Resources of dlt as a source: their rows, their state, their errors."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import dlt
import polars as pl
import pyarrow as pa
import pytest
from dlt.sources.rest_api import rest_api_source

from manta.connectors.dlt import Dlt
from manta.definitions import Column, Contract, Ingest, from_json
from manta.definitions.sources import Ask, Reading
from manta.errors import SourceUnreadable
from tests.unit.connectors.http_api import served

MOMENT = datetime(2024, 2, 29, 23, 59, 59, 999999, tzinfo=UTC)
ROWS: list[dict[str, Any]] = []


@dlt.resource
def typed() -> Iterator[Any]:
    yield {"id": 1, "cost": Decimal("1.10"), "at": MOMENT, "day": date(2024, 2, 29), "word": "zwei\nZeilen ü"}
    yield [{"id": 2, "more": {"a": [1, None]}}, {"id": 2**60}]


@dlt.resource
def tables() -> Iterator[Any]:
    yield pa.table({"id": [1, 2], "word": ["a", None]})
    yield pa.table({"id": [3]}).to_pandas()
    yield {"id": 4, "word": "row"}
    yield pl.DataFrame({"id": [5]})
    yield pa.record_batch({"id": [6], "word": ["f"]})


AT = dlt.sources.incremental("at", initial_value=MOMENT)


@dlt.resource
def growing(at: Any = AT) -> Iterator[Any]:
    yield [row for row in ROWS if row["at"] >= at.last_value]


@dlt.resource
def counted() -> Iterator[Any]:
    state = dlt.current.resource_state()
    state["calls"] = state.get("calls", 0) + 1
    yield {"id": state["calls"]}


@dlt.source
def two(prefix: str = "w") -> Any:
    @dlt.resource
    def left() -> Iterator[Any]:
        yield {"id": 1, "word": f"{prefix}-left"}

    @dlt.resource
    def right() -> Iterator[Any]:
        yield {"id": 2, "word": f"{prefix}-right"}

    return left, right


@dlt.resource
def bad() -> Iterator[Any]:
    yield {"id": 1}
    raise ValueError("no such account")


def nothing() -> list[int]:
    return [1]


def api(url: str) -> Any:
    endpoint = {
        "path": "cursor",
        "data_selector": "data.items",
        "paginator": {"type": "cursor", "cursor_path": "meta.next", "cursor_param": "cursor"},
    }
    return rest_api_source(
        {"client": {"base_url": url}, "resources": [{"name": "items", "endpoint": endpoint}]}
    )


def read(source: Dlt, *columns: str, cursor: Any = None) -> tuple[list[tuple[Any, ...]], Reading]:
    ask = Ask(Path(__file__).parent, columns, cursor)
    with source.opened(ask) as reading:
        found = []
        for piece in reading.pieces:
            for batch in source.read(piece, ask):
                assert batch.broken == []
                found += [tuple(row.get(name) for name in columns) for row in batch.values.to_dicts()]
        return found, reading


def test_rows_as_dicts() -> None:
    found, reading = read(Dlt(source=typed), "id", "cost", "at", "day", "word", "more")
    assert [row[:-1] for row in found] == [
        ("1", "1.10", MOMENT.isoformat(), "2024-02-29", "zwei\nZeilen ü"),
        ("2", None, None, None, None),
        (str(2**60), None, None, None, None),
    ]
    assert json.loads(found[1][-1]) == {"a": [1, None]}
    assert reading.cursor is None
    assert reading.token == read(Dlt(source=typed), "id")[1].token


def test_rows_as_tables_in_their_order() -> None:
    found, _ = read(Dlt(source=tables), "id", "word")
    assert found == [(1, "a"), (2, None), (3, None), ("4", "row"), (5, None), (6, "f")]


def test_which_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_WORD", "correct-horse")
    one = Dlt(source=two, resource="right", arguments={"prefix": "${env:THE_WORD}"})
    assert read(one, "word")[0] == [("correct-horse-right",)]
    assert "correct-horse" not in repr(one)
    for wrong in (Dlt(source=two), Dlt(source=two, resource="middle")):
        with pytest.raises(SourceUnreadable, match="has the resources left, right"):
            read(wrong, "id")


def test_the_state_is_the_cursor() -> None:
    source = Dlt(source=growing, new_only=True)
    ROWS[:] = [{"id": n, "at": MOMENT.replace(microsecond=n)} for n in range(3)]
    ROWS.append({"id": 3, "at": MOMENT})
    found, reading = read(source, "id")
    assert found == [("3",)], "the others are older than the initial value"
    cursor = json.loads(json.dumps(reading.cursor))
    found, reading = read(source, "id", cursor=cursor)
    assert (found, list(reading.pieces), reading.cursor) == ([], [], cursor)
    ROWS.append({"id": 4, "at": MOMENT})  # at the same moment
    ROWS.append({"id": 5, "at": MOMENT.replace(year=2028)})
    found, reading = read(source, "id", cursor=cursor)
    assert found == [("4",), ("5",)]
    # Read again from where it was, as by a run that was overtaken or killed: the same.
    again, second = read(source, "id", cursor=cursor)
    assert (again, second.cursor, second.token) == (found, reading.cursor, reading.token)
    # Without new_only each reading is the first.
    assert len(read(source.replace(new_only=False), "id")[0]) == 3


def test_any_state_and_none() -> None:
    source, cursor = Dlt(source=counted, new_only=True), None
    for calls in ("1", "2", "3"):
        found, reading = read(source, "id", cursor=cursor)
        assert found == [(calls,)]
        cursor = reading.cursor
    with pytest.raises(SourceUnreadable, match="keeps nothing in dlt's state") as failed:
        read(Dlt(source=typed, new_only=True), "id")
    assert failed.value.hint


def test_errors_name_the_line() -> None:
    with pytest.raises(SourceUnreadable) as failed:
        read(Dlt(source=bad), "id")
    assert "bad failed: ValueError: no such account at test_dlt.py:" in failed.value.message
    with pytest.raises(SourceUnreadable, match="nothing gave list, not a source or resource of dlt"):
        read(Dlt(source=nothing), "id")


def test_a_ready_source() -> None:
    with served() as server:
        server.records = [{"id": n} for n in range(35)]
        source = Dlt(source=api, arguments={"url": server.url})
        assert read(source, "id")[0] == [(str(n),) for n in range(35)]


def test_its_definition_needs_no_dlt() -> None:
    contract = Contract(columns={"id": Column(type="int64")})
    job = Ingest(dataset="d", source=Dlt(source="jobs.shop:orders", new_only=True), contract=contract)
    assert (job.mode, job.code()) == ("append", ("jobs.shop:orders",))
    assert from_json(json.loads(json.dumps(job.to_json()))) == job
    code = "import sys, manta.connectors.dlt; print('dlt' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
