"""The canary in a real Ray cluster: neither its jobs' information nor any of its files hold the secret."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from manta.app import Platform
from manta.control import parts
from manta.control.local import Local
from manta.ledger.actor import OWNER
from manta.ledger.runs import State
from manta.project import load
from manta.settings import Settings
from tests.integration.secrets.canary import Canary

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Canary:
    made = Canary(tmp_path)
    monkeypatch.setenv("CANARY", made.token)  # Ray is started with it, as from a shell that has it
    return made


@pytest.fixture
def platform(canary: Canary, settings: Settings) -> Iterator[Platform]:
    root = settings.root / "project"
    ours = settings.model_copy(update={"root": root, "home": root / ".manta"})
    ours = ours.model_copy(update={"ledger_url": f"sqlite:///{ours.home}/ledger.db"})
    canary.write_project(root)
    local = Local(ours, [parts.ray(ours)])
    try:
        local.up(lambda *_: None)
        platform = Platform(ours)
        platform.start()
        yield platform
        platform.close()
    finally:
        local.down(lambda *_: None)
        shutil.rmtree(parts.ray_folder(ours).parent, ignore_errors=True)


def test_ray_is_told_no_secret(platform: Platform, canary: Canary) -> None:
    project, content = load(platform.settings)
    platform.put_package(project.package, content)
    runs = [platform.run(project, job, {}, by=OWNER).id for job in ("leak", "quiet")]
    until = time.monotonic() + 300
    while not all(platform.get_run(run).state.ended for run in runs):
        assert time.monotonic() < until, [platform.logs(run)[0].decode() for run in runs]
        time.sleep(0.5)
    leak, quiet = (platform.get_run(run) for run in runs)
    assert (leak.state, quiet.state) == (State.FAILED, State.SUCCEEDED), platform.logs(quiet.id)[0].decode()

    jobs = httpx.get(f"{platform.settings.ray_url}/api/jobs/").json()
    assert {job["metadata"]["manta_run"] for job in jobs} == {str(run) for run in runs}
    handed = json.dumps(jobs, ensure_ascii=False).encode()
    for job in jobs:
        handed += httpx.get(f"{platform.settings.ray_url}/api/jobs/{job['submission_id']}/logs").content
    assert b"[secret env:CANARY]" in handed
    assert canary.found_in(handed) == []
    assert canary.in_ledger(platform.settings.ledger_url) == []
    ray = parts.ray_folder(platform.settings)
    assert any(b"[secret env:CANARY]" in path.read_bytes() for path in ray.rglob("job-driver-*.log"))
    assert canary.in_files(ray) == []
    assert canary.in_files(platform.settings.root) == []
