"""The client against a real server over HTTP: the verbs, and the errors raised again as they were."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

import manta
from manta.api.server import create
from manta.app import Platform
from manta.client import Client
from manta.control.inline import InlineEngine
from manta.errors import DefinitionInvalid, InvalidInput, NotFound, PlatformDown, RunFailed
from manta.ledger.runs import State
from manta.plan import Action
from manta.settings import Settings

JOBS = """
from manta import Column, Contract, Files, Ingest, Retry

numbers = Contract(columns={"a": Column(type="int64")})
source = Files(path="data/*.csv")
raw = Ingest(dataset="raw", source=source, contract=numbers, retry=Retry(backoff=0))
"""


HELD = """
import pathlib, sys, time
while pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.05)
sys.exit(9)
"""


@pytest.fixture
def client(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    """A server on a real port; its runs fail, for their command is not a worker: at once, or when there is no
    file `hold` any more."""
    root = settings.root
    for name, text in {"jobs/raw.py": JOBS, "data/one.csv": "a\n1\n"}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "cluster").mkdir()
    (root / "cluster/local.yaml").write_text(
        f"project: test\nports: {{server: {settings.ports.server}, serve: {settings.ports.serve}}}\n"
    )
    engine = InlineEngine(settings, root / ".manta/inline", [sys.executable, "-c", HELD, str(root / "hold")])
    server = uvicorn.Server(
        uvicorn.Config(create(Platform(settings, engine)), port=settings.ports.server, log_level="error")
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + 60
    while not server.started:
        assert time.monotonic() < until
        time.sleep(0.01)
    monkeypatch.chdir(root)
    with manta.connect(settings.server_url) as client:
        yield client
    (root / "hold").unlink(missing_ok=True)
    server.should_exit = True
    thread.join(timeout=20)


def test_plan_apply_and_wait_pass_over_http(client: Client) -> None:
    made = client.plan()
    assert [(step.name, step.action) for step in made.steps] == [("raw", Action.RUN)]
    assert client.runs() == []
    applied = client.apply()
    looks: list[State] = []
    with pytest.raises(RunFailed, match=r"run 1 \(raw\) FAILED: LOST 3 times") as error:
        client.wait_applied(applied, lambda runs, endpoints: looks.extend(run.state for run in runs))
    assert "manta logs 1" in error.value.hint
    assert looks[-1] is State.FAILED
    assert client.run(1).attempt == 3
    assert [run.id for run in client.runs(job="raw")] == [1]


def test_a_run_at_work_is_followed_by_a_second_apply(client: Client) -> None:
    Path("hold").touch()
    first, second = client.apply(), client.apply()
    assert first.runs == second.runs
    assert second.plan.steps[0].action is Action.FOLLOW


def test_errors_come_through_as_what_they_were(client: Client) -> None:
    with pytest.raises(NotFound) as no_job:
        client.submit("rax")
    assert "raw" in no_job.value.hint
    with pytest.raises(InvalidInput, match="takes no parameter epochs"):
        client.submit("raw", {"epochs": 3})
    with pytest.raises(NotFound, match="there is no run 99"):
        client.run(99)
    with pytest.raises(NotFound, match="no endpoint serves 'delay'") as no_endpoint:
        client.predict("delay", {"keys": {}})
    assert "manta apply" in no_endpoint.value.hint
    Path("jobs/raw.py").write_text(JOBS + "again = Ingest(dataset='raw', source=source, contract=numbers)\n")
    with pytest.raises(DefinitionInvalid, match="raw"):
        client.plan()


def test_one_key_is_one_run(client: Client) -> None:
    assert client.submit("raw", key="k").id == client.submit("raw", key="k").id
    assert client.submit("raw").id != client.submit("raw").id


def test_problems_are_problem_objects(client: Client) -> None:
    key = (client.settings.home / "owner.key").read_text().strip()
    with httpx.Client(base_url=client.url, headers={"Authorization": f"Bearer {key}"}) as http:
        answer = http.get("/v1/runs/99")
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["code"] == "not_found"
        json = {"Content-Type": "application/json"}
        assert http.post("/v1/projects/test/plan", content="{", headers=json).status_code == 400
        assert http.put(f"/v1/packages/{'0' * 32}", content=b"other").status_code == 400


def test_another_projects_platform_is_not_spoken_to(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MANTA_PROJECT", "other")
    with pytest.raises(PlatformDown, match="serves the project 'test'"):
        manta.connect(client.url)


def test_nobody_there_names_the_next_step(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(settings.root)
    with pytest.raises(PlatformDown) as error:
        manta.connect(url=settings.server_url)
    assert "manta up" in error.value.hint
    assert os.getcwd() == str(settings.root)
