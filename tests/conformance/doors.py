"""The doors that manta has, each as the conformance suite asks."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from pydantic import TypeAdapter

from manta.answers import Applied, EndpointInfo, ModelVersion
from manta.app import Platform
from manta.client import Client
from manta.errors import from_problem
from manta.ledger.actor import OWNER
from manta.ledger.records import Entry, Lineage
from manta.ledger.runs import Attempt, Run
from manta.plan import Plan
from manta.project import Project, load
from manta.settings import Settings
from manta.testing.doors import PROJECT

UP_SECONDS = 60
MANTA = str(Path(sys.executable).parent / "manta")


class PlatformDoor:
    """Platform itself, without HTTP."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform

    def _load(self) -> Project:
        project, content = load(self._platform.settings)
        self._platform.put_package(project.package, content)
        return project

    def plan(self) -> Plan:
        return self._platform.plan(self._load())

    def apply(self) -> Applied:
        return self._platform.apply(self._load(), by=OWNER)

    def submit(self, job: str, params: Mapping[str, Any], key: str | None = None) -> Run:
        return self._platform.run(self._load(), job, params, key, by=OWNER)

    def run(self, run_id: int) -> Run:
        return self._platform.get_run(run_id)

    def runs(self, *, job: str | None = None, active: bool = False, limit: int = 50) -> list[Run]:
        return self._platform.runs(PROJECT, job=job, active=active, limit=limit)

    def attempts(self, run_id: int) -> list[Attempt]:
        return self._platform.attempts(run_id)

    def events(self, run_id: int) -> list[str]:
        return [event.what for event in self._platform.events(run_id)]

    def logs(self, run_id: int, attempt: int | None = None) -> str:
        return self._platform.logs(run_id, attempt)[0].decode()

    def stop(self, run_id: int) -> Run:
        return self._platform.stop(run_id, by=OWNER)

    def models(self) -> list[ModelVersion]:
        return self._platform.models.versions(PROJECT)

    def endpoints(self) -> list[EndpointInfo]:
        return self._platform.endpoints(PROJECT)

    def lineage(self, of: str) -> Lineage:
        return self._platform.lineage(PROJECT, of)

    def audit(self, limit: int) -> list[Entry]:
        return self._platform.ledger.audit.entries(limit=limit)

    def replay(self, run_id: int) -> Run:
        return self._platform.replay(run_id, by=OWNER)


class ClientDoor:
    """The client, over whichever transport."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.plan, self.apply = client.plan, client.apply
        self.run, self.attempts, self.stop = client.look, client.attempts, client.stop
        self.models, self.endpoints, self.lineage = client.models, client.endpoints, client.lineage

    def submit(self, job: str, params: Mapping[str, Any], key: str | None = None) -> Run:
        return self._client.submit(job, params, key=key).data

    def runs(self, *, job: str | None = None, active: bool = False, limit: int = 50) -> list[Run]:
        return self._client.runs(job, active=active, limit=limit)

    def events(self, run_id: int) -> list[str]:
        return [event.what for event in self._client.events(run_id)]

    def logs(self, run_id: int, attempt: int | None = None) -> str:
        return self._client.logs(run_id, attempt=attempt)

    def audit(self, limit: int) -> list[Entry]:
        return self._client.audit(limit=limit)

    def replay(self, run_id: int) -> Run:
        return self._client.replay(run_id).data


class CommandDoor:
    """The `manta` command, a process for each verb, read as scripts read it."""

    def __init__(self, root: Path, env: Mapping[str, str]) -> None:
        self._root = root
        self._env = dict(env)

    def _manta(self, *words: str) -> str:
        done = subprocess.run(
            [MANTA, *words], cwd=self._root, env=self._env, capture_output=True, text=True, timeout=200
        )
        if done.returncode:
            said = re.search(r"^error (\w+)  (.*?)(?:\n  next: (.*))?\Z", done.stderr.strip(), re.S | re.M)
            assert said, (words, done.returncode, done.stdout, done.stderr)
            code, message, hint = (" ".join((each or "").split()) for each in said.groups())
            raise from_problem({"code": code, "detail": message, "hint": hint})
        return done.stdout

    def _json(self, kind: Any, *words: str) -> Any:
        return TypeAdapter(kind).validate_json(self._manta(*words, "--json"))

    def plan(self) -> Plan:
        found: Plan = self._json(Plan, "plan")
        return found

    def apply(self) -> Applied:
        found: Applied = self._json(Applied, "apply", "--no-wait")
        return found

    def submit(self, job: str, params: Mapping[str, Any], key: str | None = None) -> Run:
        given = [
            word for name, value in params.items() for word in ("--param", f"{name}={json.dumps(value)}")
        ]
        found: Run = self._json(Run, "run", job, *given, *(("--key", key) if key else ()))
        return found

    def _shown(self, run_id: int) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._manta("show", str(run_id), "--json"))
        return found

    def run(self, run_id: int) -> Run:
        return Run.model_validate(self._shown(run_id))

    def runs(self, *, job: str | None = None, active: bool = False, limit: int = 50) -> list[Run]:
        words = (*(("--job", job) if job else ()), *(("--active",) if active else ()), "--limit", str(limit))
        found: list[Run] = self._json(list[Run], "runs", *words)
        return found

    def attempts(self, run_id: int) -> list[Attempt]:
        return TypeAdapter(list[Attempt]).validate_python(self._shown(run_id)["attempts"])

    def events(self, run_id: int) -> list[str]:
        return [event["what"] for event in self._shown(run_id)["events"]]

    def logs(self, run_id: int, attempt: int | None = None) -> str:
        return self._manta("logs", str(run_id), *(("--attempt", str(attempt)) if attempt else ()))

    def stop(self, run_id: int) -> Run:
        found: Run = self._json(Run, "stop", str(run_id), "--no-wait")
        return found

    def models(self) -> list[ModelVersion]:
        found: list[ModelVersion] = self._json(list[ModelVersion], "models")
        return found

    def endpoints(self) -> list[EndpointInfo]:
        found: list[EndpointInfo] = self._json(list[EndpointInfo], "endpoints")
        return found

    def lineage(self, of: str) -> Lineage:
        found: Lineage = self._json(Lineage, "lineage", of)
        return found

    def audit(self, limit: int) -> Sequence[Entry]:
        found: list[Entry] = self._json(list[Entry], "audit", "list", "--limit", str(limit))
        return found

    def replay(self, run_id: int) -> Run:
        told = self._manta("replay", str(run_id))
        return self.run(int(told.split()[1]))


@contextlib.contextmanager
def server(root: Path) -> Iterator[str]:
    """The server of the project in ``root``, as a process; its address."""
    # Its log lies beside the folder: in it, it would be packaged, and change with every request.
    url = Settings.load(root).server_url
    with root.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "manta.api"], cwd=root, stdout=log, stderr=log, env=environment()
        )
    try:
        until = time.monotonic() + UP_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/healthz").raise_for_status()
                break
            assert process.poll() is None, root.with_suffix(".log").read_text()
            assert time.monotonic() < until, root.with_suffix(".log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MANTA_")} | {
        "COLUMNS": "400"
    }
