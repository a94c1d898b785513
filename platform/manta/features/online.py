"""Online features, read by a manifest: no registry, no Feast, no protobuf.

A replica keeps one reader. A request is one query for all views and rows; then the on-demand functions are
called, once each, for all rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import Any

from manta.definitions import load_function
from manta.errors import RequestInvalid
from manta.features.compiled import View, service_of
from manta.features.on_demand import compute
from manta.features.stale import refuse, stale_rows
from manta.features.stores import Held, OnlineStore, open_store_of
from manta.features.wire import decode_value
from manta.features.wire_columns import column_decoder, each_once, keys_encoder

# The types that callers tell apart; numbers are Python's, whatever their width in the store.
_CALLERS_TYPE = {"int32": "int64", "float32": "float64"}
_ACCEPTS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "bytes": (bytes,),
    "int64": (int,),
    "float64": (float, int),
    "bool": (bool,),
    "timestamp": (datetime,),
}


class Status(StrEnum):
    """What was found of a view, for one row."""

    PRESENT = "PRESENT"
    NOT_FOUND = "NOT_FOUND"
    OUTSIDE_MAX_AGE = "OUTSIDE_MAX_AGE"


_PRESENT, _NOT_FOUND, _OUTSIDE_MAX_AGE = Status  # looking into the class takes three times as long


@dataclass(frozen=True, slots=True)
class Looked:
    """Columns of one length, a value per row asked for.

    ``values``: every feature of the service, None where missing. By view: ``status``, and ``fresh_as_of``,
    the event time of the oldest feature that was used (None when none was). ``stale``: by view that is stale
    in some row, whether it is in each; only where the service has a contract of staleness. ``nulls``: (view,
    feature) → the rows for which the store holds it without a value, of whatever age.
    """

    values: dict[str, list[Any]]
    fresh_as_of: dict[str, list[datetime | None]]
    status: dict[str, list[Status]]
    stale: dict[str, list[bool]] = field(default_factory=dict)
    nulls: dict[tuple[str, str], set[int]] = field(default_factory=dict)


class OnlineReader:
    """Reads the features of one service. Safe to use from several threads.

    Making it imports the on-demand functions from the project folder, which must be on `sys.path`. Several
    readers may share a ``store``: that of the manifest, when it is open already.

    Attributes:
        join_keys: the columns that name what a row is about.
        request_fields: further columns that a request brings, with their types.
        features: what is read, in the service's order, with types. Types are `string`, `int64`, `float64`,
            `bool`, `timestamp`, `bytes`, or `list[…]` of one.

    Raises:
        NotFound: ``manifest`` describes another service.
        FeaturesUnavailable: it is of another format, or names a kind of store that manta does not read.
        DefinitionInvalid: an on-demand function is not in the project.
    """

    def __init__(self, manifest: dict[str, Any], service: str, store: OnlineStore | None = None) -> None:
        self._service = service_of(manifest, service)
        self._views = [_ViewReader(view) for view in self._service.views]
        self._rows = (store or open_store_of(self._service.store)).rows(self._service.views)
        self._on_demand = [(view, load_function(view.function)) for view in self._service.on_demand]
        self._places = [(name, f"{view}__{name}") for view, name in self._service.features]
        self.join_keys: tuple[str, ...] = tuple(self._service.join_keys)
        self.request_fields = {name: _caller(kind) for name, kind in self._service.request.items()}
        self.features = {name: _caller(kind) for name, kind in self._service.types.items()}

    def read(self, columns: Mapping[str, Sequence[Any]], at: Sequence[datetime]) -> Looked:
        """The newest values for each row of ``columns``.

        ``columns`` has every join key and request field, None where unknown. A value is left out when its
        event time is before the row's ``at`` minus the view's TTL: the lower bound of the offline join.
        Naive times are UTC.

        Raises:
            RequestInvalid: a column is missing, of another length, or holds a value of another type.
            FeaturesUnavailable: the store cannot be read.
            FeaturesStale: a view is older than the service's contract allows, and that refuses.
            DefinitionInvalid: an on-demand function failed.
        """
        question = self._question(columns, at)
        return self._answered(question, self._rows.fetch(question.asked))

    async def read_async(self, columns: Mapping[str, Sequence[Any]], at: Sequence[datetime]) -> Looked:
        """As :meth:`read`, in an event loop."""
        question = self._question(columns, at)
        return self._answered(question, await self._rows.fetch_async(question.asked))

    def _question(self, columns: Mapping[str, Sequence[Any]], at: Sequence[datetime]) -> _Question:
        known = self._known(columns, len(at))
        keys = [view.keys_of(known, len(at)) for view in self._views]
        return _Question(known, _micros(at), keys, [each_once(column) for column in keys])

    def _answered(self, question: _Question, held: list[Held]) -> Looked:
        known, at = question.known, question.at
        answers = [
            view.answer_one(what, at) if len(at) == 1 else view.answer(keys, what, at)
            for view, keys, what in zip(self._views, question.keys, held, strict=True)
        ]
        stale = self._stale(answers, at) if self._service.staleness else {}
        found: dict[str, list[Any]] = {}
        for answer in answers:
            found |= answer.values
        for demand, function in self._on_demand:
            computed = compute(demand, function, found, known, len(at))
            found |= {f"{demand.name}__{name}": values for name, values in computed.items()}
        return Looked(
            {name: found[place] for name, place in self._places},
            {answer.view: answer.fresh() for answer in answers},
            {answer.view: answer.status() for answer in answers},
            stale,
            {(answer.view, name): rows for answer in answers for name, rows in answer.nulls.items()},
        )

    def _stale(self, answers: Sequence[_Answer], at: Sequence[int]) -> dict[str, list[bool]]:
        """The views that are stale, with their defaults in place."""
        contract = self._service.staleness
        assert contract is not None
        found = {}
        for view, answer in zip(self._views, answers, strict=True):
            rows = (
                stale_rows(contract, answer.oldest, answer.expired, at) if view.name in contract.views else []
            )
            if any(rows):
                found[view.name] = rows
                if contract.then == "default":
                    answer.values = view.defaulted(answer.values, contract.defaults, rows)
        if contract.then == "refuse":
            refuse(self._service.name, contract, found)
        return found

    def _known(self, columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, Sequence[Any]]:
        """The join keys and request fields, checked; the fields as a training set has them."""
        for name in (*self.join_keys, *self.request_fields):
            column = columns.get(name)
            if column is None:
                what = "request field" if name in self.request_fields else "join key"
                raise RequestInvalid(
                    f"the {what} {name!r} is missing",
                    hint=f"give {', '.join((*self.join_keys, *self.request_fields))} for each row",
                )
            if len(column) != rows:
                raise RequestInvalid(f"{name!r} has {len(column)} values for {rows} rows")
        known = {name: columns[name] for name in self.join_keys}
        for name, kind in self.request_fields.items():
            try:
                known[name] = [None if value is None else _field(kind, value) for value in columns[name]]
            except TypeError as error:
                raise RequestInvalid(
                    f"the request field {name!r} holds {error}", hint=f"it takes values of type {kind}"
                ) from None
        return known


def _field(kind: str, value: Any) -> Any:
    fits = isinstance(value, _ACCEPTS.get(kind, (list, tuple)))
    if not fits or (isinstance(value, bool) and kind != "bool"):
        raise TypeError(repr(value))
    if kind == "timestamp":
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    return float(value) if kind == "float64" else value


@dataclass(slots=True)
class _Question:
    """A request as the store is asked it. ``at``: microseconds; for each view, ``keys``: the entity key of
    each row, None where a part is missing, and ``asked``: each of them once."""

    known: dict[str, Sequence[Any]]
    at: list[int]
    keys: list[list[bytes | None]]
    asked: list[list[bytes]]


class _ViewReader:
    """What reading one view takes that does not depend on the request."""

    def __init__(self, view: View) -> None:
        self.name = view.name
        self._ttl = round(view.ttl_seconds * 1e6)
        self._features = [
            (feature.name, f"{view.name}__{feature.name}", column_decoder(feature.type))
            for feature in view.features
        ]
        self._keys = view.keys
        self._encode = keys_encoder([(key.join_key, key.type) for key in view.keys])

    def keys_of(self, columns: Mapping[str, Sequence[Any]], rows: int) -> list[bytes | None]:
        """Raises:
        RequestInvalid: a key is not of its type.
        """
        try:
            return self._encode([columns[key.column] for key in self._keys], rows)
        except (TypeError, OverflowError) as error:
            types = ", ".join(f"{key.column} is {_caller(key.type)}" for key in self._keys)
            raise RequestInvalid(f"a join key of {self.name!r}: {error}", hint=types) from None

    def answer(self, keys: Sequence[bytes | None], held: Held, at: Sequence[int]) -> _Answer:
        """What is held, for rows with those keys that ask about those instants."""
        nothing = len(held.keys)  # the place of what is not there, behind all that is
        places: dict[bytes | None, int] = {key: place for place, key in enumerate(held.keys)}
        found = [places.get(key, nothing) for key in keys]
        answer = _Answer(self.name, [None] * len(keys), [False] * len(keys), {}, {})
        together = len(held.events) == 1
        used = self._in_time(found, held.events[0], at, answer) if together else found
        as_they_are = together and nothing == len(keys) and used == list(range(nothing))
        for number, (name, place, decode) in enumerate(self._features):
            values, whole = decode(held.values[number])
            if not whole:
                _note_nulls(answer.nulls, name, found, held.values[number], values)
            if not together:
                used = self._in_time(found, held.events[number], at, answer)
            if not as_they_are:
                values.append(None)
                values = [values[where] for where in used]
            answer.values[place] = values
        return answer

    def answer_one(self, held: Held, at: Sequence[int]) -> _Answer:
        """As :meth:`answer`, of one row. Most requests are: going by columns would take twice as long."""
        if len(held.events) > 1 or not held.keys:
            return self.answer(held.keys or [None], held, at)
        (event,) = held.events[0]
        expired = self._ttl > 0 and event is not None and event < at[0] - self._ttl
        values = [decode_value(data) for (data,) in held.values]
        nulls = {}
        if None in values:
            for (name, _, _), (data,), value in zip(self._features, held.values, values, strict=True):
                if value is None and data is not None:
                    nulls[name] = {0}
        if expired:
            values = [None] * len(values)
        columns = {place: [value] for (_, place, _), value in zip(self._features, values, strict=True)}
        return _Answer(self.name, [None if expired else event], [expired], columns, nulls)

    def _in_time(
        self, found: Sequence[int], events: Sequence[int | None], at: Sequence[int], answer: _Answer
    ) -> list[int]:
        """Where each row's value is, when that is not too old for it; notes which was used, and which not."""
        nothing, ttl = len(events), self._ttl
        used, oldest = list(found), answer.oldest
        for row, place in enumerate(found):
            event = events[place] if place != nothing else None
            if event is None:
                continue
            if ttl and event < at[row] - ttl:
                answer.expired[row] = True
                used[row] = nothing
                continue
            before = oldest[row]
            if before is None or event < before:
                oldest[row] = event
        return used

    def defaulted(
        self, values: Mapping[str, list[Any]], defaults: Mapping[str, Any], rows: Sequence[bool]
    ) -> dict[str, list[Any]]:
        """The same values, and in those rows the defaults."""
        return {
            place: [
                defaults.get(name) if old else held for held, old in zip(values[place], rows, strict=True)
            ]
            for name, place, _ in self._features
        }


@dataclass(slots=True)
class _Answer:
    """What has been found of one view. For each row, ``oldest``: the oldest event time that was used, and
    ``expired``: whether one was too old; ``values``: a column for each feature, by `view__name`."""

    view: str
    oldest: list[int | None]
    expired: list[bool]
    values: dict[str, list[Any]]
    nulls: dict[str, set[int]]

    def fresh(self) -> list[datetime | None]:
        return [_when(event) for event in self.oldest]

    def status(self) -> list[Status]:
        return [
            _PRESENT if event is not None else _OUTSIDE_MAX_AGE if expired else _NOT_FOUND
            for event, expired in zip(self.oldest, self.expired, strict=True)
        ]


def _note_nulls(
    nulls: dict[str, set[int]],
    name: str,
    found: Sequence[int],
    column: Sequence[bytes | None],
    values: Sequence[Any],
) -> None:
    """The rows for which the feature is held without a value."""
    without = {
        place
        for place, (data, value) in enumerate(zip(column, values, strict=True))
        if data is not None and value is None
    }
    if without:
        nulls[name] = {row for row, place in enumerate(found) if place in without}


@lru_cache(1024)
def _when(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros / 1e6, UTC)


def _micros(at: Sequence[datetime]) -> list[int]:
    """In microseconds since 1970 UTC; a naive time is UTC."""
    found, last, micros = [], None, 0
    for when in at:
        if when is not last:  # rows mostly ask about one instant
            last = when
            micros = round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e6)
        found.append(micros)
    return found


def _caller(kind: str) -> str:
    for width, plain in _CALLERS_TYPE.items():
        kind = kind.replace(width, plain)
    return kind
