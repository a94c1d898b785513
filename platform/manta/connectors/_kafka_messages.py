"""Messages become rows: JSON, Avro or just bytes, with the columns that Kafka itself knows.

What cannot be decoded is a broken row with its offset, never an error: one bad message must not stop a topic.
"""

from __future__ import annotations

import base64
import io
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl
import pyarrow as pa

from manta import secrets
from manta.connectors.formats.jsonl import json_problem, json_rows
from manta.connectors.kafka import Kafka
from manta.definitions.sources import Ask, Broken, Rows, driver
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    from confluent_kafka import Message

TEXT_SHOWN = 100_000  # bytes of a broken message that the quarantine keeps
MAGIC = 0  # the first byte of what a schema registry's clients write; then its id, in four


class Values(NamedTuple):
    """What became of values: the columns of the good ones, in order, what is wrong with the others by their
    index, and the names that the good ones have."""

    frame: pl.DataFrame
    broken: dict[int, tuple[str, str]]  # → reason, rule
    names: set[str]


class Decoder:
    """Makes rows of the messages of one source."""

    def __init__(self, source: Kafka, ask: Ask) -> None:
        self._source = source
        self._wanted = ask.columns
        self._first = ask.cursor is None
        raw = source.format == "raw"
        self._meta: dict[str, tuple[pl.DataType, Callable[[Message], Any]]] = {
            "_key": (pl.Binary(), _key) if raw else (pl.String(), _text_key),
            "_topic": (pl.String(), lambda message: message.topic()),
            "_partition": (pl.Int64(), lambda message: message.partition()),
            "_offset": (pl.Int64(), lambda message: message.offset()),
            "_timestamp": (pl.Datetime("ms", "UTC"), _timestamp),
        }
        if raw:
            self._meta["_value"] = (pl.Binary(), lambda message: message.value())
        self._in_value = [name for name in ask.columns if name not in self._meta]
        self._avro = AvroSchemas(source) if source.format == "avro" else None

    def rows(self, messages: Sequence[Message]) -> Rows:
        """Consecutive messages of a partition."""
        raw = self._source.format == "raw"
        if self._source.tombstones == "skip" and not raw:
            messages = [message for message in messages if message.value() is not None]
        broken: dict[int, tuple[str, str]] = {}
        values: dict[int, bytes] = {}
        for index, message in enumerate(messages):
            value = message.value()
            if "_key" in self._wanted and not raw and not _is_text(message.key()):
                broken[index] = ("_key: the key is not text", "key is not text")
            elif value is not None and not raw:
                values[index] = value
            elif not raw and self._source.tombstones == "refuse":
                broken[index] = ("the message has no value (a tombstone)", "tombstone")
        decoded, places = self._decoded(list(values.values())), list(values)
        broken |= {places[at]: why for at, why in decoded.broken.items()}
        good = [index for index in range(len(messages)) if index not in broken]
        row_of = {index: row for row, index in enumerate(index for index in places if index not in broken)}
        order = pl.Series([row_of.get(index) for index in good], dtype=pl.UInt32)
        columns = {column.name: column.gather(order) for column in decoded.frame}
        kept = [messages[index] for index in good]
        for name, (kind, read) in self._meta.items():
            if name in self._wanted:
                columns[name] = pl.Series(name, [read(message) for message in kept], dtype=kind)
        return Rows(
            height=len(messages),
            values=pl.DataFrame({name: columns[name] for name in self._wanted if name in columns}),
            broken=[
                Broken(index, *broken[index], _shown(messages[index].value())) for index in sorted(broken)
            ],
            columns=self._columns(decoded, bool(values)),
            numbers=[int(message.offset() or 0) for message in messages],
        )

    def _decoded(self, values: list[bytes]) -> Values:
        if self._source.format == "json":
            return json_values(values, self._in_value)
        if self._avro is not None:
            return self._avro.values(values, self._in_value)
        return Values(pl.DataFrame(), {}, set())

    def _columns(self, decoded: Values, any_value: bool) -> list[str]:
        """The columns that the source has. Messages need not have all: that none has one is a mistake in the
        contract when the topic is read for the first time, and just how it is later on."""
        if self._source.format != "raw" and (not self._first or not any_value):
            return [*self._meta, *self._in_value]
        return [*self._meta, *sorted(decoded.names)]


# --- JSON ---------------------------------------------------------------------------------------------


def json_values(values: Sequence[bytes], wanted: Sequence[str]) -> Values:
    """Objects; nested values as JSON text, as the format jsonl gives them."""
    broken: dict[int, tuple[str, str]] = {}
    lines: dict[int, bytes] = {}
    for index, value in enumerate(values):
        # What is read line by line must be in one: outside of texts a line's end is just space.
        if b"\n" in value or not value or value.isspace():
            problem = json_problem(value, "message")
            if problem is not None:
                broken[index] = (problem, "not a JSON object")
                continue
            value = value.replace(b"\n", b" ")
        lines[index] = value
    found = json_rows(list(lines.values()), wanted, "message")
    places = list(lines)
    broken |= {places[row.row]: (row.reason, row.rule) for row in found.broken}
    return Values(found.values, broken, set(found.columns))


# --- Avro ---------------------------------------------------------------------------------------------


class AvroSchemas:
    """Decodes Avro, each message by the schema it was written with."""

    def __init__(self, source: Kafka) -> None:
        self._fastavro = driver("fastavro", "kafka")
        self._source = source
        self._known: dict[int, Any] = {}  # id → schema, or why there is none
        self._given: Any = None
        if source.avro_schema is not None:
            try:
                self._given = self._fastavro.parse_schema(json.loads(source.avro_schema))
            except Exception as error:  # fastavro has no base of its errors
                raise SourceUnreadable(
                    f"avro_schema is not an Avro schema: {error}", hint="correct it in Kafka(…)"
                ) from error

    def values(self, values: Sequence[bytes], wanted: Sequence[str]) -> Values:
        rows: list[Mapping[str, Any]] = []
        names: set[str] = set()
        broken: dict[int, tuple[str, str]] = {}
        for index, value in enumerate(values):
            try:
                row = self._row(value)
            except SourceUnreadable:
                raise
            except Exception as error:  # whatever damaged bytes make fastavro stumble over
                told = str(error) or type(error).__name__
                broken[index] = (f"the message is not of its Avro schema: {told}", "not Avro")
                continue
            rows.append(row)
            names.update(row)
        columns = {name: series([row.get(name) for row in rows]) for name in wanted}
        return Values(pl.DataFrame(columns), broken, names)

    def _row(self, value: bytes) -> Mapping[str, Any]:
        schema, start = self._given, 0
        if schema is None:
            if len(value) < 5 or value[0] != MAGIC:
                raise ValueError("it does not begin with the id of a schema")
            schema, start = self._by_id(int.from_bytes(value[1:5], "big")), 5
        stream = io.BytesIO(value)
        stream.seek(start)
        row = self._fastavro.schemaless_reader(stream, schema, None)
        if stream.tell() != len(value):
            raise ValueError(f"{len(value) - stream.tell()} bytes are left over")
        if not isinstance(row, dict):
            raise ValueError("it is not a record")
        return row

    def _by_id(self, number: int) -> Any:
        if number not in self._known:
            try:
                answer = self._ask(f"/schemas/ids/{number}")
                if answer.get("schemaType", "AVRO") != "AVRO":
                    raise ValueError(f"schema {number} is {answer['schemaType']}, not Avro")
                self._known[number] = self._parsed(answer, {})
            except ValueError as error:
                self._known[number] = error
        if isinstance(self._known[number], ValueError):
            raise self._known[number]
        return self._known[number]

    def _parsed(self, answer: Mapping[str, Any], named: dict[str, Any]) -> Any:
        for other in answer.get("references", []):
            self._parsed(self._ask(f"/subjects/{other['subject']}/versions/{other['version']}"), named)
        try:
            return self._fastavro.parse_schema(json.loads(answer["schema"]), named_schemas=named)
        except Exception as error:  # as above
            raise ValueError(f"the registry's schema cannot be read: {error}") from error

    def _ask(self, path: str) -> Any:
        """Raises:
        ValueError: the registry does not have it.
        SourceUnreadable: the registry cannot be asked.
        """
        import httpx

        url = secrets.resolve_url(self._source.schema_registry or "")
        where = secrets.without_passwords(self._source.schema_registry or "")
        try:
            answer = httpx.get(url.rstrip("/") + path, timeout=self._source.timeout, follow_redirects=True)
            if answer.status_code == 404:
                raise ValueError(f"the schema registry has no {path}")
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as error:
            told = f"answered {error.response.status_code}"
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            told = f"cannot be asked: {secrets.redactor.text(str(error))}"
        except json.JSONDecodeError:
            told = "answered no JSON"
        raise SourceUnreadable(
            f"the schema registry at {where} {told}",
            hint="see that it runs, and that the user in schema_registry may read its schemas",
        )


def series(values: list[Any]) -> pl.Series:
    """A column of what fastavro gives; as text where its messages disagree on the type."""
    values = [str(value) if isinstance(value, uuid.UUID) else value for value in values]
    try:
        return pl.Series(values=pl.from_arrow(pa.array(values)))
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pl.Series([_plain_text(value) for value in values], dtype=pl.String)


def _plain_text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, (Decimal, datetime)):
        return str(value)
    return json.dumps(value, default=_plain_text, ensure_ascii=False)


# --- what Kafka itself knows --------------------------------------------------------------------------


def _key(message: Message) -> bytes | None:
    return message.key()  # type: ignore[no-any-return]


def _text_key(message: Message) -> str | None:
    key = message.key()
    return None if key is None else key.decode()


def _is_text(key: bytes | None) -> bool:
    try:
        return key is None or key.decode() is not None
    except UnicodeDecodeError:
        return False


def _timestamp(message: Message) -> int | None:
    kind, milliseconds = message.timestamp()
    return milliseconds if kind else None  # 0: TIMESTAMP_NOT_AVAILABLE


def _shown(value: bytes | None) -> str:
    """The message for the quarantine: as text, or base64 where it is none, so that nothing of it is lost."""
    if value is None:
        return ""
    cut = value[:TEXT_SHOWN]
    try:
        return cut.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(cut).decode()
