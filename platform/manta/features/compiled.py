"""What a manifest says: all that reading a feature service takes, offline and online, without Feast.

A manifest is JSON, compiled when the repository is applied (`manifest.py`), kept under its digest and never
changed. It describes one service; the classes here are its parsed form.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from manta.errors import FeaturesUnavailable, NotFound
from manta.features.stale import Staleness

FORMAT = 1


@dataclass(frozen=True)
class Key:
    """A join key of a view. ``column`` is what callers name it: the join key, or what it is mapped to."""

    column: str
    join_key: str
    type: str


@dataclass(frozen=True)
class Feature:
    """A feature of a view: its name, its type (see `wire.py`) and the column of the dataset that holds it."""

    name: str
    type: str
    column: str


@dataclass(frozen=True)
class View:
    """A feature view as one service uses it.

    ``name`` is the view's, or its alias in the service; ``table`` is where Feast keeps it online.
    ``time`` None: its rows are known from always. ``ttl_seconds`` 0: they hold for ever. ``pushed``: others
    than the materialization write it online too. ``others``: features that the service does not use and that
    must be written with the others, in a store that keeps one event time for them all.
    """

    name: str
    table: str
    dataset: str
    time: str | None
    created: str | None
    ttl_seconds: float
    keys: tuple[Key, ...]
    features: tuple[Feature, ...]
    pushed: bool = False
    others: tuple[Feature, ...] = ()

    @property
    def whole(self) -> View:
        """The view with all the features that are written together."""
        return replace(self, features=self.features + self.others, others=())


@dataclass(frozen=True)
class OnDemand:
    """An on-demand view in Python mode.

    ``inputs``: features it reads, as (view, feature); ``request``: fields given with each request, by type;
    ``function``: `module:qualname`; ``code``: a hash of what it runs; ``singleton``: it takes one row at a
    time instead of columns.
    """

    name: str
    function: str
    code: str
    singleton: bool
    inputs: tuple[tuple[str, str], ...]
    request: dict[str, str]
    features: dict[str, str]


@dataclass(frozen=True)
class Service:
    """A feature service. ``features``: what it gives, as (view or on-demand view, feature), in order;
    ``staleness``: how old it may be online."""

    name: str
    project: str
    views: tuple[View, ...]
    on_demand: tuple[OnDemand, ...]
    features: tuple[tuple[str, str], ...]
    store: dict[str, Any] = field(default_factory=dict)
    staleness: Staleness | None = None

    @property
    def join_keys(self) -> dict[str, str]:
        """Column → type, over all views; a column that views type differently has the first one's."""
        found: dict[str, str] = {}
        for view in self.views:
            for key in view.keys:
                found.setdefault(key.column, key.type)
        return found

    @property
    def request(self) -> dict[str, str]:
        return {name: kind for view in self.on_demand for name, kind in view.request.items()}

    @property
    def types(self) -> dict[str, str]:
        """Feature → type, in the service's order."""
        of = {(view.name, feature.name): feature.type for view in self.views for feature in view.features}
        of |= {(view.name, name): kind for view in self.on_demand for name, kind in view.features.items()}
        return {name: of[view, name] for view, name in self.features}


def service_of(manifest: dict[str, Any], name: str) -> Service:
    """The service that a manifest describes.

    Raises:
        NotFound: it describes another.
        FeaturesUnavailable: another manta wrote it, in a form that this one does not read.
    """
    if manifest.get("format") != FORMAT:
        raise FeaturesUnavailable(
            f"the manifest has format {manifest.get('format')!r}; this manta reads {FORMAT}",
            hint="`manta run features` compiles it anew",
        )
    body = manifest["service"]
    if body["name"] != name:
        raise NotFound(
            f"the manifest describes the feature service {body['name']!r}, not {name!r}",
            hint="take the manifest that the service's version names",
        )
    views = tuple(
        View(
            **{
                **view,
                "keys": tuple(Key(**key) for key in view["keys"]),
                "features": tuple(Feature(**feature) for feature in view["features"]),
                "others": tuple(Feature(**feature) for feature in view.get("others", ())),
            }
        )
        for view in body["views"]
    )
    on_demand = tuple(
        OnDemand(**{**view, "inputs": tuple((v, f) for v, f in view["inputs"])}) for view in body["on_demand"]
    )
    stale = body.get("staleness")
    return Service(
        name=name,
        project=body["project"],
        views=views,
        on_demand=on_demand,
        features=tuple((view, feature) for view, feature in body["features"]),
        store=body["store"],
        staleness=Staleness(**{**stale, "views": tuple(stale["views"])}) if stale else None,
    )


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Raises:
    FeaturesUnavailable: it is not there, or not a manifest.
    """
    manifest = read_json(path)
    if "service" not in manifest:
        raise FeaturesUnavailable(f"{path} is not a manifest", hint="`manta run features` compiles it anew")
    return manifest


def read_json(path: str | Path) -> dict[str, Any]:
    """What was kept at ``path``.

    Raises:
        FeaturesUnavailable: it is not there, or no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise FeaturesUnavailable(
            f"the manifest {path} is gone", hint="`manta run features` compiles it anew"
        ) from None
    except (OSError, ValueError) as error:
        raise FeaturesUnavailable(f"the manifest {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise FeaturesUnavailable(f"{path} is not a manifest", hint="`manta run features` compiles it anew")
    return content
