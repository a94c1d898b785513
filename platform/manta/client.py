"""The client: the platform's verbs over HTTP.

import manta

client = manta.connect()             # the platform of the project in this folder
run = client.submit("flights")
client.wait(run.id)
client.predict("delay", {"keys": {...}})
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from manta.app import Applied, EndpointInfo, ModelVersion
from manta.errors import MantaError, NotFound, PlatformDown, RunFailed, Unavailable, from_problem
from manta.ledger.lineage import Direction, Lineage
from manta.ledger.runs import Run, State
from manta.plan import Action, Plan
from manta.project import Project, load
from manta.settings import Settings

POLL_SECONDS = 0.4


def connect(root: str | Path = ".", *, url: str | None = None) -> Client:
    """A client of the platform that serves the project in ``root``, or of the one at ``url``.

    Raises:
        PlatformDown: nothing answers there.
    """
    settings = Settings.load(root)
    client = Client(settings, url or settings.server_url)
    client.health()
    return client


class Client:
    """Each verb raises the error that the server raised, and PlatformDown when it does not answer."""

    def __init__(self, settings: Settings, url: str) -> None:
        self.settings = settings
        self.url = url
        key = _key(settings)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=60.0, headers=headers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def health(self) -> dict[str, Any]:
        """Raises:
        PlatformDown: nothing answers, or the platform of another project does.
        """
        found: dict[str, Any] = self._json("GET", "/v1/me")
        if found["project"] != self.settings.project:
            raise PlatformDown(
                f"{self.url} serves the project {found['project']!r} in {found['root']}, "
                f"not {self.settings.project!r}",
                hint="run `manta down` there, or give this project other ports: MANTA_PORTS__SERVER=…",
            )
        return found

    # --- plan and apply -------------------------------------------------------------------------------

    def load(self) -> Project:
        """Load the project in this folder and hand its package to the server."""
        project, content = load(self.settings)
        if self._send("HEAD", f"/v1/packages/{project.package}", accept=(200, 404)).status_code == 404:
            self._send("PUT", f"/v1/packages/{project.package}", content=content)
        return project

    def plan(self) -> Plan:
        """What :meth:`apply` would do."""
        return Plan(**self._json("POST", self._of("plan"), json=self.load().model_dump(mode="json")))

    def apply(self) -> Applied:
        """Make the platform hold what the project defines. Returns once all is set going."""
        return Applied(**self._json("POST", self._of("apply"), json=self.load().model_dump(mode="json")))

    def wait_applied(self, applied: Applied, seen: Callable[[list[Run], list[EndpointInfo]], None]) -> None:
        """Wait until every run of it has ended and every endpoint answers; ``seen`` is told each look.

        Raises:
            RunFailed: a run ended otherwise than SUCCEEDED, after the others have ended.
            Unavailable: an endpoint does not come up.
        """
        pending = [
            applied.runs[step.name]
            for step in applied.plan.steps
            if step.action in (Action.RUN, Action.FOLLOW)
        ]
        deployed = {step.name for step in applied.plan.steps if step.action is Action.DEPLOY}
        while True:
            runs = self._runs_of(pending)
            endpoints = [each for each in self.endpoints() if each.name in deployed]
            seen(runs, endpoints)
            if all(run.state.ended for run in runs):
                failed = [run for run in runs if run.state is not State.SUCCEEDED]
                if failed:
                    raise _failure(failed)
                broken = [each for each in endpoints if each.state == "FAILED"]
                if broken:
                    raise Unavailable(
                        f"endpoint {broken[0].name} did not come up: {broken[0].message}",
                        hint="correct serve/ or the model, then `manta apply`",
                    )
                if all(each.state == "READY" for each in endpoints):
                    return
            time.sleep(POLL_SECONDS)

    # --- runs -----------------------------------------------------------------------------------------

    def submit(self, job: str, params: Mapping[str, Any] | None = None, *, key: str | None = None) -> Run:
        """Submit one run of a job of the project in this folder."""
        body = {
            "project": self.load().model_dump(mode="json"),
            "job": job,
            "params": dict(params or {}),
            "key": key,
        }
        return Run(**self._json("POST", self._of("runs"), json=body))

    def run(self, run_id: int) -> Run:
        return Run(**self._json("GET", f"/v1/runs/{run_id}"))

    def runs(self, job: str | None = None, *, active: bool = False, limit: int = 50) -> list[Run]:
        params = {"active": active, "limit": limit} | ({"job": job} if job else {})
        return [Run(**each) for each in self._json("GET", self._of("runs"), params=params)["items"]]

    def _runs_of(self, ids: list[int]) -> list[Run]:
        if not ids:
            return []
        found = self._json("GET", self._of("runs"), params={"ids": ids, "limit": 1000})["items"]
        return sorted((Run(**each) for each in found), key=lambda run: run.id)

    def logs(self, run_id: int) -> str:
        whole = b""
        while True:
            answer = self._send("GET", f"/v1/runs/{run_id}/logs", params={"offset": len(whole)})
            if not answer.content:
                return whole.decode(errors="replace")
            whole += answer.content

    def stop(self, run_id: int) -> Run:
        return Run(**self._json("POST", f"/v1/runs/{run_id}/stop"))

    def wait(self, run_id: int, seen: Callable[[Run], None] = lambda run: None) -> Run:
        """Wait until the run has ended; ``seen`` is told each look.

        Raises:
            RunFailed: it ended otherwise than SUCCEEDED.
        """
        while True:
            run = self.run(run_id)
            seen(run)
            if run.state is State.SUCCEEDED:
                return run
            if run.state.ended:
                raise _failure([run])
            time.sleep(POLL_SECONDS)

    def lineage(self, of: str, direction: Direction = "both") -> Lineage:
        """What ``run:17``, ``model:delay@3``, ``dataset:flights@2``, ``endpoint:delay`` … was made from
        ("up"), and what was made from it ("down").

        Raises:
            NotFound: the project has no such thing.
        """
        path = f"/v1/projects/{self.settings.project}/lineage"
        return Lineage(**self._json("GET", path, params={"of": of, "direction": direction}))

    # --- models and endpoints -------------------------------------------------------------------------

    def models(self) -> list[ModelVersion]:
        return [ModelVersion(**each) for each in self._json("GET", self._of("models"))]

    def endpoints(self) -> list[EndpointInfo]:
        return [EndpointInfo(**each) for each in self._json("GET", self._of("endpoints"))]

    def predict(self, model: str, body: Mapping[str, Any], *, features: bool = False) -> dict[str, Any]:
        """Ask the endpoint of that name, or the one that serves that model.

        Args:
            body: ``{"keys": …}`` or ``{"rows": …}``, one object or a list of them.
            features: also answer which feature values were used, and how fresh they are.

        Raises:
            NotFound: no endpoint serves it.
            RequestInvalid: the body does not fit.
        """
        endpoints = self.endpoints()
        for endpoint in endpoints:
            if model in (endpoint.name, endpoint.model):
                url = f"{endpoint.url}/predict"
                params = {"features": "true"} if features else None
                # The key is for the server, not for what serves endpoints.
                headers = {"Authorization": ""}
                answer: dict[str, Any] = self._json(
                    "POST", url, json=dict(body), params=params, headers=headers
                )
                return answer
        served = ", ".join(endpoint.name for endpoint in endpoints)
        raise NotFound(
            f"no endpoint serves {model!r}",
            hint=f"served: {served}" if served else "`manta apply` puts the project's endpoints up",
        )

    def _of(self, noun: str) -> str:
        return f"/v1/projects/{self.settings.project}/{noun}"

    def _json(self, method: str, path: str, **content: Any) -> Any:
        return self._send(method, path, **content).json()

    def _send(
        self, method: str, path: str, accept: tuple[int, ...] = (200, 201, 204), **content: Any
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.TransportError as error:
            raise PlatformDown(
                f"the platform does not answer at {error.request.url}: {error or type(error).__name__}",
                hint="start it with `manta up`; `manta status` shows what is up",
            ) from None
        if answer.status_code in accept:
            return answer
        raise _problem(answer)


def _key(settings: Settings) -> str:
    """The API key to show: MANTA_API_KEY, or what is in MANTA_API_KEY_FILE, or the owner's own."""
    if os.environ.get("MANTA_API_KEY"):
        return os.environ["MANTA_API_KEY"].strip()
    path = Path(os.environ.get("MANTA_API_KEY_FILE") or settings.home / "owner.key")
    return path.read_text().strip() if path.is_file() else ""


def _problem(answer: httpx.Response) -> MantaError:
    try:
        return from_problem(answer.json())
    except ValueError:
        return Unavailable(f"{answer.request.url} answered {answer.status_code}: {answer.text[:500]}")


def _failure(failed: list[Run]) -> RunFailed:
    first = min(failed, key=lambda run: (run.end_reason == "NEED_FAILED", run.id))
    return RunFailed(
        f"run {first.id} ({first.job}) {first.state}: {first.message or first.end_reason}",
        hint=f"`manta logs {first.id}` shows what it printed",
    )
