"""A catalog: all that is registered in a project's Feast repository, as the look-up door serves it.

It is JSON, compiled when the repository is applied (`manifest.py`) and kept under its digest, like the
manifests of services, which it holds. Nothing here knows Feast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.errors import FeaturesUnavailable, NotFound, RequestInvalid
from manta.features.compiled import FORMAT, View, read_json, service_of

SHOWN = 12
ANONYMOUS = ""  # the name of a service that is a list of features only


@dataclass(frozen=True)
class Catalog:
    """What a project has registered.

    Attributes:
        services: feature service → manifest.
        views: view → its compiled form as JSON, all its features included.
        on_demand: the same, of on-demand views.
        pushes: push source → the views that it feeds.
    """

    project: str
    store: dict[str, Any]
    services: Mapping[str, dict[str, Any]]
    views: Mapping[str, dict[str, Any]]
    on_demand: Mapping[str, dict[str, Any]]
    pushes: Mapping[str, tuple[str, ...]]

    def service(self, name: str) -> dict[str, Any]:
        """The manifest of a feature service.

        Raises:
            NotFound: there is none of that name.
        """
        if name not in self.services:
            raise NotFound(f"there is no feature service {name!r:.80}", hint=_there_is(self.services))
        return self.services[name]

    def listed(self, features: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """The manifest of a service without a name, of just those (view, feature).

        Raises:
            NotFound: a view, or a feature of it, is not registered.
            RequestInvalid: two of the features have one name.
        """
        wanted: dict[str, dict[str, None]] = {}
        demanded: dict[str, dict[str, str]] = {}
        for view, feature in features:
            if view in self.on_demand:
                types = self.on_demand[view]["features"]
                self._require(view, feature, types)
                demanded.setdefault(view, {})[feature] = types[feature]
                for source, name in self.on_demand[view]["inputs"]:
                    wanted.setdefault(source, {})[name] = None
            elif view in self.views:
                self._require(view, feature, [each["name"] for each in self.views[view]["features"]])
                wanted.setdefault(view, {})[feature] = None
            else:
                raise NotFound(
                    f"there is no feature view {view!r:.80}", hint=_there_is([*self.views, *self.on_demand])
                )
        views = [
            {**body, "features": [each for each in body["features"] if each["name"] in wanted[view]]}
            for view, body in self.views.items()
            if view in wanted
        ]
        on_demand = [{**self.on_demand[view], "features": types} for view, types in demanded.items()]
        body = {
            "name": ANONYMOUS,
            "project": self.project,
            "store": self.store,
            "views": views,
            "on_demand": on_demand,
            "features": [list(each) for each in features],
        }
        return {"format": FORMAT, "service": body}

    def view(self, name: str) -> View:
        """A view that is pushed to, with all its features.

        Raises:
            NotFound: there is no such view.
            RequestInvalid: it is not pushed to.
        """
        body = self.views.get(name)
        if body is None:
            raise NotFound(f"there is no feature view {name!r:.80}", hint=_there_is(self.views))
        if not body.get("pushed"):
            raise RequestInvalid(
                f"feature view {name!r} is not pushed to: what is written would be undone",
                hint="the next materialization makes it its dataset's again; give it source=PushSource(…)",
                fields=["feature_view_name"],
            )
        whole = {"format": FORMAT, "service": {**self._bare(), "views": [body], "features": []}}
        return service_of(whole, ANONYMOUS).views[0]

    def pushed(self, source: str) -> list[View]:
        """The views that a push source feeds.

        Raises:
            NotFound: there is none of that name.
        """
        if source not in self.pushes:
            raise NotFound(f"there is no push source {source!r:.80}", hint=_there_is(self.pushes))
        return [self.view(name) for name in self.pushes[source]]

    def _bare(self) -> dict[str, Any]:
        return {"name": ANONYMOUS, "project": self.project, "store": self.store, "on_demand": []}

    def _require(self, view: str, feature: str, has: Sequence[str] | Mapping[str, str]) -> None:
        if feature not in has:
            raise NotFound(f"feature view {view!r} has no feature {feature!r:.80}", hint=_there_is(has))


def read_catalog(path: str | Path) -> Catalog:
    """Raises:
    FeaturesUnavailable: it is not there, not a catalog, or of a form that this manta does not read.
    """
    content = read_json(path)
    if content.get("format") != FORMAT or "catalog" not in content:
        raise FeaturesUnavailable(
            f"{path} is not a catalog of format {FORMAT}", hint="`manta run features` compiles it anew"
        )
    body = content["catalog"]
    return Catalog(
        project=body["project"],
        store=body["store"],
        services={name: {"format": FORMAT, "service": each} for name, each in body["services"].items()},
        views={view["name"]: view for view in body["views"]},
        on_demand={view["name"]: view for view in body["on_demand"]},
        pushes={name: tuple(views) for name, views in body["pushes"].items()},
    )


def _there_is(names: Sequence[str] | Mapping[str, Any]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return f"there is: {', '.join(listed[:SHOWN])}{more}" if listed else "there is none"
