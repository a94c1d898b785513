"""Bringing the endpoints that Ray Serve runs to what the ledger wants of them."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx

from manta.control.engine import Engine, EngineApp
from manta.definitions import Endpoint, Lookup, Ref, StaysUp, from_json
from manta.definitions.features import CATALOG
from manta.errors import NotFound, Unavailable
from manta.ledger.endpoints import EndpointRow
from manta.ledger.store import Ledger
from manta.settings import Settings

log = logging.getLogger(__name__)


def app_name(row: EndpointRow) -> str:
    return f"{row.project}-{row.name}"


class Deployer:
    """Compares each endpoint's wanted configuration with the one Ray Serve last accepted, and sends all of
    them when one differs. A moved alias changes only the user configuration, which the replicas apply in
    place."""

    def __init__(self, settings: Settings, ledger: Ledger, engine: Engine) -> None:
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._http = httpx.Client(base_url=settings.serve_url, timeout=5.0)
        self._sent = ""
        self._refused: dict[str, dict[str, Any]] = {}  # application → user configuration it could not load

    def tick(self) -> bool:
        """One round. True while an endpoint is on its way."""
        rows = self._ledger.projects.endpoints()
        if not rows and not self._sent:
            return False
        wanted: dict[str, dict[str, Any]] = {}
        for row in rows:
            try:
                wanted[app_name(row)] = self._wanted(row)
            except NotFound as error:
                if row.message != error.message:
                    self._ledger.projects.seen_endpoint(
                        row.project, row.name, state="WANTED", message=error.message
                    )
        apps = self._engine.apps() if wanted or self._sent else {}
        sent = json.dumps(wanted, sort_keys=True)
        # Sent anew when something changed, and when the cluster has lost what it was sent.
        if sent != self._sent or any(name not in apps for name in wanted):
            if wanted or any(name in self._sent for name in apps):
                self._send(wanted)
                apps = self._engine.apps()
            self._sent = sent if wanted else ""
        pending = False
        for row in rows:
            if app_name(row) in wanted:
                pending |= self._observe(row, wanted[app_name(row)], apps.get(app_name(row)))
        return pending

    def _wanted(self, row: EndpointRow) -> dict[str, Any]:
        """Raises:
        NotFound: there is nothing to serve yet.
        """
        definition = from_json(row.definition)
        assert isinstance(definition, StaysUp)
        serve = self._door if isinstance(definition, Lookup) else self._model
        application, package, config = serve(row, definition)
        if self._refused.get(app_name(row)) != config:
            self._refused.pop(app_name(row), None)
        elif row.served:
            # Serve is told to keep what works: a replica that it starts anew must not start with what fails.
            config = row.served
        return {
            "route": row.route,
            "import_path": application,
            "package": package,
            "replicas": definition.replicas,
            "cpus": definition.cpus_per_replica,
            "args": {definition.kind: row.definition, "project": row.project},
            "user_config": config,
        }

    def _model(self, row: EndpointRow, definition: StaysUp) -> tuple[str, str, dict[str, str]]:
        """What serves the version that the alias points at: import path, package, user configuration.

        Raises:
            NotFound: the alias does not point anywhere yet.
        """
        assert isinstance(definition, Endpoint)
        held = self._ledger.aliases.get(row.project, definition.model, definition.alias)
        if held is None:
            raise NotFound(f"{definition.model} has no {definition.alias} yet")
        version = self._ledger.versions.get(row.project, Ref("model", definition.model), held)
        config = {name: version.detail[name] for name in ("location", "digest", "manifest")}
        return "manta.serving.app:build", version.detail["package"], {"version": held, **config}

    def _door(self, row: EndpointRow, definition: StaysUp) -> tuple[str, str, dict[str, str]]:
        """The same, for the features as they were last registered.

        Raises:
            NotFound: none have been.
        """
        version = self._ledger.versions.head(row.project, CATALOG)
        if version is None:
            raise NotFound("no features are registered yet")
        config = {"version": version.version, "catalog": version.detail["catalog"]}
        return "manta.serving.lookup.app:build", version.detail["package"], config

    def _send(self, wanted: dict[str, dict[str, Any]]) -> None:
        packages = self._settings.home / "packages"
        self._engine.put_apps(
            [
                {"name": name, "content": (packages / f"{app['package']}.zip").read_bytes(), **app}
                for name, app in wanted.items()
            ]
        )

    def _observe(self, row: EndpointRow, wanted: dict[str, Any], app: EngineApp | None) -> bool:
        served = wanted["user_config"]
        if app is None:
            raise Unavailable(f"Ray Serve does not list {app_name(row)} after being sent it")
        described = self._described(row) if app.status == "RUNNING" else {}
        refused = described.get("refused")
        if refused and refused["version"] == served["version"]:
            message = (
                f"version {refused['version']} is refused, {described['version']} stays: {refused['why']}"
            )
            if row.message != message:
                self._ledger.projects.seen_endpoint(row.project, row.name, state="FAILED", message=message)
            self._refused[app_name(row)] = served
            return True
        if app_name(row) in self._refused:
            return False  # back on what works; its row says what was refused, until the alias moves
        if described.get("version") == served["version"]:
            if row.state != "READY" or row.served != served:
                self._ledger.projects.seen_endpoint(
                    row.project, row.name, state="READY", served=served, message=""
                )
                log.info("endpoint %s serves version %s", row.name, served["version"])
            return False
        if app.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            if row.state != "FAILED" or row.message != app.message:
                self._ledger.projects.seen_endpoint(
                    row.project, row.name, state="FAILED", message=app.message
                )
            return False
        if row.state == "READY" and (row.served != served or app.status != "RUNNING"):
            self._ledger.projects.seen_endpoint(row.project, row.name, state="WANTED", message="changing")
        return True

    def _described(self, row: EndpointRow) -> dict[str, Any]:
        # Serve says RUNNING a moment before it acts on what it was just sent: the replica itself is asked.
        try:
            answer = self._http.get(row.route)
            return dict(answer.json()) if answer.status_code == 200 else {}
        except (httpx.HTTPError, ValueError):
            return {}  # not up yet; the next round asks again
