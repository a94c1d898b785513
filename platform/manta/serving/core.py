"""The predict path, without Ray and without HTTP: keys or rows in, predictions out.

Everything that a prediction needs of a model version is one :class:`Loaded`; a replica swaps it as a whole,
so that no answer mixes two versions.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np

from manta.definitions import Endpoint
from manta.errors import FeaturesStale, ModelUnavailable, RequestInvalid
from manta.features.compiled import Service, read_manifest, service_of
from manta.features.online import Looked, OnlineReader
from manta.features.wire import item_type
from manta.models import package as packages
from manta.models.package import Package

Row = Mapping[str, Any]
THRESHOLD: float = Endpoint.model_fields["threshold"].default

# What JSON may hold for a field of each type, and how to name it to the caller.
ACCEPTED: dict[str, tuple[Any, str]] = {
    "string": ((str,), "a string"),
    "int32": ((int,), "a whole number"),
    "int64": ((int,), "a whole number"),
    "float32": ((int, float), "a number"),
    "float64": ((int, float), "a number"),
    "bool": ((bool,), "true or false"),
    "timestamp": ((str, datetime), "a time in ISO 8601, like 2013-12-31T18:00:00Z"),
}


class Output(NamedTuple):
    """A column of answers: its datatype in the Open Inference Protocol, and what each row has of it, () for
    one value."""

    datatype: str
    each: tuple[int, ...] = ()


def outputs(package: Package) -> dict[str, Output]:
    """What is answered, the model's own answer first."""
    if package.task == "regression":
        return {"prediction": Output("FP32")}
    if package.task == "multiclass":
        return {
            "probabilities": Output("FP32", (len(package.classes),)),
            "prediction": Output("BYTES"),
        }
    return {"probability": Output("FP32"), "prediction": Output("BOOL")}


@dataclass(frozen=True)
class Loaded:
    """A model version, ready to answer."""

    version: str
    digest: str
    package: Package
    service: Service
    reader: OnlineReader

    @property
    def asked_at(self) -> str | None:
        """The request field that says for when a prediction is asked: the only timestamp among them, if
        there is one only."""
        times = [name for name, kind in self.service.request.items() if kind == "timestamp"]
        return times[0] if len(times) == 1 else None

    @property
    def fields(self) -> dict[str, str]:
        """What a caller by keys must give, with its type."""
        return self.service.join_keys | self.service.request

    @property
    def example(self) -> dict[str, Any]:
        """A body that can be sent as it is."""
        kept = self.package.card.get("example")
        if isinstance(kept, dict) and set(kept) == set(self.fields):
            return {"keys": kept}
        made = {"string": "", "timestamp": "2026-01-01T00:00:00Z", "bool": False}
        return {"keys": {name: made.get(kind, 0) for name, kind in self.fields.items()}}


def load(endpoint: Endpoint, config: Mapping[str, str]) -> Loaded:
    """Load what ``config`` names (version, location, digest, manifest) and see that it answers.

    Raises:
        ModelUnavailable: the package is not there, is not what its digest says, takes features that the
            endpoint's service does not give, or has no probability to compare the endpoint's threshold with.
        FeaturesUnavailable: the manifest or the online store is not there.
    """
    manifest = read_manifest(config["manifest"])
    package = packages.load(config["location"], config["digest"])
    service = service_of(manifest, endpoint.features)
    foreign = sorted(set(package.inputs) - set(service.types))
    if foreign:
        raise ModelUnavailable(
            f"version {config['version']} takes features that {endpoint.features} does not give: "
            f"{', '.join(foreign)}",
            hint="train it with the endpoint's feature service",
        )
    if package.task != "binary" and endpoint.threshold != THRESHOLD:
        raise ModelUnavailable(
            f"version {config['version']} is a {package.task} model, and {endpoint.name} has a threshold of "
            f"{endpoint.threshold:g}, which is for one probability",
            hint="take threshold out of the endpoint's definition",
        )
    reader = OnlineReader(manifest, endpoint.features)
    loaded = Loaded(config["version"], config["digest"], package, service, reader)
    # Warms the session and the store's connections up, and fails here rather than at the first caller.
    with contextlib.suppress(FeaturesStale):
        by_keys(endpoint, loaded, [loaded.example["keys"]], show_features=False)
    return loaded


def by_keys(
    endpoint: Endpoint, loaded: Loaded, rows: Sequence[Row], *, show_features: bool
) -> list[dict[str, Any]]:
    """One prediction per row of entity keys and request fields. A feature given in a row overrides the
    look-up; a key that the store does not know has missing features. A prediction from values that are older
    than the feature service allows says so: ``stale`` names their views.

    Raises:
        RequestInvalid: a field is missing, unknown, or of the wrong type.
        FeaturesUnavailable: the online store does not answer.
        FeaturesStale: the values are older than the feature service allows, and it refuses.
    """
    values, looked = _looked_up(loaded, rows)
    predictions = _predict(endpoint, loaded, values)
    for view, stale in looked.stale.items():
        for number, old in enumerate(stale):
            if old:
                predictions[number].setdefault("stale", []).append(view)
    if show_features:
        for number, prediction in enumerate(predictions):
            prediction["features"] = {name: values[name][number] for name in loaded.service.types}
            prediction["status"] = {view: status[number] for view, status in looked.status.items()}
            prediction["fresh_as_of"] = {view: at[number] for view, at in looked.fresh_as_of.items()}
    return predictions


def by_rows(
    endpoint: Endpoint, loaded: Loaded, rows: Sequence[Row], *, show_features: bool
) -> list[dict[str, Any]]:
    """One prediction per row of feature values; null is a missing value. A vector is a list of numbers.

    Raises:
        RequestInvalid: a feature is missing, unknown, or of the wrong type; a vector of another length.
    """
    types = loaded.service.types
    _check(rows, needed=loaded.package.inputs, allowed=types)
    values = {
        name: [_value(row[name], name, types[name], number, rows) for number, row in enumerate(rows)]
        for name in loaded.package.inputs
    }
    predictions = _predict(endpoint, loaded, values)
    if show_features:
        for number, prediction in enumerate(predictions):
            prediction["features"] = {name: column[number] for name, column in values.items()}
    return predictions


def by_columns(
    endpoint: Endpoint, loaded: Loaded, columns: Mapping[str, Sequence[Any]]
) -> dict[str, np.ndarray]:
    """One prediction per row, as columns (:func:`outputs`): of feature values where the model's inputs are
    all there, else by keys.

    Args:
        columns: all of one length; None is a missing value.

    Raises:
        RequestInvalid, FeaturesUnavailable, FeaturesStale: as of :func:`by_rows` and :func:`by_keys`.
    """
    package = loaded.package
    if set(loaded.fields) <= set(columns) and not set(package.inputs) <= set(columns):
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        values: Mapping[str, Sequence[Any]] = dict.fromkeys(package.inputs, ())
        if rows:
            values, _ = _looked_up(loaded, rows)
    else:
        _check([columns], needed=package.inputs, allowed=loaded.service.types)
        values = columns
    return _answers(endpoint, package, values)


def too_many(rows: int, endpoint: Endpoint) -> RequestInvalid:
    return RequestInvalid(
        f"{rows} rows are more than the {endpoint.max_rows} this endpoint takes at once",
        hint="send them in several requests, or raise the endpoint's max_rows",
    )


def _looked_up(loaded: Loaded, rows: Sequence[Row]) -> tuple[dict[str, Sequence[Any]], Looked]:
    """The features of rows of keys, and what the look-up says of them besides.

    Raises:
        RequestInvalid, FeaturesUnavailable, FeaturesStale: as of :func:`by_keys`.
    """
    fields, types = loaded.fields, loaded.service.types
    _check(rows, needed=fields, allowed=types)
    columns = {
        name: [_value(row[name], name, kind, number, rows) for number, row in enumerate(rows)]
        for name, kind in fields.items()
    }
    looked = loaded.reader.read(columns, _asked_at(loaded, columns, rows))
    values: dict[str, Sequence[Any]] = dict(looked.values)
    for name in {name for row in rows for name in row} - set(fields):
        column = list(values[name])
        for number, row in enumerate(rows):
            if name in row:
                column[number] = _value(row[name], name, types[name], number, rows)
        values[name] = column
    return values, looked


def _answers(
    endpoint: Endpoint, package: Package, values: Mapping[str, Sequence[Any]]
) -> dict[str, np.ndarray]:
    """The columns that :func:`outputs` names. ``prediction`` is the answer itself: whether, which class, or
    what number; beside it what it is made from."""
    answers = package.predict({name: values[name] for name in package.inputs})
    if package.task == "regression":
        return {"prediction": answers}
    if package.task == "multiclass":
        classes = np.array(package.classes, dtype=object)
        return {"probabilities": answers, "prediction": classes[answers.argmax(axis=1)]}
    # In double precision: the threshold is not rounded to what a probability can be.
    return {"probability": answers, "prediction": answers.astype(np.float64) >= endpoint.threshold}


def _predict(endpoint: Endpoint, loaded: Loaded, values: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """:func:`_answers`, a row each; probabilities by the name of their class."""
    columns = {name: each.tolist() for name, each in _answers(endpoint, loaded.package, values).items()}
    if "probabilities" in columns:
        classes = loaded.package.classes
        columns["probabilities"] = [dict(zip(classes, row, strict=True)) for row in columns["probabilities"]]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _asked_at(
    loaded: Loaded, columns: Mapping[str, Sequence[Any]], rows: Sequence[Row]
) -> Sequence[datetime]:
    field = loaded.asked_at
    if field is None:
        return [datetime.now(UTC)] * len(rows)
    for number, at in enumerate(columns[field]):
        if at is None:
            raise _wrong(field, number, rows, f"must be {ACCEPTED['timestamp'][1]}, not null")
    return columns[field]


def _check(rows: Sequence[Row], *, needed: Mapping[str, str], allowed: Mapping[str, str]) -> None:
    known = set(needed) | set(allowed)
    for number, row in enumerate(rows):
        unknown = [name for name in row if name not in known]
        if unknown:
            near = difflib.get_close_matches(unknown[0], sorted(known), n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise _wrong(unknown[0], number, rows, f"is not known{meant}", needed)
        missing = [name for name in needed if name not in row]
        if missing:
            raise _wrong(missing[0], number, rows, "is missing", needed)


def _value(value: Any, name: str, kind: str, number: int, rows: Sequence[Row]) -> Any:
    """The value as features of that type are held; None is a missing value."""
    if value is None:
        return None
    if kind not in ACCEPTED:
        return _list(value, name, item_type(kind), number, rows)
    types, described = ACCEPTED[kind]
    if not isinstance(value, types) or (isinstance(value, bool) and kind != "bool"):
        raise _wrong(name, number, rows, f"must be {described}, not {value!r:.80}")
    if kind == "timestamp":
        try:
            at = value if isinstance(value, datetime) else datetime.fromisoformat(value)
            return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
        except (ValueError, OverflowError):
            raise _wrong(name, number, rows, f"must be {described}, not {value!r:.80}") from None
    if kind in ("int32", "int64"):
        bits = int(kind[3:]) - 1
        if not -(2**bits) <= value < 2**bits:
            raise _wrong(name, number, rows, f"must fit into {kind}, and {value!r:.80} does not")
    if kind in ("float32", "float64"):
        try:
            return float(value)
        except OverflowError:
            raise _wrong(name, number, rows, f"must fit into {kind}, and {value!r:.80} does not") from None
    return value


def _list(values: Any, name: str, item: str | None, number: int, rows: Sequence[Row]) -> list[Any]:
    if not isinstance(values, list):
        raise _wrong(name, number, rows, f"must be a list, not {values!r:.80}")
    if item is None:
        return values
    # Vectors may be long, and most hold numbers and nothing else.
    if item in ("float32", "float64") and set(map(type, values)) <= {float, int}:
        with contextlib.suppress(OverflowError):
            return list(map(float, values))
    return [_value(each, f"{name}[{at}]", item, number, rows) for at, each in enumerate(values)]


def _wrong(
    name: str, number: int, rows: Sequence[Row], what: str, needed: Mapping[str, str] | None = None
) -> RequestInvalid:
    where = f" of row {number}" if len(rows) > 1 else ""
    return RequestInvalid(
        f"{name!r:.80}{where} {what}",
        hint=f"give {', '.join(needed)}" if needed else "",
        fields=[name[:80]],
    )
