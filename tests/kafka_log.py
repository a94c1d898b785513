"""A Kafka broker that holds exactly the log it is given: with holes, aborted transactions, control records.

The mock cluster of tests/brokers.py has no such logs. This one answers real clients in Kafka's protocol, with
what a broker that compacted, deleted or ran transactions would answer (record batches of version 2); it
takes no messages. It is for what a *reader* does with such answers, and shows nothing of how a broker comes
to them.
"""

from __future__ import annotations

import socketserver
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PRODUCE, FETCH, LIST_OFFSETS, METADATA, SASL_HANDSHAKE, API_VERSIONS, SASL_AUTHENTICATE = (
    0,
    1,
    2,
    3,
    17,
    18,
    36,
)
VERSIONS = {
    PRODUCE: (3, 3),
    FETCH: (4, 4),
    LIST_OFFSETS: (2, 2),
    METADATA: (4, 4),
    SASL_HANDSHAKE: (1, 1),
    API_VERSIONS: (0, 0),
    SASL_AUTHENTICATE: (0, 0),
}
OUT_OF_RANGE, UNKNOWN_TOPIC, UNSUPPORTED, SASL_FAILED = 1, 3, 35, 58
TRANSACTIONAL, CONTROL = 0x10, 0x20
EPOCH = 1_700_000_000_000  # milliseconds: the message at offset n is n seconds later


@dataclass(frozen=True)
class Batch:
    """Offsets ``first`` to ``last``, of which only ``values`` are still there."""

    first: int
    last: int
    values: dict[int, bytes]
    producer: int = -1
    control: bool = False


@dataclass
class Log:
    """A partition.

    Attributes:
        batches: in order; between them offsets may be missing.
        low, stable, end: the first offset kept, where the first open transaction begins, and the next offset.
        aborted: the producer of each aborted transaction, its first offset, and that of its mark.
    """

    batches: Sequence[Batch]
    end: int
    low: int = 0
    stable: int | None = None
    aborted: Sequence[tuple[int, int, int]] = ()
    silent: bool = False  # gives nothing, as a broker that hangs

    def until(self, committed: bool) -> int:
        return self.end if self.stable is None or not committed else self.stable


@dataclass
class Broker:
    """What is answered from; may be changed while clients read."""

    logs: dict[str, dict[int, Log]]
    password: bytes | None = None
    port: int = 0
    fetched: list[tuple[str, int, int]] = field(default_factory=list)  # topic, partition, offset

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def serving(logs: dict[str, dict[int, Log]], password: bytes | None = None) -> Iterator[Broker]:
    broker = Broker(logs, password)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            _Connection(broker, self.request).serve()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        broker.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield broker
        server.shutdown()


class _Connection:
    def __init__(self, broker: Broker, socket: Any) -> None:
        self.broker, self.socket = broker, socket
        self.trusted = broker.password is None

    def serve(self) -> None:
        try:
            while True:
                (size,) = struct.unpack(">i", self.read(4))
                request = _Reader(self.read(size))
                key, version, correlation = request.take(">hhi")
                request.text()  # the client's id
                answer = self.answer(key, version, request)
                body = struct.pack(">i", correlation) + answer
                self.socket.sendall(struct.pack(">i", len(body)) + body)
        except (ConnectionError, EOFError):
            return

    def read(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            part = self.socket.recv(size - len(found))
            if not part:
                raise EOFError
            found += part
        return found

    def answer(self, key: int, version: int, request: _Reader) -> bytes:
        if key == API_VERSIONS:
            error = 0 if version == 0 else UNSUPPORTED
            known = [struct.pack(">hhh", each, *span) for each, span in VERSIONS.items()]
            return struct.pack(">h", error) + _array(known)
        if key == SASL_HANDSHAKE:
            return struct.pack(">h", 0) + _array([_text("PLAIN")])
        if key == SASL_AUTHENTICATE:
            self.trusted = request.bytes().split(b"\0")[2] == self.broker.password
            told = None if self.trusted else "Authentication failed: Invalid username or password"
            return struct.pack(">h", 0 if self.trusted else SASL_FAILED) + _text(told) + struct.pack(">i", 0)
        if not self.trusted:
            raise ConnectionError
        return {METADATA: self.metadata, LIST_OFFSETS: self.offsets, FETCH: self.fetch}[key](request)

    def metadata(self, request: _Reader) -> bytes:
        (count,) = request.take(">i")
        names = [request.text() for _ in range(count)] if count >= 0 else list(self.broker.logs)
        topics = []
        for name in names:
            logs = self.broker.logs.get(name)
            partitions = [
                struct.pack(">hii", 0, number, 1) + 2 * _array([struct.pack(">i", 1)])
                for number in logs or ()
            ]
            topics.append(
                struct.pack(">h", UNKNOWN_TOPIC if logs is None else 0)
                + _text(name)
                + b"\0"
                + _array(partitions)
            )
        node = struct.pack(">i", 1) + _text("127.0.0.1") + struct.pack(">i", self.broker.port) + _text(None)
        return struct.pack(">i", 0) + _array([node]) + _text("log") + struct.pack(">i", 1) + _array(topics)

    def offsets(self, request: _Reader) -> bytes:
        _, isolation = request.take(">ib")

        def partition(topic: str) -> bytes:
            number, moment = request.take(">iq")
            log = self.broker.logs.get(topic, {}).get(number)
            if log is None:
                return struct.pack(">ihqq", number, UNKNOWN_TOPIC, -1, -1)
            if moment == -2:
                return struct.pack(">ihqq", number, 0, -1, log.low)
            if moment == -1:
                return struct.pack(">ihqq", number, 0, -1, log.until(isolation == 1))
            kept = (at for batch in log.batches for at in sorted(batch.values) if at >= log.low)
            found = next((at for at in kept if EPOCH + 1000 * at >= moment), -1)
            return struct.pack(">ihqq", number, 0, EPOCH + 1000 * found if found >= 0 else -1, found)

        return struct.pack(">i", 0) + request.topics(partition)

    def fetch(self, request: _Reader) -> bytes:
        _, wait, _, _, isolation = request.take(">iiiib")
        found = False

        def partition(topic: str) -> bytes:
            nonlocal found
            number, offset, _ = request.take(">iqi")
            self.broker.fetched.append((topic, number, offset))
            log = self.broker.logs.get(topic, {}).get(number)
            if log is None:
                return struct.pack(">ihqqii", number, UNKNOWN_TOPIC, -1, -1, -1, 0)
            data, error = b"", 0
            if not log.low <= offset <= log.end:
                error = OUT_OF_RANGE
            elif not log.silent:
                limit = log.until(isolation == 1)
                ready = (each for each in log.batches if each.last >= offset and each.first < limit)
                data = b"".join(_batch(each) for each in [*ready][:2])
            found = found or bool(data) or bool(error)
            stable = log.end if log.stable is None else log.stable
            over = log.aborted if isolation == 1 else ()
            aborted = [struct.pack(">qq", who, first) for who, first, mark in over if mark >= offset]
            head = struct.pack(">ihqq", number, error, log.end, stable)
            return head + _array(aborted) + struct.pack(">i", len(data)) + data

        answer = struct.pack(">i", 0) + request.topics(partition)
        if not found:
            time.sleep(wait / 1000)
        return answer


def control(first: int, producer: int, *, commit: bool) -> Batch:
    """The mark that ends a transaction."""
    return Batch(first, first, {first: struct.pack(">hh", 0, int(commit))}, producer, control=True)


def _batch(batch: Batch) -> bytes:
    records = b""
    for offset, value in batch.values.items():
        key, data = (value, struct.pack(">hi", 0, 0)) if batch.control else (None, value)
        fields = [b"\0", _varint(0), _varint(offset - batch.first)]
        fields += [_varint(-1)] if key is None else [_varint(len(key)), key]
        fields += [_varint(len(data)), data, _varint(0)]
        record = b"".join(fields)
        records += _varint(len(record)) + record
    attributes = (TRANSACTIONAL if batch.producer >= 0 else 0) | (CONTROL if batch.control else 0)
    moment = EPOCH + 1000 * batch.first
    tail = struct.pack(
        ">hiqqqhi", attributes, batch.last - batch.first, moment, moment, batch.producer, 0, -1
    )
    tail += struct.pack(">i", len(batch.values)) + records
    head = struct.pack(">ibI", 0, 2, 0)  # leader epoch, magic, checksum (clients do not look by default)
    return struct.pack(">qi", batch.first, len(head) + len(tail)) + head + tail


def _varint(number: int) -> bytes:
    rest, out = (number << 1) ^ (number >> 63), b""
    while rest > 0x7F:
        out, rest = out + bytes([rest & 0x7F | 0x80]), rest >> 7
    return out + bytes([rest])


def _text(text: str | None) -> bytes:
    return struct.pack(">h", -1) if text is None else struct.pack(">h", len(text)) + text.encode()


def _array(items: Sequence[bytes]) -> bytes:
    return struct.pack(">i", len(items)) + b"".join(items)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return found

    def text(self) -> str:
        (size,) = self.take(">h")
        return self._next(max(0, size)).decode()

    def bytes(self) -> bytes:
        return self._next(self.take(">i")[0])

    def topics(self, partition: Any) -> bytes:
        """The answer to a request that goes on with topics and their partitions."""
        answers = []
        for _ in range(self.take(">i")[0]):
            name = self.text()
            parts = [partition(name) for _ in range(self.take(">i")[0])]
            answers.append(_text(name) + _array(parts))
        return _array(answers)

    def _next(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]
