"""`up` and `down` with the real parts. The tests build on one another: each leaves the platform up."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from manta.control import processes
from manta.control.local import Local, doctor
from manta.control.parts import all_parts, mlflow, ray_folder
from manta.settings import WORKER_VARIABLE, Settings
from tests.conftest import free_ports
from tests.integration.local.web_part import listening, until

pytestmark = pytest.mark.platform

SCRIPT = """
from manta.control.local import Local
from manta.settings import Settings
Local(Settings.load()).up(lambda *told: print(*told, flush=True))
"""
DEAF = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('deaf', flush=True); time.sleep(600)"
)


def ask(url: str, body: Any = None, method: str | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {"Content-Type": "application/json"}, method=method)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


@pytest.fixture(scope="module")
def its(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("p")
    return Settings(project="test", root=root, home=root / ".manta", ports=free_ports(), cpus=3)._resolved()


@pytest.fixture(scope="module")
def local(its: Settings) -> Iterator[Local]:
    """A platform whose first `up` was killed half-way, and whose second finished the work."""
    environment = os.environ | {WORKER_VARIABLE: its.for_worker()}
    killed = subprocess.Popen(
        [sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        until(
            lambda: (
                (its.home / "state.json").exists()
                and len(json.loads((its.home / "state.json").read_text())) == 3
            )
        )
        killed.kill()
        killed.wait()
        local = Local(its)
        began = time.monotonic()
        local.up(lambda *_: None)
        print(f"up after {time.monotonic() - began:.1f} s")
        yield local
    finally:
        Local(its).down(lambda *_: None)
        shutil.rmtree(ray_folder(its).parent, ignore_errors=True)


def pids(local: Local) -> dict[str, int | None]:
    return {part.name: part.pid for part in local.status()}


def family(its: Settings) -> list[psutil.Process]:
    state = json.loads((its.home / "state.json").read_text())
    return [
        process
        for spec in all_parts(its)
        for process in processes.belonging(
            f"{its.home}:{spec.name}",
            [processes.Started(state[spec.name]["pid"], state[spec.name]["created"])],
        )
    ]


def line_of(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # of those that come and go
        return ""


def test_all_answer_once_and_on_the_loopback_interface_only(its: Settings, local: Local) -> None:
    assert [part.state for part in local.status()] == ["up", "up", "up"]
    everyone = family(its)
    lines = [line_of(process) for process in everyone]
    for once in (
        "ray.scripts.scripts start",
        "gcs_server",
        "raylet/raylet",
        "mlflow.server.fastapi_app",
        "manta.api",
    ):
        assert len([line for line in lines if once in line]) == 1, once
    heard = set[str]().union(*map(listening, everyone))
    assert heard
    assert heard <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert all(check.ok for check in doctor(its)), [check for check in doctor(its) if not check.ok]


def test_a_second_up_starts_nothing(its: Settings, local: Local) -> None:
    before = pids(local)
    addresses = local.up(lambda *_: None)
    assert pids(local) == before
    assert addresses == {
        "ray": its.ray_url,
        "mlflow": its.mlflow_url,
        "server": its.server_url,
        "serve": its.serve_url,
    }


def test_mlflow_keeps_runs_and_artifacts_in_the_state_folder(its: Settings, local: Local) -> None:
    made = ask(f"{its.mlflow_url}/api/2.0/mlflow/experiments/create", {"name": "e"})
    assert made["experiment_id"]
    request = urllib.request.Request(
        f"{its.mlflow_url}/api/2.0/mlflow-artifacts/artifacts/1/x.txt", b"hello", method="PUT"
    )
    urllib.request.urlopen(request, timeout=30).close()
    assert (its.home / "artifacts" / "1" / "x.txt").read_bytes() == b"hello"
    assert (its.home / "mlflow.db").stat().st_size > 100_000


def test_a_job_on_ray_imports_manta_and_finds_the_platform(its: Settings, local: Local) -> None:
    code = "from manta.settings import Settings as s; print(s.on_cluster().home, s.on_cluster().ports.mlflow)"
    assert ask(f"{its.ray_url}/api/v0/nodes")["data"]["result"]["result"][0]["resources_total"]["CPU"] == 3
    job = ask(f"{its.ray_url}/api/jobs/", {"entrypoint": f'{sys.executable} -c "{code}"'})["submission_id"]
    until(lambda: ask(f"{its.ray_url}/api/jobs/{job}")["status"] in ("SUCCEEDED", "FAILED"))
    assert f"{its.home} {its.ports.mlflow}" in ask(f"{its.ray_url}/api/jobs/{job}/logs")["logs"]


def test_what_was_killed_comes_back_and_the_rest_stays(its: Settings, local: Local) -> None:
    before = pids(local)
    os.kill(before["mlflow"] or 0, signal.SIGKILL)
    [raylet] = [process for process in family(its) if "raylet/raylet" in line_of(process)]
    raylet.kill()
    until(lambda: {part.name: part.state for part in local.status()}["mlflow"] == "down")
    told: list[tuple[str, str, str]] = []
    local.up(lambda *t: told.append(t))
    after = pids(local)
    assert after["server"] == before["server"]
    assert after["ray"] != before["ray"]
    assert after["mlflow"] != before["mlflow"]
    assert [part.state for part in local.status()] == ["up", "up", "up"]
    found = ask(f"{its.mlflow_url}/api/2.0/mlflow/experiments/get-by-name?experiment_name=e")
    assert found["experiment"]["name"] == "e"


def test_down_leaves_nothing_not_even_a_job_that_does_not_listen(its: Settings, local: Local) -> None:
    job = ask(f"{its.ray_url}/api/jobs/", {"entrypoint": f'{sys.executable} -c "{DEAF}"'})["submission_id"]
    until(lambda: "deaf" in ask(f"{its.ray_url}/api/jobs/{job}/logs")["logs"])
    everyone = family(its)
    assert any(DEAF in line_of(process) for process in everyone)
    told: list[tuple[str, str, str]] = []
    Local(its, [replace(spec, grace=4.0) for spec in all_parts(its)]).down(lambda *t: told.append(t))
    assert [(name, state) for name, state, _ in told] == [
        ("server", "down"),
        ("mlflow", "down"),
        ("ray", "down"),
    ]
    assert all("stopped" in detail for _, _, detail in told)
    assert [line_of(process) for process in everyone if processes.is_alive(process)] == []
    assert all(processes.is_free("127.0.0.1", port) for port in its.ports.model_dump().values())
    assert [part.state for part in local.status()] == ["down", "down", "down"]
    local.down(lambda *_: None)


def test_mlflows_store_survives_a_first_start_cut_short(tmp_path: Path) -> None:
    settings = Settings(project="test", root=tmp_path, home=tmp_path)._resolved()
    part = mlflow(settings)
    store = tmp_path / "mlflow.db"
    part.prepare()
    store.write_bytes(b"half a migration")
    part.prepare()  # it never answered, so nobody has written to it: begun anew
    assert sqlite3.connect(store).execute("PRAGMA journal_mode").fetchone() == ("wal",)
    part.settle()
    part.prepare()  # of this release and finished: left alone
    assert sqlite3.connect(store).execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_a_new_release_of_mlflow_upgrades_the_store_and_keeps_what_is_in_it(
    its: Settings, local: Local
) -> None:
    (its.home / "mlflow.db.version").write_text("3.0.0")
    (its.home / "mlflow.db.unfinished").touch()  # as if the `up` that waited for MLflow had been killed
    before = (its.home / "mlflow.db").stat().st_ino
    mlflow(its).prepare()
    assert (its.home / "mlflow.db").stat().st_ino != before
    with contextlib.closing(sqlite3.connect(its.home / "mlflow.db")) as connection:
        assert ("e",) in connection.execute("SELECT name FROM experiments").fetchall()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_the_control_wing_imports_no_engine() -> None:
    code = "import sys, manta.control.local; print({'ray', 'mlflow', 'feast', 'torch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
