"""The feature services of a project: what they are, what is online of them, and whether it is right.

Services are read from the manifests that were compiled when the repository was last applied; values, by
`python -m manta.worker.features` in a process of its own, straight from the online store and the lake, as
notebooks read datasets. So both must be reachable from here. Looking is nobody's run, and is recorded
nowhere.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from manta.client.workers import ask
from manta.definitions import (
    Endpoint,
    FeatureRepo,
    FeatureTable,
    Materialize,
    Ref,
    StreamFeatures,
    Training,
)
from manta.definitions.features import CATALOG
from manta.errors import FeaturesUnavailable, NotFound
from manta.ledger.parity import ParityReport
from manta.ledger.runs import State, Version

if TYPE_CHECKING:
    from manta.client.verbs import Client
    from manta.project import Project

LOOK_SECONDS = 900
RUNS_LOOKED_AT = 500


class ServiceView(BaseModel):
    """A view as a service uses it. ``features``: name → type."""

    name: str
    dataset: str
    keys: dict[str, str]
    ttl_seconds: float
    features: dict[str, str]
    pushed: bool = False


class ServiceInfo(BaseModel):
    """A feature service as it was last applied, and what was last put online of it.

    Attributes:
        version: of its manifest, which is kept at ``manifest``.
        on_demand: on-demand view → features with their types; request: what it takes with each request.
        materialized: when what is online was read from ``datasets`` (name → version); None: nothing is.
    """

    name: str
    version: str
    manifest: str
    views: tuple[ServiceView, ...]
    on_demand: dict[str, dict[str, str]]
    request: dict[str, str]
    features: tuple[str, ...]
    materialized: datetime | None = None
    datasets: dict[str, int] = {}


class ViewFreshness(BaseModel):
    """See `manta.features.freshness`."""

    view: str
    dataset: str
    ttl_seconds: float
    offline: datetime | None
    online: datetime | None
    keys: int
    missing: int
    behind: int
    expired: int


class Online(BaseModel):
    """What a look-up gave for one row."""

    values: dict[str, Any]
    status: dict[str, str]
    fresh_as_of: dict[str, datetime | None]


class Features:
    """Those of the project of ``client``."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def services(self) -> list[ServiceInfo]:
        """Every service that is registered."""
        found = self._versions()
        services = [version for ref, version in found.items() if ref.kind == "features" and ref != CATALOG]
        return [_info(version, found.get(Ref("online", version.name))) for version in services]

    def show(self, service: str) -> ServiceInfo:
        """Raises:
        NotFound: none of that name is registered.
        """
        known = self.services()
        for each in known:
            if each.name == service:
                return each
        names = ", ".join(each.name for each in known)
        raise NotFound(
            f"there is no feature service {service!r}",
            hint=f"there is: {names}" if names else "`manta run features` registers those of the project",
        )

    def freshness(self, service: str) -> list[ViewFreshness]:
        """Raises:
        NotFound: the service, or a dataset of it. FeaturesUnavailable: the online store.
        """
        return [ViewFreshness(**each) for each in self._ask("freshness", self.show(service))]

    def get(
        self, service: str, rows: Sequence[Mapping[str, Any]], at: datetime | None = None
    ) -> list[Online]:
        """What is online for rows of join keys and request fields; ``at`` is when it is asked: now, unless
        given. TTLs are obeyed."""
        asked = {"rows": [dict(row) for row in rows], "at": at.isoformat() if at else None}
        return [Online(**each) for each in self._ask("get", self.show(service), **asked)]

    def parity(self, service: str, *, keys: int = 1000, seed: int = 0) -> ParityReport:
        """Compare ``keys`` rows online with the as-of join over what was last materialized.

        Raises:
            NotFound: nothing of the service has been put online.
        """
        found = self.show(service)
        if found.materialized is None:
            raise NotFound(
                f"nothing of {service!r} has been put online", hint=f"manta features materialize {service}"
            )
        asked = {"datasets": found.datasets, "until": found.materialized.isoformat()}
        return ParityReport(**self._ask("parity", found, keys=keys, seed=seed, **asked))

    def jobs(self, service: str, *, backfill: bool = False) -> tuple[str, ...]:
        """The jobs that put the service online; with ``backfill`` those before that make its feature tables
        anew, in an order in which they can be run.

        Raises:
            NotFound: no Materialize of the project is of this service.
        """
        jobs = self._client.load().jobs()
        puts = [n for n, (job, _) in jobs.items() if isinstance(job, Materialize) and job.features == service]
        if not puts:
            raise NotFound(
                f"no job of the project puts {service!r} online",
                hint=f'write `online = Materialize(features="{service}")` in jobs/',
            )
        if not backfill:
            return tuple(puts)
        repo = next((job for job, _ in jobs.values() if isinstance(job, FeatureRepo)), FeatureRepo())
        wanted = {ref.name for ref in repo.datasets_of(service)}
        tables = {job.dataset: job for job, _ in jobs.values() if isinstance(job, FeatureTable)}
        order: dict[str, None] = {}

        def visit(dataset: str) -> None:
            if dataset in tables:
                for other in tables[dataset].inputs_from:
                    visit(other)
                order[tables[dataset].name] = None

        for dataset in sorted(wanted):
            visit(dataset)
        return (*order, *puts)

    def users(self, service: str) -> list[str]:
        """What of the project uses it: trainings, endpoints, and what puts it online."""
        return users_of(self._client.load(), service)

    def _versions(self) -> dict[Ref, Version]:
        """The newest of every service, and of what is online of it."""
        found: dict[Ref, Version] = {}
        for run in self._client.runs(limit=RUNS_LOOKED_AT):
            if run.state is not State.SUCCEEDED or run.replay_of is not None:
                continue
            for version in run.outputs:
                if version.kind in ("features", "online"):
                    found.setdefault(version.ref, version)
        return found

    def _ask(self, what: str, service: ServiceInfo, **more: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            answer = Path(folder, "answer.json")
            asked = {
                "what": what,
                "service": service.name,
                "manifest": service.manifest,
                "answer": str(answer),
            }
            ask(
                "manta.worker.features",
                asked | more,
                self._client.settings,
                Path(folder),
                seconds=LOOK_SECONDS,
                failed="the features could not be looked at",
            )
            return json.loads(answer.read_text())


def users_of(project: Project, service: str) -> list[str]:
    jobs = [job for job, _ in project.jobs().values()]
    found = [f"training {job.name}" for job in jobs if isinstance(job, Training) and job.features == service]
    found += [
        f"materialize {job.name}" for job in jobs if isinstance(job, Materialize) and job.features == service
    ]
    found += [
        f"stream {job.name}" for job in jobs if isinstance(job, StreamFeatures) and job.features == service
    ]
    endpoints = [each for each, _ in project.endpoints().values() if isinstance(each, Endpoint)]
    return found + [f"endpoint {each.name}" for each in endpoints if each.features == service]


def _info(version: Version, online: Version | None) -> ServiceInfo:
    path = version.detail["manifest"]
    try:
        body = json.loads(Path(path).read_text())["service"]
    except (OSError, ValueError) as error:
        raise FeaturesUnavailable(
            f"the manifest {path} cannot be read: {error}",
            hint="it lies in the platform's state folder, which must be reachable from here",
        ) from error
    until = online.detail.get("until") if online else None
    return ServiceInfo(
        name=version.name,
        version=version.version,
        manifest=path,
        views=tuple(
            ServiceView(
                name=view["name"],
                dataset=view["dataset"],
                keys={key["column"]: key["type"] for key in view["keys"]},
                ttl_seconds=view["ttl_seconds"],
                features={feature["name"]: feature["type"] for feature in view["features"]},
                pushed=view.get("pushed", False),
            )
            for view in body["views"]
        ),
        on_demand={view["name"]: view["features"] for view in body["on_demand"]},
        request={name: kind for view in body["on_demand"] for name, kind in view["request"].items()},
        features=tuple(feature for _, feature in body["features"]),
        materialized=datetime.fromisoformat(until) if until else None,
        datasets=online.detail["datasets"] if online else {},
    )
