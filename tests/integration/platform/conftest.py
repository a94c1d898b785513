"""One whole platform for these tests: a copy of the reference project made by `manta init`, started by
`manta up` on free ports, and applied. Everything is done by the commands of the README."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from manta.control.processes import MARK
from tests.conftest import free_ports

BIN = Path(sys.executable).parent


@dataclass
class Commands:
    """The command line in a project's folder. ``ports`` are in the environment of each command."""

    root: Path
    env: dict[str, str]

    def __call__(self, *words: str, status: int = 0, text: str | None = None) -> str:
        """Run `manta WORDS`; standard output. The exit status must be ``status``."""
        done = self.shell(f"{BIN}/manta", *words, text=text)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout if status == 0 else done.stdout + done.stderr

    def shell(self, *words: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=self.root, env=self.env, input=text, capture_output=True, text=True, timeout=600
        )


def environment() -> dict[str, str]:
    ports = free_ports().model_dump()
    return {
        **{name: os.environ[name] for name in os.environ if not name.startswith(("MANTA_", "RAY_ADDRESS"))},
        **{f"MANTA_PORTS__{name.upper()}": str(port) for name, port in ports.items()},
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "200",
    }


def left_by(home: Path) -> list[str]:
    """Processes that still know of this state folder, by command line or environment."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            known = str(home) in words or str(home) in process.environ().get(MARK, "")
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        if known and process.pid != os.getpid():
            found.append(f"{process.pid} {words[:120]}")
    return found


@pytest.fixture(scope="session")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """The reference project under another name, up and applied, as `manta demo` leaves it."""
    root = tmp_path_factory.mktemp("platform") / "arrivals"
    env = environment()
    manta = Commands(root.parent, env)
    manta("init", str(root))
    manta.root = root
    try:
        print(manta("demo", "."))
        yield manta
    finally:
        manta("down")
        until = time.monotonic() + 30
        while left := left_by(root / ".manta"):
            assert time.monotonic() < until, left
            time.sleep(0.2)
