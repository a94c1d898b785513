"""The bodies of Feast's feature server, as it takes and gives them.

Where Feast's server ignores what it does not know of a body, so does this. What it answers with differs from
Feast's in one thing: a value older than its view's TTL is not given, and has the status OUTSIDE_MAX_AGE.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite, isnan
from typing import Any, Literal, TypeVar

import msgspec

from manta.errors import RequestInvalid

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)  # how Feast writes that there is no event time


class GetOnlineFeatures(msgspec.Struct):
    """``entities``: a column of values for each join key and request field, all of one length."""

    entities: dict[str, list[Any]]
    features: list[str] | None = None
    feature_service: str | None = None
    full_feature_names: bool = False
    include_feature_view_version_metadata: bool = False


class Push(msgspec.Struct):
    push_source_name: str
    df: dict[str, list[Any]]
    to: Literal["online", "offline", "online_and_offline"] = "online"


class WriteToOnlineStore(msgspec.Struct):
    feature_view_name: str
    df: dict[str, list[Any]]


class Vector(msgspec.Struct):
    """One feature, or one join key: a value, a status and an event time for each row."""

    values: Sequence[Any]
    statuses: Any
    event_timestamps: Any


class Names(msgspec.Struct, omit_defaults=True):
    feature_names: list[str]
    feature_view_metadata: list[dict[str, Any]] = []


class Answer(msgspec.Struct):
    metadata: Names
    results: list[Vector]


_DECODERS: dict[type, Any] = {
    kind: msgspec.json.Decoder(kind) for kind in (GetOnlineFeatures, Push, WriteToOnlineStore)
}
_ENCODER = msgspec.json.Encoder()
encode = _ENCODER.encode
Body = TypeVar("Body", bound=msgspec.Struct)


def decode(content: bytes, kind: type[Body]) -> Body:
    """Raises:
    RequestInvalid: it is not JSON, or not of that form; the message names the field.
    """
    try:
        body: Body = _DECODERS[kind].decode(content)
    except msgspec.ValidationError as error:
        raise RequestInvalid(f"the body: {error}", hint=f"it has {_form(kind)}") from None
    except (ValueError, RecursionError) as error:  # ValueError: msgspec's own, and text that is not UTF-8
        raise RequestInvalid(f"the body is not JSON: {error}", hint=f"it has {_form(kind)}") from None
    return body


def _form(kind: type[msgspec.Struct]) -> str:
    return ", ".join(kind.__struct_fields__)


def rows_in(columns: dict[str, list[Any]], most: int, where: str) -> int:
    """How many rows the columns have.

    Raises:
        RequestInvalid: there are no columns, they are of several lengths, or too long.
    """
    lengths = {len(column) for column in columns.values()}
    if len(lengths) != 1:
        said = ", ".join(f"{name!r:.80} {len(column)}" for name, column in columns.items())
        what = f"columns of several lengths: {said}" if lengths else "no columns"
        raise RequestInvalid(f"{where} has {what}", hint="give each row a value in every column")
    (rows,) = lengths
    if rows > most:
        raise RequestInvalid(
            f"{where} has {rows} rows, more than the {most} that are taken at once",
            hint="send them in several requests, or raise max_rows of the Lookup",
            fields=[where],
        )
    return rows


# --- values -------------------------------------------------------------------------------------------


def given(value: Any, kind: str) -> Any:
    """A value of a request as the online reader takes it: JSON has neither times nor bytes.

    Raises:
        ValueError: it is not of that type.
    """
    if value is None or kind not in ("timestamp", "bytes"):
        return value
    if kind == "bytes":
        return b64decode(value, validate=True) if isinstance(value, str) else value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        at = datetime.fromisoformat(value)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    raise ValueError(f"{value!r:.80} is not a time")


def answered(values: Sequence[Any], kind: str) -> Sequence[Any]:
    """A feature's values as JSON has them: instants are seconds since 1970, what is no number is named."""
    item = kind[5:-1] if kind.startswith("list[") else ""
    if item in ("timestamp", "float64"):
        return [None if value is None else answered(value, item) for value in values]
    if kind == "timestamp":
        return [None if value is None else int(value.timestamp()) for value in values]
    # Nulls aside, a sum is finite if all that was added is, save for one that overflows.
    if kind == "float64" and not isfinite(sum(filter(None, values))):
        return [_number(value) for value in values]
    return values


def _number(value: float | None) -> float | str | None:
    if value is None or isfinite(value):
        return value
    return "NaN" if isnan(value) else "Infinity" if value > 0 else "-Infinity"


@lru_cache(1024)
def all_present(rows: int) -> msgspec.Raw:
    return msgspec.Raw(encode(["PRESENT"] * rows))


@lru_cache(1024)
def no_times(rows: int) -> msgspec.Raw:
    return msgspec.Raw(encode([EPOCH] * rows))


def times(at: Iterable[datetime | None]) -> msgspec.Raw:
    return msgspec.Raw(encode([EPOCH if each is None else each for each in at]))
