"""A canary: a secret that a job tells in every way it can is found nowhere afterwards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from manta.api.server import create
from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.ledger.actor import OWNER
from manta.ledger.runs import EndReason, Run, State
from manta.project import load
from manta.settings import Settings
from tests.integration.secrets.canary import Canary


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    made = Canary(tmp_path)
    monkeypatch.setenv("CANARY", made.token)
    return made


@pytest.fixture
def platform(canary: Canary, settings: Settings, postgres_url: str) -> Iterator[Platform]:
    """In PostgreSQL, whose password is the canary too (the server takes any)."""
    url = postgres_url.replace("postgres:@", "postgres:${env:CANARY}@")
    assert url != postgres_url
    root = settings.root / "project"
    ours = settings.model_copy(update={"root": root, "home": root / ".manta", "ledger_url": url})
    canary.write_project(root)
    shutil.copytree(Path(__file__).parents[3] / "cluster", root / "cluster")
    platform = Platform(ours, InlineEngine(ours, ours.home / "inline"))
    platform.start()
    yield platform
    platform.close()


def log_of(platform: Platform, run_id: int) -> str:
    return platform.logs(run_id)[0].decode()


def ended(platform: Platform, job: str) -> Run:
    project, content = load(platform.settings)
    platform.put_package(project.package, content)
    run = platform.run(project, job, {}, by=OWNER)
    until = time.monotonic() + 120
    while not (run := platform.get_run(run.id)).state.ended:
        assert time.monotonic() < until, log_of(platform, run.id)
        time.sleep(0.1)
    return run


def test_nothing_that_is_written_holds_the_secret(
    platform: Platform, canary: Canary, postgres_url: str
) -> None:
    failed, done = ended(platform, "leak"), ended(platform, "quiet")
    log = log_of(platform, failed.id)
    assert (failed.state, failed.end_reason) == (State.FAILED, EndReason.USER_ERROR), log
    assert done.state is State.SUCCEEDED, log_of(platform, done.id)
    assert "the token is [secret env:CANARY]\n[secret env:CANARY]\n" in log
    assert "child [secret env:CANARY]" in log
    assert "last words\n" in log
    assert failed.message.startswith("RuntimeError: cannot log in with [secret env:CANARY] at https://me:")
    assert done.metrics["told"] == "[secret env:CANARY]"
    assert done.params == {}
    assert done.definition["params"]["token"] == "${env:CANARY}"

    until = time.monotonic() + 60
    while "last words" not in log_of(platform, done.id):
        assert time.monotonic() < until
    app = create(platform)
    client = TestClient(app, headers={"Authorization": f"Bearer {app.state.identity.prepare()}"})
    paths = [
        path.format(run_id=done.id, project="test")
        for path in (
            "/v1/runs/{run_id}",
            "/v1/runs/{run_id}/logs",
            "/v1/runs/{run_id}/events",
            "/v1/runs/{run_id}/attempts",
            "/v1/projects/{project}/runs",
            "/v1/projects/{project}/lineage?of=run:{run_id}",
            "/v1/audit",
            "/healthz",
        )
    ]
    for path in paths:
        answer = client.get(path)
        assert answer.status_code == 200, path
        assert canary.found_in(answer.content) == [], path
    assert canary.in_ledger(postgres_url) == []
    assert canary.in_files(platform.settings.root) == []
    assert list(platform.settings.root.rglob("*.log"))


def test_a_secret_that_is_not_there_ends_the_run_with_its_name(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, canary: Canary
) -> None:
    canary.pem.unlink()
    run = ended(platform, "quiet")
    assert (run.state, run.end_reason) == (State.FAILED, EndReason.USER_ERROR)
    assert f"the secret file:{canary.pem} cannot be read: No such file" in run.message
