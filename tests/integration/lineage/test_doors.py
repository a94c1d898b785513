"""Lineage and replay through the doors: the runs of a job on processes of this machine, and the API."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from manta.api.server import create
from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.definitions import Ref
from manta.ledger.actor import OWNER
from manta.project import load
from manta.settings import Settings

JOBS = """
import random
from manta import Job

def made(context):
    if context.params["fail"]:
        raise RuntimeError("as told")
    context.produced("dataset", "figures", context.params["version"] or str(random.random()), rows=3)

steady = Job(name="steady", fn=made, params={"version": "7", "fail": False})
fickle = Job(name="fickle", fn=made, params={"version": "", "fail": False})
broken = Job(name="broken", fn=made, params={"version": "", "fail": True})
"""


class Doors:
    def __init__(self, platform: Platform, client: TestClient) -> None:
        self.platform = platform
        self.client = client
        self.project, content = load(platform.settings)
        platform.put_package(self.project.package, content)

    def ran(self, job: str) -> int:
        return self.ended(self.platform.run(self.project, job, {}, by=OWNER).id)

    def ended(self, run_id: int) -> int:
        until = time.monotonic() + 120
        while not self.platform.get_run(run_id).state.ended:
            assert time.monotonic() < until, self.platform.logs(run_id)
            time.sleep(0.1)
        return run_id

    def ask(self, method: str, path: str, status: int) -> Any:
        answer = self.client.request(method, path)
        assert answer.status_code == status, answer.text
        return answer.json()


@pytest.fixture
def doors(settings: Settings) -> Iterator[Doors]:
    (settings.root / "jobs").mkdir()
    (settings.root / "jobs" / "made.py").write_text(JOBS)
    platform = Platform(settings, InlineEngine(settings, settings.home / "inline"))
    with TestClient(create(platform)) as client:
        client.headers["Authorization"] = f"Bearer {client.app.state.owner_key}"  # type: ignore[attr-defined]
        yield Doors(platform, client)


def test_a_run_is_repeated_and_compared(doors: Doors) -> None:
    first = doors.ran("steady")
    doors.ask("GET", f"/v1/runs/{first}/comparison", 404)
    again = doors.ask("POST", f"/v1/runs/{first}/replay", 201)
    assert (again["replay_of"], again["job"], again["params"]) == (first, "steady", {})
    assert again["package"] == doors.platform.get_run(first).package
    doors.ended(again["id"])
    found = doors.ask("GET", f"/v1/runs/{again['id']}/comparison", 200)
    assert found["equal"] is True
    (output,) = found["outputs"]
    assert (output["output"], output["by"], output["equal"]) == ("dataset:figures", "version", True)

    fickle = doors.ran("fickle")
    again = doors.ended(doors.ask("POST", f"/v1/runs/{fickle}/replay", 201)["id"])
    assert doors.ask("GET", f"/v1/runs/{again}/comparison", 200)["equal"] is False
    ledger = doors.platform.ledger
    made = doors.platform.get_run(fickle).outputs[0]
    assert ledger.versions.head("test", Ref("dataset", "figures")) == made
    assert [run.id for _, run in ledger.made("test", "dataset")] == [fickle, first]
    newest = ledger.last_success("test", "fickle")
    assert newest is not None
    assert newest.id == fickle
    doors.ask("POST", f"/v1/runs/{again}/replay", 400)
    doors.ask("POST", f"/v1/runs/{doors.ran('broken')}/replay", 400)
    doors.ask("POST", "/v1/runs/999/replay", 404)


def test_the_run_knows_what_it_ran_in_and_lineage_tells(doors: Doors) -> None:
    run = doors.ran("steady")
    (attempt,) = doors.ask("GET", f"/v1/runs/{run}/attempts", 200)
    assert {"python", "manta", "platform", "lock"} <= set(attempt["environment"])
    found = doors.ask("GET", f"/v1/projects/test/lineage?of=run:{run}", 200)
    assert [node["id"] for node in found["nodes"]] == [f"run:{run}", "dataset:figures@7"]
    assert found["nodes"][0]["detail"]["lock"] == attempt["environment"]["lock"]
    assert found["edges"] == [[f"run:{run}", "dataset:figures@7", "made"]]
    doors.ask("GET", "/v1/projects/test/lineage?of=run:999", 404)
    doors.ask("GET", "/v1/projects/test/lineage?of=nonsense", 400)
    doors.ask("GET", "/v1/projects/test/lineage?of=run:1&direction=sideways", 400)
