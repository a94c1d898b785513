"""Looking features up: what a request asks for, read by a manifest, as Feast's server would answer it."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from manta.errors import NotFound, RequestInvalid
from manta.features.catalog import ANONYMOUS, Catalog
from manta.features.compiled import service_of
from manta.features.online import Looked, OnlineReader, Status
from manta.features.stores import OnlineStore
from manta.serving.lookup import messages
from manta.serving.lookup.messages import GetOnlineFeatures, Names, Vector

ROWS_ON_THE_LOOP = 512  # more than these are read in a thread, so that others do not wait for them
READINGS_KEPT = 256
AT = "event_timestamp"


class Reading:
    """What one list of features, or one service, takes to read. ``readers``: of two features with one name,
    which Feast allows in a list with full names, each needs a reader of its own."""

    def __init__(self, manifests: Sequence[dict[str, Any]], name: str, store: OnlineStore) -> None:
        self.readers = [OnlineReader(manifest, name, store) for manifest in manifests]
        services = [service_of(manifest, name) for manifest in manifests]
        self._keys = {key: kind for service in services for key, kind in service.join_keys.items()}
        self._request = {key: kind for reader in self.readers for key, kind in reader.request_fields.items()}
        self._kinds = {**self._keys, **self._request}
        self.views = [[view for view, _ in service.features] for service in services]
        asked_at = [name for name, kind in self._request.items() if kind == "timestamp"]
        self._asked_at = asked_at[0] if len(asked_at) == 1 else AT

    def columns(
        self, entities: dict[str, list[Any]], rows: int
    ) -> tuple[dict[str, list[Any]], list[datetime]]:
        """What the readers take, and for when each row is asked: the request field that is a time, when there
        is one only, as endpoints have it; ``event_timestamp``, when it is given; else now.

        Raises:
            RequestInvalid: a column is missing, or holds a value of another type.
        """
        found = {}
        for name, kind in self._kinds.items():
            if name not in entities:
                what = "request field" if name in self._request else "join key"
                raise RequestInvalid(
                    f"entities: the {what} {name!r} is missing",
                    hint=f"give {', '.join(self._kinds)}",
                    fields=[name],
                )
            column = entities[name]
            found[name] = _typed(name, column, kind) if kind in ("timestamp", "bytes") else column
        now = datetime.now(UTC)
        asked = self._asked_at
        if asked in found:
            at = found[asked]
        elif asked in entities:
            at = _typed(asked, entities[asked], "timestamp")
        else:
            return found, [now] * rows
        return found, [now if each is None else each for each in at]

    async def read(self, columns: dict[str, list[Any]], at: list[datetime]) -> list[Looked]:
        try:
            if len(at) > ROWS_ON_THE_LOOP:
                return [await asyncio.to_thread(reader.read, columns, at) for reader in self.readers]
            return [await reader.read_async(columns, at) for reader in self.readers]
        except RequestInvalid as error:
            for name, kind in self._kinds.items():
                _require(name, columns[name], kind)
            raise error

    def answer(self, body: GetOnlineFeatures, looked: Sequence[Looked], rows: int) -> bytes:
        """The body of the answer: the join keys, as given, then the features in the order asked for."""
        names = [key for key in body.entities if key in self._keys]
        results = [
            Vector(body.entities[key], messages.all_present(rows), messages.no_times(rows)) for key in names
        ]
        for reader, views, found in zip(self.readers, self.views, looked, strict=True):
            fresh = {view: messages.times(at) for view, at in found.fresh_as_of.items()}
            for (name, kind), view in zip(reader.features.items(), views, strict=True):
                values = found.values[name]
                results.append(
                    Vector(
                        messages.answered(values, kind),
                        _statuses(found, view, name, rows),
                        fresh[view] if view in fresh else messages.no_times(rows),
                    )
                )
                names.append(f"{view}__{name}" if body.full_feature_names else name)
        about = Names(names)
        if body.include_feature_view_version_metadata:
            views_read = dict.fromkeys(view for found in looked for view in found.status)
            about.feature_view_metadata = [{"name": view} for view in views_read]
        return messages.encode(messages.Answer(about, results))


class Readings:
    """The readings of one catalog, each made when first asked for; the least asked for are forgotten."""

    def __init__(self, catalog: Catalog, services: Sequence[str], store: OnlineStore) -> None:
        self._catalog = catalog
        self._store = store
        self._services = services
        self._kept: OrderedDict[Any, Reading] = OrderedDict()

    def of(self, body: GetOnlineFeatures) -> Reading:
        """Raises:
        RequestInvalid: it asks for nothing, or for features that cannot be told apart.
        NotFound: for what is not registered.
        """
        # Feast's own server takes the service, when both are given.
        key = body.feature_service or (body.full_feature_names, *(body.features or ()))
        kept = self._kept.get(key)
        if kept is None:
            kept = self._make(body)
            self._kept[key] = kept
            while len(self._kept) > READINGS_KEPT:
                self._kept.popitem(last=False)
        else:
            self._kept.move_to_end(key)
        return kept

    def _make(self, body: GetOnlineFeatures) -> Reading:
        name = body.feature_service
        if name:
            if self._services and name not in self._services:
                raise NotFound(
                    f"this door does not answer for the feature service {name!r:.80}",
                    hint=f"it answers for {', '.join(self._services)}",
                )
            return Reading([self._catalog.service(name)], name, self._store)
        if not body.features:
            raise RequestInvalid(
                "neither feature_service nor features is given",
                hint='give "feature_service": NAME or "features": ["view:feature", …]',
                fields=["features"],
            )
        layers = _layers([_reference(text) for text in body.features])
        if len(layers) > 1 and not body.full_feature_names:
            twice = sorted({feature for layer in layers[1:] for _, feature in layer})
            raise RequestInvalid(
                f"several of the features are named {', '.join(twice)}",
                hint='ask with "full_feature_names": true',
                fields=["features"],
            )
        return Reading([self._catalog.listed(layer) for layer in layers], ANONYMOUS, self._store)


def _reference(text: str) -> tuple[str, str]:
    view, colon, feature = text.partition(":")
    if not (view and colon and feature):
        raise RequestInvalid(f"features: {text!r:.80} is not view:feature", hint="", fields=["features"])
    return view, feature


def _layers(features: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The features once each, divided so that in none of the lists two have one name."""
    layers: list[dict[str, str]] = []
    for view, feature in dict.fromkeys(features):
        layer = next((each for each in layers if feature not in each), None)
        if layer is None:
            layers.append(layer := {})
        layer[feature] = view
    return [[(view, feature) for feature, view in layer.items()] for layer in layers]


def _statuses(found: Looked, view: str, name: str, rows: int) -> Any:
    status = found.status.get(view)
    if status is None:  # an on-demand view: computed, whatever it was computed from
        return messages.all_present(rows)
    values = found.values[name]
    if None not in values and view not in found.stale:  # in whose place a default may stand
        return messages.all_present(rows)
    nulls = found.nulls.get((view, name), ())
    missing = Status.NOT_FOUND  # other features of the view are there
    return [
        missing if value is None and each is Status.PRESENT and row not in nulls else each
        for row, (value, each) in enumerate(zip(values, status, strict=True))
    ]


def _typed(name: str, column: list[Any], kind: str) -> list[Any]:
    try:
        return [messages.given(value, kind) for value in column]
    except (ValueError, OverflowError, OSError) as error:
        raise _wrong(name, kind, str(error)) from None


_ACCEPTED: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "int32": (int,),
    "int64": (int,),
    "float32": (int, float),
    "float64": (int, float),
    "bool": (bool,),
}


def _require(name: str, column: Sequence[Any], kind: str) -> None:
    """Name the value that a reader has refused.

    Raises:
        RequestInvalid: a value is not of the column's type.
    """
    types = _ACCEPTED.get(kind)
    for value in column:
        if value is None or types is None:
            continue
        if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
            raise _wrong(name, kind, f"{value!r:.80}")
        if kind.startswith("int") and not -(2 ** (int(kind[3:]) - 1)) <= value < 2 ** (int(kind[3:]) - 1):
            raise _wrong(name, kind, f"{value!r:.80}")


def _wrong(name: str, kind: str, said: str) -> RequestInvalid:
    return RequestInvalid(
        f"entities: {name!r:.80} takes values of type {kind}, not {said}",
        hint="times are seconds since 1970, or ISO 8601; bytes are base64"
        if kind in ("timestamp", "bytes")
        else "",
        fields=[name[:80]],
    )
