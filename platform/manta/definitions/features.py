"""Definitions around Feast's own: the repository as it is registered, and what is made ready online.

Feast's objects stay Feast's: a project writes them in its `features/` folder, and loading the project
describes them as one :class:`FeatureRepo`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from manta.definitions.base import Frozen, Name, Ref
from manta.definitions.jobs import Runnable

# All that the repository registers, as one version: what a look-up door serves from.
CATALOG = Ref("features", "*")


class ViewInfo(Frozen):
    """What the rest of manta knows of a feature view. ``pushed``: its source is a PushSource.
    ``fingerprint`` covers its Feast specification."""

    name: str
    dataset: str | None
    ttl_seconds: float
    fingerprint: str
    pushed: bool = False


class FeatureRepo(Runnable):
    """The project's Feast repository; running it applies it to the registry. Not written by users.

    Attributes:
        services: the views behind each, those that its on-demand views read included.
        types: by service, what it reads and gives: `view.feature` → type, and `join key NAME` → type.
    """

    kind: ClassVar[str] = "feature-repo"
    name: Name = "features"
    views: tuple[ViewInfo, ...] = ()
    services: dict[str, tuple[str, ...]] = Field(default={})
    types: dict[str, dict[str, str]] = Field(default={})
    fingerprint: str = ""

    def outputs(self) -> tuple[Ref, ...]:
        return (CATALOG, *(Ref("features", service) for service in sorted(self.services)))

    def datasets_of(self, service: str) -> tuple[Ref, ...]:
        """The datasets behind a service's views."""
        of = {view.name: view.dataset for view in self.views}
        names = {of.get(view) for view in self.services.get(service, ())}
        return tuple(Ref("dataset", name) for name in sorted(name for name in names if name))


class Materialize(Runnable):
    """Puts the newest values of a feature service's views into the online store.

    Attributes:
        parity: how many rows are then read online and compared with the as-of join; the run fails when one
            value differs. 0: none.
    """

    kind: ClassVar[str] = "materialize"
    features: str
    parity: int = Field(default=0, ge=0)

    def __init__(self, **fields: Any) -> None:
        super().__init__(**({"name": "online"} | fields))

    def inputs(self) -> tuple[Ref, ...]:
        return (Ref("features", self.features),)

    def outputs(self) -> tuple[Ref, ...]:
        return (Ref("online", self.features),)
