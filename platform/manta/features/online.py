"""Online features, read by a manifest: no registry, no Feast, no protobuf.

A replica keeps one reader. A request is one query for all views and rows; then the on-demand functions are
called, once each, for all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

from manta.definitions import load_function
from manta.errors import FeaturesUnavailable, RequestInvalid
from manta.features.compiled import View, service_of
from manta.features.on_demand import compute
from manta.features.online_sqlite import Row, SqliteRows
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
    the event time of the oldest feature that was used (None when none was).
    """

    values: dict[str, list[Any]]
    fresh_as_of: dict[str, list[datetime | None]]
    status: dict[str, list[Status]]


class Rows(Protocol):
    """The online tables of some views, as a reader uses them; one class for each kind of store."""

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> Iterable[Row]:
        """What is held under the keys of each table, in the order of the tables."""
        ...


STORES: dict[str, Callable[[dict[str, Any], Sequence[str]], Rows]] = {
    "sqlite": lambda store, tables: SqliteRows(store["path"], tables),
}


class OnlineReader:
    """Reads the features of one service. Safe to use from several threads.

    Making it imports the on-demand functions from the project folder, which must be on `sys.path`.

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

    def __init__(self, manifest: dict[str, Any], service: str) -> None:
        self._service = service_of(manifest, service)
        store = self._service.store
        if store["kind"] not in STORES:
            raise FeaturesUnavailable(
                f"manta does not read an online store of kind {store['kind']!r}",
                hint=f"it reads {', '.join(STORES)}",
            )
        self._views = [_ViewReader(view) for view in self._service.views]
        self._rows = STORES[store["kind"]](store, [view.table for view in self._service.views])
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
            DefinitionInvalid: an on-demand function failed.
        """
        rows = len(at)
        known = self._known(columns, rows)
        instants = [(when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() for when in at]
        answers = [view.asked(known, rows) for view in self._views]
        found = {place: values for answer in answers for place, values in answer.values.items()}
        for place, key, name, value, event in self._rows.fetch([list(each.rows_of) for each in answers]):
            answers[place].take(key, name, value, event, instants)
        for demand, function in self._on_demand:
            answer = compute(demand, function, found, known, rows)
            found |= {f"{demand.name}__{name}": values for name, values in answer.items()}
        values = {name: found[f"{view}__{name}"] for view, name in self._service.features}
        return Looked(
            values,
            {view.name: answer.fresh() for view, answer in zip(self._views, answers, strict=True)},
            {view.name: answer.status() for view, answer in zip(self._views, answers, strict=True)},
        )

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


class _ViewReader:
    """What reading one view takes that does not depend on the request."""

    def __init__(self, view: View) -> None:
        self.name = view.name
        self.ttl = view.ttl_seconds
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

    def take(self, key: bytes, name: str, value: bytes, event: int, at: Sequence[float]) -> None:
        """One value of the store, for all rows that asked for its key."""
        place = self._view.places.get(name)
        if place is None:
            return  # of the view, but not of the service
        column, ttl, decoded = self.values[place], self._view.ttl, decode_value(value)
        for i in self.rows_of[key]:
            if ttl and event < at[i] - ttl:
                self._expired[i] = True
                continue
            column[i] = decoded
            oldest = self._oldest[i]
            if oldest is None or event < oldest:
                self._oldest[i] = event

    def fresh(self) -> list[datetime | None]:
        return [None if event is None else datetime.fromtimestamp(event, UTC) for event in self._oldest]

    def status(self) -> list[Status]:
        return [
            Status.PRESENT if event is not None else Status.OUTSIDE_MAX_AGE if expired else Status.NOT_FOUND
            for event, expired in zip(self._oldest, self._expired, strict=True)
        ]


def _caller(kind: str) -> str:
    for width, plain in _CALLERS_TYPE.items():
        kind = kind.replace(width, plain)
    return kind
