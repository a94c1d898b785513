"""Online features, read by a manifest: no registry, no Feast, no protobuf.

A replica keeps one reader. A request is one query for all views and rows; then the on-demand functions are
called, once each, for all rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from manta.definitions import load_function
from manta.errors import RequestInvalid
from manta.features.compiled import View, service_of
from manta.features.on_demand import compute
from manta.features.stale import Staleness, refuse, stale_rows
from manta.features.stores import OnlineStore, Row, open_store_of
from manta.features.wire import decode_value, key_encoder

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
        return self._answered(question, self._rows.fetch(question.keys))

    async def read_async(self, columns: Mapping[str, Sequence[Any]], at: Sequence[datetime]) -> Looked:
        """As :meth:`read`, in an event loop."""
        question = self._question(columns, at)
        return self._answered(question, await self._rows.fetch_async(question.keys))

    def _question(self, columns: Mapping[str, Sequence[Any]], at: Sequence[datetime]) -> _Question:
        known = self._known(columns, len(at))
        answers = [view.asked(known, len(at)) for view in self._views]
        instants = [
            round((when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() * 1e6) for when in at
        ]
        return _Question(known, instants, answers, [list(answer.rows_of) for answer in answers])

    def _answered(self, question: _Question, rows: Iterable[Row]) -> Looked:
        known, answers = question.known, question.answers
        held = [answer.held(question.at) for answer in answers]
        for place, key, name, value, event in rows:  # the hot loop: a call here is felt
            rows_of, columns, earliest, oldest, expired, nulls = held[place]
            column = columns.get(name)
            if column is None:
                continue  # of the view, but not of the service
            decoded = decode_value(value)
            if decoded is None:
                nulls.setdefault(name, set()).update(rows_of[key])
            for i in rows_of[key]:
                if earliest is not None and event < earliest[i]:
                    expired[i] = True
                    continue
                column[i] = decoded
                before = oldest[i]
                if before is None or event < before:
                    oldest[i] = event
        stale = self._stale(question) if self._service.staleness else {}
        found = {place: values for answer in answers for place, values in answer.values.items()}
        for demand, function in self._on_demand:
            answer = compute(demand, function, found, known, len(question.at))
            found |= {f"{demand.name}__{name}": values for name, values in answer.items()}
        values = {name: found[f"{view}__{name}"] for view, name in self._service.features}
        return Looked(
            values,
            {view.name: answer.fresh() for view, answer in zip(self._views, answers, strict=True)},
            {view.name: answer.status() for view, answer in zip(self._views, answers, strict=True)},
            stale,
            {
                (view.name, name): nulls
                for view, answer in zip(self._views, answers, strict=True)
                for name, nulls in answer.nulls.items()
            },
        )

    def _stale(self, question: _Question) -> dict[str, list[bool]]:
        """The views that are stale, with their defaults in place."""
        contract = self._service.staleness
        assert contract is not None
        found = {}
        for view, answer in zip(self._views, question.answers, strict=True):
            rows = answer.stale(contract, question.at) if view.name in contract.views else []
            if any(rows):
                found[view.name] = rows
                if contract.then == "default":
                    answer.default(contract.defaults, rows)
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


@dataclass(frozen=True, slots=True)
class _Question:
    """A request as the store is asked it. ``at``: microseconds; ``keys``: those of each view."""

    known: dict[str, Sequence[Any]]
    at: list[int]
    answers: list[_Answer]
    keys: list[list[bytes]]


_Held = tuple[
    dict[bytes, list[int]],
    dict[str, list[Any]],
    list[int] | None,
    list[int | None],
    list[bool],
    dict[str, set[int]],
]


class _ViewReader:
    """What reading one view takes that does not depend on the request."""

    def __init__(self, view: View) -> None:
        self.name = view.name
        self.ttl = round(view.ttl_seconds * 1e6)
        self.places = {feature.name: f"{view.name}__{feature.name}" for feature in view.features}
        self._keys = view.keys
        self._encode = key_encoder([(key.join_key, key.type) for key in view.keys])

    def asked(self, columns: Mapping[str, Sequence[Any]], rows: int) -> _Answer:
        """Raises:
        RequestInvalid: a key is not of its type.
        """
        parts = [columns[key.column] for key in self._keys]
        rows_of: dict[bytes, list[int]] = {}
        try:
            for i in range(rows):
                key = self._encode([part[i] for part in parts])
                if key is not None:
                    rows_of.setdefault(key, []).append(i)
        except (TypeError, OverflowError) as error:
            types = ", ".join(f"{key.column} is {_caller(key.type)}" for key in self._keys)
            raise RequestInvalid(f"a join key of {self.name!r}: {error}", hint=types) from None
        return _Answer(self, rows_of, rows)


class _Answer:
    """What has been found of one view so far. ``values``: a column for each feature, by `view__name`."""

    def __init__(self, view: _ViewReader, rows_of: dict[bytes, list[int]], rows: int) -> None:
        self.rows_of = rows_of
        self.values: dict[str, list[Any]] = {place: [None] * rows for place in view.places.values()}
        self._view = view
        self._oldest: list[int | None] = [None] * rows
        self._expired = [False] * rows
        self.nulls: dict[str, set[int]] = {}

    def held(self, at: list[int]) -> _Held:
        """What is filled in: the rows of each key, a column for each feature, the earliest event time that is
        still good for each row (None: any), the oldest that was used, whether one was too old, and the rows
        for which a feature is held without a value."""
        columns = {name: self.values[place] for name, place in self._view.places.items()}
        earliest = [instant - self._view.ttl for instant in at] if self._view.ttl else None
        return self.rows_of, columns, earliest, self._oldest, self._expired, self.nulls

    def stale(self, contract: Staleness, at: Sequence[int]) -> list[bool]:
        return stale_rows(contract, self._oldest, self._expired, at)

    def default(self, defaults: Mapping[str, Any], rows: Sequence[bool]) -> None:
        """In those rows, the defaults in place of the values."""
        for name, place in self._view.places.items():
            column, value = self.values[place], defaults.get(name)
            self.values[place] = [value if old else held for held, old in zip(column, rows, strict=True)]

    def fresh(self) -> list[datetime | None]:
        return [None if event is None else datetime.fromtimestamp(event / 1e6, UTC) for event in self._oldest]

    def status(self) -> list[Status]:
        return [
            Status.PRESENT if event is not None else Status.OUTSIDE_MAX_AGE if expired else Status.NOT_FOUND
            for event, expired in zip(self._oldest, self._expired, strict=True)
        ]


def _caller(kind: str) -> str:
    for width, plain in _CALLERS_TYPE.items():
        kind = kind.replace(width, plain)
    return kind
