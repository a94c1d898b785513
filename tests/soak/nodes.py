"""A Ray cluster of several nodes on this machine, each under a `ray start` of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from tests.conftest import free_ports

START_SECONDS = 400.0
OPTIONS = (
    "--block",
    "--disable-usage-stats",
    "--num-cpus=1",
    f"--object-store-memory={128 * 2**20}",
    # 0: any. Ray's defaults are fixed numbers, of which a machine has one set only.
    "--dashboard-agent-listen-port=0",
    "--metrics-export-port=0",
    "--min-worker-port=0",
    "--max-worker-port=0",
)
RAY = (sys.executable, "-m", "ray.scripts.scripts")


class Nodes:
    """A head and others, of one CPU each."""

    def __init__(self, folder: Path) -> None:
        """``folder``: of a short path, for Ray's sockets."""
        self._port = free_ports().ray
        self.address = f"127.0.0.1:{self._port}"
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, others: int) -> None:
        where = (f"--port={self._port}", f"--temp-dir={self._folder}")
        self._start("--head", "--include-dashboard=false", *where)
        self._wait_for(1)
        for count in range(others):  # one after the other: a raylet gives its agents 15 s to start
            self._start(f"--address={self.address}")
            self._wait_for(2 + count)

    def _start(self, *options: str) -> None:
        with (self._folder / "nodes.log").open("ab") as log:
            command = [*RAY, "start", *OPTIONS, *options]
            self._started.append(subprocess.Popen(command, stdout=log, stderr=log))

    def _wait_for(self, count: int) -> None:
        until = time.monotonic() + START_SECONDS
        while len(self._alive()) < count:
            if time.monotonic() > until or any(process.poll() is not None for process in self._started):
                raise RuntimeError((self._folder / "nodes.log").read_text()[-3000:])
            time.sleep(0.5)

    def _alive(self) -> list[Any]:
        import ray

        try:
            found = ray._raylet.GcsClient(address=self.address).get_all_node_info()
        except Exception:  # it is not there yet, and says so in many ways
            return []
        return [node for node in found.values() if node.state == 0]

    def drain(self, node: str, seconds: int) -> None:
        """As a spot machine that is taken back in so many seconds."""
        told = (f"--address={self.address}", f"--node-id={node}", "--reason-message=taken back")
        reason = ("--reason=DRAIN_NODE_REASON_PREEMPTION", f"--deadline-remaining-seconds={seconds}")
        subprocess.run([*RAY, "drain-node", *told, *reason], check=True, capture_output=True)

    def stop(self) -> None:
        for process in self._started:
            try:
                first = psutil.Process(process.pid)
                for each in [first, *first.children(recursive=True)]:
                    each.kill()
            except psutil.NoSuchProcess:
                continue
            process.wait()
