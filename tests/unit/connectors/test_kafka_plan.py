"""What offsets are made into: the next reading, or an error that says what is gone; and what a definition of
Kafka may say."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from manta import Column, Contract, Ingest, Kafka
from manta.connectors.kafka import Mark, Span, plan
from manta.definitions import from_json
from manta.errors import DefinitionInvalid, SourceUnreadable

A0, A1, B0 = ("a", 0), ("a", 1), ("b", 0)


def test_the_first_reading_takes_what_is_kept() -> None:
    spans, after = plan(None, {A0: Mark(5, 30, 30), A1: Mark(0, 0, 0), B0: Mark(7, 7, 7)}, {}, per_piece=10)
    assert spans == [Span("a", 0, 5, 15), Span("a", 0, 15, 25), Span("a", 0, 25, 30)]
    assert after == {"a": {"0": 30, "1": 0}, "b": {"0": 7}}


def test_the_first_reading_may_begin_elsewhere() -> None:
    marks = {A0: Mark(5, 30, 30), A1: Mark(5, 9, 9), B0: Mark(4, 9, 9)}
    spans, after = plan(None, marks, {A0: 30, A1: 7, B0: 2})
    assert spans == [Span("a", 1, 7, 9), Span("b", 0, 4, 9)]
    assert after == {"a": {"0": 30, "1": 9}, "b": {"0": 9}}


def test_the_next_reading_begins_where_the_last_ended() -> None:
    cursor = {"a": {"0": 30, "1": 9}}
    assert plan(cursor, {A0: Mark(0, 30, 30), A1: Mark(9, 9, 9)}, {}) == ([], cursor)
    spans, after = plan(cursor, {A0: Mark(30, 31, 40), A1: Mark(0, 9, 9)}, {})
    assert spans == [Span("a", 0, 30, 31)]
    assert after == {"a": {"0": 31, "1": 9}}


def test_a_new_partition_and_a_new_topic_are_read_from_their_beginning() -> None:
    spans, after = plan({"a": {"0": 3}}, {A0: Mark(0, 3, 3), A1: Mark(2, 4, 4), B0: Mark(0, 1, 1)}, {})
    assert spans == [Span("a", 1, 2, 4), Span("b", 0, 0, 1)]
    assert after == {"a": {"0": 3, "1": 4}, "b": {"0": 1}}


def test_an_open_transaction_is_waited_for() -> None:
    """Messages of open ones had been read before: nothing is missing, and nothing is to be read again."""
    assert plan({"a": {"0": 8}}, {A0: Mark(0, 5, 9)}, {}) == ([], {"a": {"0": 8}})


@pytest.mark.parametrize(
    ("mark", "told", "start"),
    [
        (Mark(20, 30, 30), r"a/0: offsets 12 to 19 \(8\) were deleted before they were read", 20),
        (Mark(20, 20, 20), r"a/0: offsets 12 to 19 \(8\)", 20),
        (Mark(0, 11, 11), r"a/0: offset 12 comes next, but the partition ends at 11", 0),
    ],
)
def test_a_gap_is_an_error_unless_it_is_accepted(mark: Mark, told: str, start: int) -> None:
    with pytest.raises(SourceUnreadable, match=told) as failed:
        plan({"a": {"0": 12}}, {A0: mark}, {})
    assert "on_gap='accept'" in failed.value.hint
    spans, after = plan({"a": {"0": 12}}, {A0: mark}, {}, "accept")
    assert spans == ([Span("a", 0, start, mark.end)] if start < mark.end else [])
    assert after == {"a": {"0": mark.end}}


def test_a_partition_or_topic_that_is_gone_is_an_error() -> None:
    cursor = {"a": {"0": 3, "1": 5}, "b": {"0": 1}}
    with pytest.raises(SourceUnreadable, match=r"a/1: is gone; b/0: is gone"):
        plan(cursor, {A0: Mark(0, 3, 3)}, {})
    assert plan(cursor, {A0: Mark(0, 3, 3)}, {}, "accept") == ([], {"a": {"0": 3}})


def test_many_gaps_are_told_shortly() -> None:
    cursor = {"a": {str(number): 1 for number in range(9)}}
    with pytest.raises(SourceUnreadable, match=r"a/4: is gone; and 4 more$"):
        plan(cursor, {}, {})


# --- definitions --------------------------------------------------------------------------------------


def test_its_definition_survives_json() -> None:
    source = Kafka(
        servers="a:1,b:2",
        topic=("one", "^two.*"),
        start="2024-05-01T00:00:00+02:00",  # type: ignore[arg-type]
        settings={"sasl.password": "${env:KAFKA_PASSWORD}", "socket.keepalive.enable": False},
    )
    job = Ingest(dataset="d", source=source, contract=Contract(columns={"a": Column(type="int64")}))
    assert from_json(job.to_json()) == job
    assert job.mode == "append"


def test_topics_are_named_or_matched_whole() -> None:
    source = Kafka(servers="a:1", topic=("plain.x", "^log-[0-9]+"))
    assert [source.asks_for(name) for name in ("plain.x", "plainyx", "log-12", "log-12b", "xlog-1")] == [
        True,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"settings": {"group.id": "x", "auto.offset.reset": "latest"}},
            "auto.offset.reset, group.id is not",
        ),
        ({"settings": {"sasl.password": "hunter2hunter2"}}, "sasl.password is a secret"),
        ({"settings": {"ssl.key.pem": "hunter2hunter2"}}, "ssl.key.pem is a secret"),
        ({"format": "avro"}, "needs either schema_registry or avro_schema"),
        ({"format": "avro", "schema_registry": "http://r", "avro_schema": "{}"}, "needs either"),
        ({"schema_registry": "http://r"}, "other formats, none"),
        ({"format": "avro", "schema_registry": "http://u:hunter2hunter2@r"}, "password in schema_registry"),
        ({"topic": ()}, "name a topic"),
        ({"per_piece": 0}, "greater than or equal to 1"),
        ({"start": "2024-05-01T00:00:00"}, "timezone"),
    ],
)
def test_what_cannot_be_meant_is_refused_and_no_secret_is_repeated(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told) as failed:
        Kafka(**{"servers": "a:1", "topic": "t", **fields})
    assert "hunter2" not in str(failed.value)
    written = {"kind": "kafka", "servers": "a:1", "topic": "t", **fields}
    with pytest.raises(DefinitionInvalid, match=told) as refused:
        Ingest(dataset="d", source=written, contract=Contract(columns={"a": Column(type="int64")}))  # type: ignore[arg-type]
    assert "hunter2" not in str(refused.value)


def test_a_topic_that_is_no_pattern_is_refused() -> None:
    with pytest.raises(ValidationError, match="is no pattern"):
        Kafka(servers="a:1", topic="^(")
