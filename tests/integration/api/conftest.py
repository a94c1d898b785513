"""A server over real HTTP, with people of several roles."""

from __future__ import annotations

import hashlib
import io
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from typer.testing import CliRunner

from manta.api.server import create
from manta.app import Platform
from manta.cli.display import console
from manta.cli.root import app as commands
from manta.control.inline import InlineEngine
from manta.errors import MantaError
from manta.ledger.actor import Actor
from manta.settings import Settings

ADMIN = Actor("owner", "local")


class Served:
    """A running server. ``people`` are made with :meth:`person`."""

    def __init__(self, settings: Settings, platform: Platform, app: FastAPI) -> None:
        self.settings, self.platform, self.app = settings, platform, app
        self.url = settings.server_url
        self.owner_key = app.state.owner_key
        self.package = self._put_package()

    def http(self, key: str | None, **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers | more.pop("headers", {}), timeout=60, **more)

    def person(self, name: str, **roles: str) -> str:
        """The API key of a new principal with these roles; ``everywhere`` is every project."""
        for project, role in roles.items():
            where = "*" if project == "everywhere" else project
            self.platform.ledger.access.grant(name, where, role, by=ADMIN)
        _, key = self.app.state.identity.make_key(name, by=ADMIN)
        return str(key)

    def project(self, name: str) -> dict[str, Any]:
        """The body that describes a project with one job, ``work``."""
        job = {"kind": "job", "name": "work", "fn": "jobs.work:work", "params": {"n": 1}}
        described = {"definition": job, "fingerprint": "f", "where": "jobs.work:work"}
        return {"name": name, "package": self.package, "described": [described], "sources": {}}

    def submission(self, project: str, **more: Any) -> dict[str, Any]:
        return {"project": self.project(project), "job": "work", **more}

    def run_of(self, project: str) -> int:
        """A run in that project."""
        with self.http(self.owner_key) as http:
            answer = http.post(f"/v1/projects/{project}/runs", json=self.submission(project))
            return int(answer.raise_for_status().json()["id"])

    def _put_package(self) -> str:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("jobs/work.py", "")
        package = hashlib.sha256(buffer.getvalue()).hexdigest()[:32]
        self.platform.put_package(package, buffer.getvalue())
        return package


@contextmanager
def serving(settings: Settings) -> Iterator[Served]:
    """Its runs fail at once: their command is not a worker."""
    engine = InlineEngine(settings, settings.home / "inline", [sys.executable, "-c", "raise SystemExit(9)"])
    platform = Platform(settings, engine)
    app = create(platform)
    config = uvicorn.Config(app, port=settings.ports.server, log_level="error", access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 60
        while not server.started:
            assert thread.is_alive()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield Served(settings, platform, app)
    finally:
        server.should_exit = True
        thread.join(timeout=30)


@pytest.fixture
def serve(settings: Settings) -> Iterator[Callable[..., Served]]:
    """Starts a server whose settings are changed as told."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(serving(settings.model_copy(update=changes)))


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    return serve()


@pytest.fixture
def served_on(serve: Callable[..., Served], ledger_url: str) -> Served:
    """Once over SQLite, once over PostgreSQL."""
    return serve(ledger_url=ledger_url)


@pytest.fixture
def manta(served: Served, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command as the owner, or with another key; standard output."""
    monkeypatch.chdir(served.settings.root)
    monkeypatch.setenv("MANTA_PROJECT", served.settings.project)
    monkeypatch.setenv("MANTA_PORTS__SERVER", str(served.settings.ports.server))
    monkeypatch.setattr(console, "_width", 200)  # the variable is read once in a process

    def run(*words: str, key: str = "", status: int = 0) -> str:
        done = CliRunner(env={"MANTA_API_KEY": key}).invoke(commands, words)
        if isinstance(done.exception, MantaError):
            raise done.exception
        assert done.exit_code == status, done.output
        return done.stdout

    return run
