"""Kafka: the messages of topics, from offsets that are kept with the rows they became.

The offsets of a consumer group are never asked for and never committed: where a reading begins is in the
dataset's own commit, so rows and offsets cannot disagree.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

from pydantic import AwareDatetime, ConfigDict, Field, field_validator, model_validator

from manta import secrets
from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import SourceUnreadable

# For telling progress and dividing work: brokers do not say how large messages are.
MESSAGE_BYTES = 300  # about
PIECE_BYTES = 200_000  # what could be read in the time that it takes to begin with a partition
SHOWN = 5
SECRET_SETTING = re.compile(r"password|secret|key\.pem$")
# What decides whether rows are read once is not for a setting to change.
OWN = {
    "auto.offset.reset",
    "bootstrap.servers",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.partition.eof",
    "group.id",
    "isolation.level",
}
logger = logging.getLogger("manta.kafka")

Partition = tuple[str, int]
Cursor = Mapping[str, Mapping[str, int]]  # topic → partition → the next offset; keys are texts, as in JSON


class Span(NamedTuple):
    """The messages of a partition from offset ``start`` up to, and without, ``stop``; some may be missing."""

    topic: str
    partition: int
    start: int
    stop: int

    @property
    def file(self) -> str:
        return f"{self.topic}/{self.partition}"

    @property
    def size(self) -> int:
        return PIECE_BYTES + (self.stop - self.start) * MESSAGE_BYTES


class Mark(NamedTuple):
    """What a partition holds now.

    Attributes:
        low: the first offset that is kept.
        end: after the last that may be read: where an open transaction begins, or ``high``.
        high: after the last that is written.
    """

    low: int
    end: int
    high: int


class Kafka(Source):
    """Topics of a Kafka cluster; each run reads what is new, up to the ends that it finds when it begins.

    Attributes:
        servers: ``host:port``, several with commas between.
        topic: one, several, or a regular expression beginning with ``^`` that whole names match.
        format: of the values: ``json``, an object each, its names are the columns and nested values are JSON
            text; ``avro``, records; or ``raw``, whose only column is ``_value``, the bytes. Whatever the
            format, a contract may also name the columns ``_key`` (text; in raw, bytes), ``_topic``,
            ``_partition``, ``_offset`` and ``_timestamp``.
        start: where the very first reading begins; a moment means the first message of that time or later.
            Partitions that appear afterwards are read from their beginning.
        on_gap: messages may be gone before they were read: deleted by retention, or with their topic.
            ``fail`` says which; ``accept`` goes on with what there is.
        tombstones: what a message without a value (json, avro) is: ``refuse`` puts it into quarantine,
            ``skip`` leaves it out, ``keep`` makes a row of nulls, and of the ``_`` columns.
        isolation: whether messages of transactions that are open or were aborted are read.
        schema_registry: the URL of a Confluent schema registry, whose ids the Avro messages begin with.
        avro_schema: the JSON text of the schema of Avro messages without such ids.
        group: the client's consumer group, for the broker's access rules; it is never joined.
        per_piece: offsets that one piece spans at most.
        timeout: seconds that a broker (or the registry) may give nothing at all.
        settings: of librdkafka, such as ``security.protocol``; what is secret by reference:
            ``{"sasl.password": "${env:KAFKA_PASSWORD}"}``.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    kind: Literal["kafka"] = "kafka"
    servers: str = Field(min_length=1)
    topic: str | tuple[str, ...]
    format: Literal["json", "avro", "raw"] = "json"
    start: Literal["earliest", "latest"] | AwareDatetime = "earliest"
    on_gap: Literal["fail", "accept"] = "fail"
    tombstones: Literal["refuse", "skip", "keep"] = "refuse"
    isolation: Literal["read_committed", "read_uncommitted"] = "read_committed"
    schema_registry: str | None = None
    avro_schema: str | None = None
    group: str = "manta"
    per_piece: int = Field(default=100_000, ge=1)
    timeout: float = Field(default=30.0, gt=0)
    settings: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @field_validator("settings")
    @classmethod
    def _settings_are_for_the_connection(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if taken := sorted(OWN & set(settings)):
            raise ValueError(
                f"{', '.join(taken)} is not a setting here: Kafka(…) has fields for what it reads"
            )
        for name, value in settings.items():
            if SECRET_SETTING.search(name) and not secrets.REFERENCE.fullmatch(str(value)):
                raise ValueError(f"{name} is a secret: give its name, '${{env:NAME}}', not its value")
        return settings

    @model_validator(mode="after")
    def _can_be_read(self) -> Kafka:
        if not self.topics():
            raise ValueError("name a topic")
        for name in self.topics():
            try:
                re.compile(name if name.startswith("^") else "")
            except re.error as error:
                raise ValueError(f"{name!r} is no pattern: {error}") from None
        given = [name for name in ("schema_registry", "avro_schema") if getattr(self, name) is not None]
        if len(given) != (self.format == "avro"):
            raise ValueError("format='avro' needs either schema_registry or avro_schema; other formats, none")
        if self.schema_registry and secrets.plain_passwords(self.schema_registry):
            raise ValueError("the password in schema_registry is a secret: write '${env:NAME}' in its place")
        return self

    @property
    def incremental(self) -> bool:
        return True

    def topics(self) -> tuple[str, ...]:
        return (self.topic,) if isinstance(self.topic, str) else self.topic

    def asks_for(self, topic: str) -> bool:
        return any(
            re.fullmatch(name, topic) is not None if name.startswith("^") else name == topic
            for name in self.topics()
        )

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        from manta.connectors._kafka_broker import connection

        cursor: Cursor | None = ask.cursor
        with connection(self) as broker:
            partitions = broker.partitions()
            marks = broker.marks(partitions)
            begin = broker.begin(marks) if cursor is None else {}
        held = {name: own for name, own in (cursor or {}).items() if self.asks_for(name)}
        spans, after = plan(None if cursor is None else held, marks, begin, self.on_gap, self.per_piece)
        # What other topics had, were they asked for before, stays.
        yield Reading(spans, _token(spans, after), cursor={**(cursor or {}), **after})

    def read(self, piece: Span, ask: Ask) -> Iterator[Rows]:
        from manta.connectors._kafka_broker import connection
        from manta.connectors._kafka_messages import Decoder

        decoder = Decoder(self, ask)
        with connection(self) as broker:
            for messages in broker.messages(piece):
                yield decoder.rows(messages)


# --- what to read: a decision -------------------------------------------------------------------------


def plan(
    cursor: Cursor | None,
    marks: Mapping[Partition, Mark],
    begin: Mapping[Partition, int],
    on_gap: Literal["fail", "accept"] = "fail",
    per_piece: int = 100_000,
) -> tuple[list[Span], dict[str, dict[str, int]]]:
    """What to read of the partitions there are, and the cursor after it.

    Args:
        cursor: the next offset of each partition read before; None before the first reading.
        begin: where a partition begins that the cursor does not have, if not at the first that is kept.

    Raises:
        SourceUnreadable: messages between the cursor and what is kept are gone, and this is not accepted.
    """
    spans: list[Span] = []
    after: dict[str, dict[str, int]] = {}
    gaps: list[str] = []
    for (topic, partition), mark in sorted(marks.items()):
        start = (cursor or {}).get(topic, {}).get(str(partition))
        if start is None:
            start = max(mark.low, begin.get((topic, partition), mark.low))
        elif start < mark.low:
            gaps.append(
                f"{topic}/{partition}: offsets {start} to {mark.low - 1} ({mark.low - start:,}) were deleted "
                "before they were read (retention)"
            )
            start = mark.low
        elif start > mark.high:
            gaps.append(
                f"{topic}/{partition}: offset {start} comes next, but the partition ends at {mark.high} (the "
                "topic was made anew, or has lost messages)"
            )
            start = mark.low
        # A transaction may have been opened below it since messages of open ones were read.
        stop = max(start, mark.end)
        spans += [
            Span(topic, partition, at, min(at + per_piece, stop)) for at in range(start, stop, per_piece)
        ]
        after.setdefault(topic, {})[str(partition)] = stop
    gaps += [
        f"{topic}/{partition}: is gone"
        for topic, own in (cursor or {}).items()
        for partition in own
        if (topic, int(partition)) not in marks
    ]
    if gaps:
        told = "; ".join(gaps[:SHOWN]) + (f"; and {len(gaps) - SHOWN} more" if len(gaps) > SHOWN else "")
        if on_gap == "fail":
            raise SourceUnreadable(f"messages are missing: {told}", hint=GAP_HINT)
        logger.warning("a gap is accepted: %s", told)
    return spans, after


GAP_HINT = (
    "if nobody can bring them back, Kafka(on_gap='accept') goes on with what there is; so that it does not "
    "happen again, run the ingest more often than the topic's retention.ms and retention.bytes"
)


def _token(spans: Iterable[Span], after: Cursor) -> str:
    return hashlib.sha256(repr((list(spans), after)).encode()).hexdigest()[:16]
