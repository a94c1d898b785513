"""Fixtures shared by all tests: free ports, settings in a folder of their own, and one Ray cluster."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from manta.settings import Ports, Settings

# Set before anything imports ray: nothing is sent anywhere, and a loaded machine is given time.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@pytest.fixture(autouse=True)
def no_manta_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests do not depend on what the shell has set."""
    for name in [name for name in os.environ if name.startswith("MANTA_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of an empty project in a folder of its own, on free ports."""
    names = list(Ports.model_fields)
    ports = Ports(**dict(zip(names, free_ports(len(names)), strict=True)))
    return Settings(project="test", root=tmp_path, home=tmp_path / ".manta", ports=ports)._resolved()


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One Ray cluster in this process for the whole session, with 4 logical CPUs."""
    import ray

    folder = tempfile.mkdtemp(prefix="rt", dir="/tmp")
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=512 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        _temp_dir=folder,
        # Workers unpickle functions of test modules by reference.
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}},
    )
    yield
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
