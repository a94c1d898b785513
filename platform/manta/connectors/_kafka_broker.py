"""A connection to a Kafka cluster: what it has, and the messages of a span of offsets."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from manta import secrets
from manta.connectors.kafka import GAP_HINT, Kafka, Mark, Partition, Span
from manta.definitions.sources import driver
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError

EXTRA = "kafka"
BATCH_ROWS = 50_000
BATCH_BYTES = 16 * 2**20
CHUNK_BYTES = 2 * 2**20  # asked of librdkafka at once
CHUNK_ROWS = 5_000
CONNECT_SECONDS = 10.0  # at most, to be told what topics there are
ASK_SECONDS = 0.5  # between two looks at whether the broker has refused us
DEFAULTS = {
    "client.id": "manta",
    "log_level": 2,  # what goes wrong is told by errors
    "fetch.wait.max.ms": 100,
    "socket.keepalive.enable": True,
}
logger = logging.getLogger("manta.kafka")


class Broker:
    """One connection; its errors are SourceUnreadable, and repeat no secret."""

    def __init__(self, source: Kafka, consumer: Consumer, settings: dict[str, Any], told: _Told) -> None:
        self._source, self._consumer, self._settings, self._told = source, consumer, settings, told
        self._kafka = driver("confluent_kafka", EXTRA)
        self._admin = driver("confluent_kafka.admin", EXTRA)
        self._client: Any = None

    def partitions(self) -> list[Partition]:
        """All of the topics asked for.

        Raises:
            SourceUnreadable: there is no such topic, or no broker answers.
        """
        found: list[Partition] = []
        for asked in self._asked():
            answer = self._metadata(self._consumer, asked)
            for name, topic in answer.topics.items():
                if asked is None and (name.startswith("__") or not self._source.asks_for(name)):
                    continue
                if topic.error is not None:
                    raise self._failed(topic.error, f"topic {name!r}")
                found += [(name, number) for number in topic.partitions]
        if not found:
            raise SourceUnreadable(
                f"no topic at {self._source.servers} matches {', '.join(self._source.topics())}",
                hint="correct `topic` in Kafka(…), or create the topic",
            )
        return found

    def _asked(self) -> Sequence[str | None]:
        """The topics that the cluster must be asked about; None stands for all there are."""
        names = self._source.topics()
        return [None] if any(name.startswith("^") for name in names) else names

    def _metadata(self, client: Any, topic: str | None) -> Any:
        transient = {
            self._kafka.KafkaError.LEADER_NOT_AVAILABLE,
            self._kafka.KafkaError._TRANSPORT,
            self._kafka.KafkaError._TIMED_OUT,
        }
        deadline = time.monotonic() + min(CONNECT_SECONDS, self._source.timeout)
        while True:
            try:
                answer = client.list_topics(**({"topic": topic} if topic else {}), timeout=ASK_SECONDS)
                error = answer.topics[topic].error if topic else None
                if error is None or error.code() not in transient:
                    return answer
            except self._kafka.KafkaException as failed:
                error = failed.args[0]
            client.poll(0)  # lets librdkafka tell why
            self._told.refusal(self)
            if error.code() not in transient or time.monotonic() > deadline:
                raise self._failed(error, "asking what there is")

    def marks(self, partitions: Sequence[Partition]) -> dict[Partition, Mark]:
        latest, earliest = self._admin.OffsetSpec.latest(), self._admin.OffsetSpec.earliest()
        # The ends last: what is kept can only become less, and a later end includes an earlier one.
        low = self._offsets(dict.fromkeys(partitions, earliest))
        end = self._offsets(dict.fromkeys(partitions, latest), self._source.isolation)
        high = self._offsets(dict.fromkeys(partitions, latest), "read_uncommitted")
        return {each: Mark(low[each], end[each], high[each]) for each in partitions}

    def begin(self, marks: Mapping[Partition, Mark]) -> dict[Partition, int]:
        """Where the first reading begins."""
        if self._source.start == "earliest":
            return {}
        if self._source.start == "latest":
            return {each: mark.end for each, mark in marks.items()}
        moment = self._admin.OffsetSpec.for_timestamp(int(self._source.start.timestamp() * 1000))
        found = self._offsets(dict.fromkeys(marks, moment))
        return {each: marks[each].end if at < 0 else at for each, at in found.items()}

    def _offsets(self, wanted: Mapping[Partition, Any], isolation: str = "") -> dict[Partition, int]:
        level = self._kafka.IsolationLevel
        answers = self._admin_client().list_offsets(
            {self._kafka.TopicPartition(*each): spec for each, spec in wanted.items()},
            isolation_level=level.READ_COMMITTED if isolation == "read_committed" else level.READ_UNCOMMITTED,
            request_timeout=self._source.timeout,
        )
        found = {}
        for partition, answer in answers.items():
            try:
                answered = answer.result(self._source.timeout + 1)
                found[partition.topic, partition.partition] = int(answered.offset)
            except TimeoutError:
                raise self._failed(self._told.last, "gave no offsets in time") from None
            except self._kafka.KafkaException as failed:
                raise self._failed(failed.args[0], f"{partition.topic}/{partition.partition}") from failed
        return found

    def _admin_client(self) -> Any:
        """Kept while there are answers to come: without their client they never do.

        It is asked about the topics before it is used: a question of offsets that is the first to go through
        a new connection may get no answer (librdkafka 2.16, one time in a hundred).
        """
        if self._client is None:
            self._client = self._admin.AdminClient(self._settings)
            for topic in self._asked():
                self._metadata(self._client, topic)
        return self._client

    def messages(self, span: Span) -> Iterator[list[Any]]:
        """What there is of a span, in batches that do not depend on how it arrives.

        Ends at its last offset, or behind it, or where the broker says that nothing follows: offsets may be
        missing anywhere (compacted, aborted, or marks of transactions, which no client is given).

        Raises:
            SourceUnreadable: it is deleted meanwhile, the broker is lost, or gives nothing for too long.
        """
        batch: list[Any] = []
        at, size, bytes_seen, rows_seen = span.start, 0, 0, 0
        self._consumer.assign([self._kafka.TopicPartition(span.topic, span.partition, at)])
        deadline = time.monotonic() + self._source.timeout
        while at < span.stop:
            before = at
            chunk = min(CHUNK_ROWS, 1 + CHUNK_BYTES * rows_seen // (bytes_seen + 1) if rows_seen else 100)
            for message in self._consumer.consume(min(chunk, span.stop - at), timeout=0.1):
                if message.error() is not None:
                    at = self._past(message, span, at)
                    continue
                offset: int = message.offset()  # type: ignore[assignment]
                if offset < at:
                    continue
                at = offset + 1
                if at > span.stop:
                    break
                batch.append(message)
                length = len(message.value() or b"") + len(message.key() or b"")
                size, bytes_seen, rows_seen = size + length, bytes_seen + length, rows_seen + 1
                if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            self._told.refusal(self)
            now = time.monotonic()
            if at > before:
                deadline = now + self._source.timeout
            elif now > deadline:
                raise self._failed(
                    self._told.last, f"{span.file} gave nothing for {self._source.timeout:g} s at offset {at}"
                )
        if batch:
            yield batch

    def _past(self, message: Any, span: Span, at: int) -> int:
        """Where to go on after an event that is no message."""
        codes = self._kafka.KafkaError
        error = message.error()
        if error.code() == codes._PARTITION_EOF:
            return max(at, int(message.offset()))
        if error.code() == codes._AUTO_OFFSET_RESET:
            low = self.marks([(span.topic, span.partition)])[span.topic, span.partition].low
            told = f"{span.file}: offsets from {at} on were deleted while they were read, up to {low - 1}"
            if self._source.on_gap == "fail" or low <= at:
                raise SourceUnreadable(told, hint=GAP_HINT)
            logger.warning("a gap is accepted: %s", told)
            self._consumer.assign([self._kafka.TopicPartition(span.topic, span.partition, low)])
            return low
        if error.retriable() or error.code() in (codes._TRANSPORT, codes._ALL_BROKERS_DOWN):
            return at
        raise self._failed(error, span.file)

    def _failed(self, error: KafkaError | None, what: str) -> SourceUnreadable:
        why = "" if error is None else f": {error.str() or error.name()}"
        if self._told.last is not None and self._told.last is not error:
            why += f" ({self._told.last.str()})"
        return SourceUnreadable(
            secrets.redactor.text(f"Kafka at {self._source.servers}: {what}{why}"), hint=self._hint(error)
        )

    def _hint(self, error: KafkaError | None) -> str:
        codes = self._kafka.KafkaError
        code = error.code() if error is not None else None
        if code in (codes.UNKNOWN_TOPIC_OR_PART, codes._UNKNOWN_TOPIC, codes._UNKNOWN_PARTITION):
            return "correct `topic` in Kafka(…), or create the topic"
        if code in (codes._AUTHENTICATION, codes.SASL_AUTHENTICATION_FAILED, codes._SSL):
            return "correct sasl.* and security.protocol in Kafka(settings=…), and what their secrets hold"
        if code in (codes.TOPIC_AUTHORIZATION_FAILED, codes.GROUP_AUTHORIZATION_FAILED):
            return f"let this user describe and read the topic (and the group {self._source.group!r})"
        return "see that the brokers run, that `servers` in Kafka(…) is right, and security.protocol"


class _Told:
    """What librdkafka tells besides its answers: why a connection fails."""

    def __init__(self) -> None:
        self.last: KafkaError | None = None

    def __call__(self, error: KafkaError) -> None:
        if error.name() != "_ALL_BROKERS_DOWN":  # says less than what it was told before
            self.last = error

    def refusal(self, broker: Broker) -> None:
        """Raises:
        SourceUnreadable: trying again cannot help: librdkafka itself would, for ever.
        """
        if self.last is not None and self.last.name() in ("_AUTHENTICATION", "SASL_AUTHENTICATION_FAILED"):
            raise broker._failed(self.last, "refuses the credentials")


@contextmanager
def connection(source: Kafka) -> Iterator[Broker]:
    kafka = driver("confluent_kafka", EXTRA)
    told = _Told()
    settings = {
        **DEFAULTS,
        **{name: secrets.resolve(value) for name, value in source.settings.items()},
        "bootstrap.servers": secrets.resolve(source.servers),
        "error_cb": told,
    }
    reading = {
        "group.id": source.group,
        "isolation.level": source.isolation,
        "auto.offset.reset": "error",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "enable.partition.eof": True,
        "allow.auto.create.topics": False,
    }
    try:
        consumer = kafka.Consumer({**settings, **reading})
    except kafka.KafkaException as failed:
        raise SourceUnreadable(
            secrets.redactor.text(f"Kafka(settings=…) cannot be used: {failed.args[0].str()}"),
            hint="the settings are librdkafka's: see its CONFIGURATION.md",
        ) from None
    try:
        yield Broker(source, consumer, settings, told)
    finally:
        consumer.close()
