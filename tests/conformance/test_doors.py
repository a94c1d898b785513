"""One suite over every door: Platform, the client in process and over HTTP, and the command line. Runs are
real processes; the server is a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import manta
from manta.app import Platform
from manta.settings import Settings
from manta.testing import Conformance, write_project
from tests.conformance.doors import ClientDoor, CommandDoor, PlatformDoor
from tests.conftest import free_ports

UP_SECONDS = 60
NO_REPLAY = {"test_a_replay_repeats_a_run": "replay is not in the API yet"}
NO_AUDIT = {"test_the_audit_names_who_submitted": "`manta audit` is not there yet"}


@pytest.fixture(scope="class")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ports = ", ".join(f"{name}: {port}" for name, port in free_ports().model_dump().items())
    return write_project(tmp_path_factory.mktemp("conformance"), f"ports: {{{ports}}}")


@contextlib.contextmanager
def server(root: Path) -> Iterator[str]:
    """The server of the project in ``root``, as a process; its address."""
    url = Settings.load(root).server_url
    with (root / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "manta.api"], cwd=root, stdout=log, stderr=log, env=environment()
        )
    try:
        until = time.monotonic() + UP_SECONDS
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/healthz").raise_for_status()
                break
            assert process.poll() is None, (root / "server.log").read_text()
            assert time.monotonic() < until, (root / "server.log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("MANTA_")} | {
        "COLUMNS": "400"
    }


class TestPlatform(Conformance):
    not_supported = NO_REPLAY

    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[PlatformDoor]:
        platform = Platform(Settings.load(root))
        platform.start()
        yield PlatformDoor(platform)
        platform.close()


class TestClientInProcess(Conformance):
    not_supported = NO_REPLAY

    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[ClientDoor]:
        with manta.connect(root=root) as client:
            yield ClientDoor(client)


class TestClientOverHttp(Conformance):
    not_supported = NO_REPLAY

    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[ClientDoor]:
        with server(root) as url, manta.connect(url, root=root) as client:
            yield ClientDoor(client)


class TestCommandLine(Conformance):
    not_supported = NO_REPLAY | NO_AUDIT

    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[CommandDoor]:
        with server(root):
            yield CommandDoor(root, environment())
