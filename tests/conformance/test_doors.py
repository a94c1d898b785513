"""One suite over every door: Platform, the client in process and over HTTP, and the command line. Runs are
real processes; the server is a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import manta
from manta.app import Platform
from manta.settings import Settings
from manta.testing.doors import Conformance, write_project
from tests.conformance.doors import ClientDoor, CommandDoor, PlatformDoor, environment, server
from tests.conftest import free_ports


@pytest.fixture(scope="class")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ports = ", ".join(f"{name}: {port}" for name, port in free_ports().model_dump().items())
    return write_project(tmp_path_factory.mktemp("conformance"), f"ports: {{{ports}}}")


class TestPlatform(Conformance):
    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[PlatformDoor]:
        platform = Platform(Settings.load(root))
        platform.start()
        yield PlatformDoor(platform)
        platform.close()


class TestClientInProcess(Conformance):
    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[ClientDoor]:
        with manta.connect(root=root) as client:
            yield ClientDoor(client)


class TestClientOverHttp(Conformance):
    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[ClientDoor]:
        with server(root) as url, manta.connect(url, root=root) as client:
            yield ClientDoor(client)


class TestCommandLine(Conformance):
    @pytest.fixture(scope="class")
    def door(self, root: Path) -> Iterator[CommandDoor]:
        with server(root):
            yield CommandDoor(root, environment())
