"""Reading topics, through librdkafka: from the mock cluster of tests/brokers.py, and from the logs of
tests/kafka_log.py, where holes, transactions and passwords are the matter. Both say what they cannot show."""

from __future__ import annotations

import io
import json
import secrets
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fastavro
import pytest

from manta import Kafka
from manta.definitions.sources import Ask, Rows
from manta.errors import SourceUnreadable
from tests.brokers import PARTITIONS, ends, make, produce
from tests.kafka_log import EPOCH, Batch, Broker, Log, control, serving

ROOT = Path(".")


@pytest.fixture
def topic() -> str:
    return f"t{secrets.token_hex(6)}"


def read(source: Kafka, *columns: str, cursor: Any = None) -> tuple[list[Rows], Any]:
    ask = Ask(ROOT, columns, cursor)
    with source.opened(ask) as reading:
        found = [batch for piece in reading.pieces for batch in source.read(piece, ask)]
        reading.verify()
    return found, reading.cursor


def values(found: list[Rows], column: str) -> list[Any]:
    return [value for batch in found for value in batch.values[column].to_list()]


def objects(*offsets: int) -> dict[int, bytes]:
    return {offset: b'{"id": %d}' % offset for offset in offsets}


# --- from the mock cluster ------------------------------------------------------------------------------


def test_each_reading_takes_what_is_new(kafka: str, topic: str) -> None:
    source = Kafka(servers=kafka, topic=topic, per_piece=7)
    produce(kafka, topic, ({"id": number} for number in range(100)))
    found, cursor = read(source, "id", "_partition", "_offset", "_topic")
    assert sorted(values(found, "id"), key=int) == [str(number) for number in range(100)]
    assert set(values(found, "_topic")) == {topic}
    for batch in found:
        assert batch.values["_offset"].to_list() == list(batch.numbers or ())
    assert cursor == {topic: {str(number): 25 for number in range(PARTITIONS)}}
    assert read(source, "id", cursor=cursor) == ([], cursor)
    produce(kafka, topic, [{"id": 100}], partition=2)
    found, cursor = read(source, "id", cursor=cursor)
    assert values(found, "id") == ["100"]
    assert cursor[topic] == {"0": 25, "1": 25, "2": 26, "3": 25}
    # A partition that the cursor does not know is read from its beginning.
    del cursor[topic]["1"]
    assert len(values(read(source, "id", cursor=cursor)[0], "id")) == 25


def test_columns_of_kafka_itself(kafka: str, topic: str) -> None:
    produce(kafka, topic, [{"id": 1}, {"id": 2}], keys=["k", None], partition=3)
    before = datetime.now(UTC)
    (batch,), _ = read(Kafka(servers=kafka, topic=topic), "_timestamp", "id", "_key", "_partition")
    assert batch.values.columns == ["_timestamp", "id", "_key", "_partition"]
    assert batch.values["_key"].to_list() == ["k", None]
    assert batch.values["_partition"].to_list() == [3, 3]
    assert abs((batch.values["_timestamp"][0] - before).total_seconds()) < 600


def test_latest_begins_where_the_topic_ends_now(kafka: str, topic: str) -> None:
    produce(kafka, topic, [{"id": 1}] * 8)
    source = Kafka(servers=kafka, topic=topic, start="latest")
    found, cursor = read(source, "id")
    assert found == []
    produce(kafka, topic, [{"id": 2}] * 8)
    assert values(read(source, "id", cursor=cursor)[0], "id") == ["2"] * 8


def test_several_topics_and_a_pattern(kafka: str, topic: str) -> None:
    for name in ("one", "two", "xtwo"):
        produce(kafka, f"{topic}-{name}", [{"id": name}], partition=0)
    both = Kafka(servers=kafka, topic=(f"{topic}-one", f"^{topic}-t.*"))
    found, cursor = read(both, "id")
    assert values(found, "id") == ["one", "two"]
    assert set(cursor) == {f"{topic}-one", f"{topic}-two"}
    # What is no longer asked for is remembered, should it be asked for again.
    only = both.replace(topic=f"{topic}-one")
    assert read(only, "id", cursor=cursor) == ([], cursor)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed(kafka: str, topic: str, codec: str) -> None:
    produce(kafka, topic, ({"id": n} for n in range(500)), partition=0, **{"compression.type": codec})
    found, _ = read(Kafka(servers=kafka, topic=topic, per_piece=99), "id")
    assert values(found, "id") == [str(number) for number in range(500)]


def test_a_message_larger_than_what_is_fetched_at_once(kafka: str, topic: str) -> None:
    text = "x" * 3_000_000
    produce(kafka, topic, [{"id": text}, {"id": "y"}], partition=0, **{"message.max.bytes": 4_000_000})
    assert values(read(Kafka(servers=kafka, topic=topic), "id")[0], "id") == [text, "y"]


def test_an_empty_topic_has_nothing_new(kafka: str, topic: str) -> None:
    make(kafka, topic)
    found, cursor = read(Kafka(servers=kafka, topic=topic), "id")
    assert found == []
    assert cursor == {topic: {str(number): 0 for number in range(PARTITIONS)}}


@pytest.mark.parametrize("asked", ["nowhere", "^nowhere.*"])
def test_a_topic_that_is_not_there(kafka: str, asked: str) -> None:
    with pytest.raises(SourceUnreadable, match="nowhere") as failed:
        read(Kafka(servers=kafka, topic=asked, timeout=5), "id")
    assert "`topic`" in failed.value.hint


def test_retention_that_went_past_the_cursor_is_an_error(kafka: str, topic: str) -> None:
    source = Kafka(servers=kafka, topic=topic)
    produce(kafka, topic, [{"id": 1}] * 3, partition=0)
    _, cursor = read(source, "id")
    # The cluster keeps some five megabytes of a partition.
    produce(
        kafka, topic, ({"id": "x" * 500_000} for _ in range(30)), partition=0, **{"batch.num.messages": 1}
    )
    low, end = ends(kafka, topic)[0]
    assert low > 3
    with pytest.raises(
        SourceUnreadable, match=rf"{topic}/0: offsets 3 to {low - 1} .* were deleted"
    ) as failed:
        read(source, "id", cursor=cursor)
    assert "on_gap='accept'" in failed.value.hint
    found, after = read(source.replace(on_gap="accept"), "_offset", cursor=cursor)
    assert values(found, "_offset") == list(range(low, end))
    assert after[topic]["0"] == end


def test_nobody_listens() -> None:
    with pytest.raises(SourceUnreadable, match=r"Connection refused") as failed:
        read(Kafka(servers="127.0.0.1:1", topic="t", timeout=1), "id")
    assert "`servers`" in failed.value.hint


def test_a_setting_that_librdkafka_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "hunter2hunter2")
    source = Kafka(servers="127.0.0.1:1", topic="t", settings={"security.protocol": "${env:A_SECRET}"})
    with pytest.raises(SourceUnreadable, match=r"security.protocol") as failed:
        read(source, "id")
    assert "hunter2" not in str(failed.value)


# --- messages -------------------------------------------------------------------------------------------


def test_poison_is_broken_rows_with_their_offsets(kafka: str, topic: str) -> None:
    poison = [None, b"not json", b"", b"[1]", b'{"id": 1}{"id": 2}', b"\xff\xfe", b'{"id": "a\nb"}']
    good = [b'{"id": 1}', b'{\n  "id": 2,\r\n  "more": {"a": [1,\n 2]}\n}', b'{"id": "\xc3\xa9"}']
    produce(kafka, topic, [good[0], *poison, *good[1:]], partition=1)
    source = Kafka(servers=kafka, topic=topic)
    (batch,), _ = read(source, "id", "more", "_offset")
    assert batch.height == 10
    assert batch.values["id"].to_list() == ["1", "2", "é"]
    assert batch.values["_offset"].to_list() == [0, 8, 9]
    assert json.loads(batch.values["more"][1]) == {"a": [1, 2]}
    assert [(row.row, row.rule) for row in batch.broken] == [
        (1, "tombstone"),
        *((number, "not a JSON object") for number in range(2, 8)),
    ]
    assert batch.broken[1].text == "not json"
    assert batch.broken[5].text == "base64://4="
    skipped = read(source.replace(tombstones="skip"), "id")[0][0]
    assert (skipped.height, len(skipped.broken), 1 in (skipped.numbers or ())) == (9, 6, False)
    kept = read(source.replace(tombstones="keep"), "id", "_offset")[0][0]
    assert kept.values["id"].to_list() == ["1", None, "2", "é"]
    assert kept.values["_offset"].to_list() == [0, 1, 8, 9]


def test_raw_is_bytes(kafka: str, topic: str) -> None:
    produce(kafka, topic, [b"\x00\xff", None, b""], keys=[b"\xfe", None, "k"], partition=0)
    (batch,), _ = read(Kafka(servers=kafka, topic=topic, format="raw"), "_key", "_value", "id")
    assert batch.values.rows() == [(b"\xfe", b"\x00\xff"), (None, None), (b"k", b"")]
    assert batch.broken == []
    assert "id" not in batch.columns
    (text,), _ = read(Kafka(servers=kafka, topic=topic, tombstones="keep"), "_key")
    assert [(row.row, row.rule) for row in text.broken] == [(0, "key is not text"), (2, "not a JSON object")]


def test_a_column_that_nobody_sends_is_missed_the_first_time_only(kafka: str, topic: str) -> None:
    source = Kafka(servers=kafka, topic=topic)
    produce(kafka, topic, [{"id": 1}], partition=0)
    (batch,), cursor = read(source, "id", "colour")
    assert "colour" not in batch.columns
    produce(kafka, topic, [{"id": 2}], partition=0)
    (batch,), _ = read(source, "id", "colour", cursor=cursor)
    assert "colour" in batch.columns
    assert batch.values["colour"].to_list() == [None]


SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Row",
    "fields": [
        {"name": "id", "type": "long"},
        {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "blob", "type": ["null", "bytes"], "default": None},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
        {"name": "who", "type": {"type": "string", "logicalType": "uuid"}},
    ],
}
ROW = {
    "id": 1,
    "price": Decimal("12.30"),
    "at": datetime(2024, 2, 29, 12, tzinfo=UTC),
    "blob": b"\x00\xff",
    "tags": ["a", "é"],
    "who": uuid.UUID(int=7),
}


def avro(row: Mapping[str, Any], schema: Any = SCHEMA, number: int | None = None) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), row)
    return (b"" if number is None else b"\0" + number.to_bytes(4, "big")) + out.getvalue()


def test_avro_with_a_schema_given(kafka: str, topic: str) -> None:
    truncated = avro(ROW)[:-3]
    produce(kafka, topic, [avro(ROW), truncated, avro(ROW) + b"!", avro(ROW)], partition=0)
    source = Kafka(servers=kafka, topic=topic, format="avro", avro_schema=json.dumps(SCHEMA))
    (batch,), _ = read(source, *ROW)
    assert batch.values.row(1, named=True) == {**ROW, "who": str(ROW["who"])}
    assert [(row.row, row.rule) for row in batch.broken] == [(1, "not Avro"), (2, "not Avro")]
    with pytest.raises(SourceUnreadable, match="not an Avro schema"):
        read(source.replace(avro_schema='{"type": "nonsense"}'), "id")


@contextmanager
def registry(schemas: Mapping[str, Any], password: str = "") -> Iterator[tuple[str, list[str]]]:
    """A schema registry as far as readers use one (the real one is a Java service that is not to be had from
    a package here): its two routes, over HTTP. Gives its URL, and the list of what is asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            trusted = not password or (self.headers["authorization"] or "").startswith("Basic ")
            code = 401 if not trusted else 200 if self.path in schemas else 404
            body = json.dumps(schemas.get(self.path, {"error_code": 40403})).encode()
            self.send_response(code)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_avro_by_the_ids_of_a_schema_registry(
    kafka: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_PASSWORD", "hunter2/hunter2")
    old = {"type": "record", "name": "Row", "fields": [{"name": "id", "type": "int"}]}
    place = {"type": "record", "name": "Place", "fields": [{"name": "city", "type": "string"}]}
    new = {**old, "fields": [{"name": "id", "type": "long"}, {"name": "place", "type": "Place"}]}
    whole = {**old, "fields": [{"name": "id", "type": "long"}, {"name": "place", "type": place}]}
    schemas = {
        "/schemas/ids/1": {"schema": json.dumps(old)},
        "/schemas/ids/2": {
            "schema": json.dumps(new),
            "references": [{"name": "Place", "subject": "place", "version": 3}],
        },
        "/subjects/place/versions/3": {"schema": json.dumps(place)},
        "/schemas/ids/5": {"schema": "{}", "schemaType": "JSON"},
    }
    good = [avro({"id": 1}, old, 1), avro({"id": 2**40, "place": {"city": "Rome"}}, whole, 2)]
    poison = [b"\1\0\0\0\1\2", avro({"id": 1}, old, 99), avro({"id": 1}, old, 5), b"\0\0"]
    poison.append(poison[1])
    produce(kafka, topic, [*good, *poison, *good], partition=0)
    with registry(schemas, "hunter2") as (address, asked):
        source = Kafka(
            servers=kafka,
            topic=topic,
            format="avro",
            schema_registry=f"http://reader:${{env:REGISTRY_PASSWORD}}@{address}",
        )
        (batch,), _ = read(source, "id", "place")
        assert batch.values.rows() == [(1, None), (2**40, {"city": "Rome"})] * 2
        assert [row.row for row in batch.broken] == [2, 3, 4, 5, 6]
        assert "has no /schemas/ids/99" in batch.broken[1].reason
        assert sorted(asked) == sorted([*schemas, "/schemas/ids/99"]), "each is asked for once"
        with pytest.raises(SourceUnreadable, match="answered 401"):
            read(source.replace(schema_registry=f"http://{address}"), "id")
    with pytest.raises(SourceUnreadable, match="cannot be asked") as failed:
        read(source, "id")
    assert "hunter2" not in str(failed.value)


# --- logs with holes ------------------------------------------------------------------------------------

COMPACTED = Log([Batch(0, 9, objects(0, 3, 9)), Batch(10, 19, {}), Batch(25, 29, objects(26))], end=30)


@pytest.mark.parametrize("per_piece", [100, 10, 4, 1])
def test_what_was_compacted_is_passed_over(per_piece: int) -> None:
    """Also where a piece begins, ends or lies in a hole, and where the log ends with one."""
    with serving({"t": {0: COMPACTED}}) as broker:
        source = Kafka(servers=broker.address, topic="t", per_piece=per_piece, timeout=20)
        found, cursor = read(source, "id", "_offset")
    assert values(found, "_offset") == [0, 3, 9, 26]
    assert values(found, "id") == ["0", "3", "9", "26"]
    assert cursor == {"t": {"0": 30}}


def transactions() -> Log:
    """Aborted, committed, aborted, and open."""
    one, two = 7, 8
    return Log(
        [
            Batch(0, 2, objects(0, 1, 2), one),
            control(3, one, commit=False),
            Batch(4, 5, objects(4, 5), one),
            control(6, one, commit=True),
            Batch(7, 7, objects(7), two),
            control(8, two, commit=False),
            Batch(9, 9, objects(9), two),
        ],
        end=10,
        stable=9,
        aborted=[(one, 0, 3), (two, 7, 8)],
    )


@pytest.mark.parametrize("per_piece", [100, 2, 1])
def test_only_what_was_committed_is_read(per_piece: int) -> None:
    with serving({"t": {0: transactions()}}) as broker:
        source = Kafka(servers=broker.address, topic="t", per_piece=per_piece, timeout=20)
        found, cursor = read(source, "_offset")
        assert values(found, "_offset") == [4, 5]
        assert cursor == {"t": {"0": 9}}
        # The open transaction is committed.
        log = transactions()
        log.batches, log.end, log.stable = [*log.batches, control(10, 8, commit=True)], 11, None
        broker.logs["t"][0] = log
        found, after = read(source, "_offset", cursor=cursor)
        assert values(found, "_offset") == [9]
        assert after == {"t": {"0": 11}}
        every = source.replace(isolation="read_uncommitted")
        assert values(read(every, "_offset")[0], "_offset") == [0, 1, 2, 4, 5, 7, 9]


def test_a_moment_is_the_first_message_of_that_time_or_later() -> None:
    with serving({"t": {0: COMPACTED, 1: Log([Batch(0, 0, objects(0))], end=1)}}) as broker:
        moment = datetime.fromtimestamp(EPOCH / 1000 + 4, UTC)
        source = Kafka(servers=broker.address, topic="t", start=moment, timeout=20)
        found, cursor = read(source, "_offset", "_partition")
    assert values(found, "_offset") == [9, 26]
    assert cursor == {"t": {"0": 30, "1": 1}}


def test_deleted_while_it_is_read() -> None:
    log = Log([Batch(0, 4, objects(0, 1, 2, 3, 4)), Batch(5, 9, objects(5, 7))], end=10)
    with serving({"t": {0: log}}) as broker:
        source = Kafka(servers=broker.address, topic="t", timeout=20)
        ask = Ask(ROOT, ("_offset",))
        with source.opened(ask) as reading:
            log.low, log.batches = 5, log.batches[1:]
            with pytest.raises(SourceUnreadable, match=r"t/0: offsets from 0 on were deleted .* up to 4"):
                list(source.read(reading.pieces[0], ask))
            found = list(source.replace(on_gap="accept").read(reading.pieces[0], ask))
    assert values(found, "_offset") == [5, 7]


@pytest.mark.parametrize("why", ["silent", "shorter"])
def test_what_does_not_come_is_an_error_in_time(why: str) -> None:
    """The broker hangs, or its log is shorter now than it was: nothing may wait for ever."""
    log = Log([Batch(0, 1, objects(0, 1))], end=5)
    with serving({"t": {0: log}}) as broker:
        source = Kafka(servers=broker.address, topic="t", timeout=1)
        ask = Ask(ROOT, ("_offset",))
        with source.opened(ask) as reading:
            log.silent, log.end = why == "silent", 5 if why == "silent" else 2
            with pytest.raises(SourceUnreadable, match=r"t/0 gave nothing for 1 s at offset [02]"):
                list(source.read(reading.pieces[0], ask))


def test_a_topic_made_anew(kafka: str) -> None:
    with serving({"t": {0: Log([Batch(0, 1, objects(0, 1))], end=2)}}) as broker:
        source = Kafka(servers=broker.address, topic="t", timeout=20)
        with pytest.raises(SourceUnreadable, match=r"t/0: offset 9 comes next, but the partition ends at 2"):
            read(source, "id", cursor={"t": {"0": 9}})
        assert values(read(source.replace(on_gap="accept"), "id", cursor={"t": {"0": 9}})[0], "id") == [
            "0",
            "1",
        ]


def test_passwords(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def source(broker: Broker) -> Kafka:
        settings = {
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": "PLAIN",
            "sasl.username": "reader",
            "sasl.password": "${env:KAFKA_PASSWORD}",
        }
        return Kafka(servers=broker.address, topic="t", timeout=20, settings=settings)

    with serving({"t": {0: COMPACTED}}, password=b"hunter2hunter2") as broker:
        monkeypatch.setenv("KAFKA_PASSWORD", "hunter2hunter2")
        assert values(read(source(broker), "id")[0], "id") == ["0", "3", "9", "26"]
        monkeypatch.setenv("KAFKA_PASSWORD", "hunter3hunter3")
        with pytest.raises(
            SourceUnreadable, match=r"refuses the credentials.*Authentication failed"
        ) as failed:
            read(source(broker), "id")
    assert "sasl.*" in failed.value.hint
    told = f"{failed.value} {failed.value.hint} {capfd.readouterr()}"
    assert "hunter" not in told
