"""An engine without Ray: each run is a process on this machine. For kinds of work that need no cluster,
and for testing the controller against real processes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from manta.control.engine import EngineApp, EngineJob, JobState, read_file
from manta.errors import ExtraMissing
from manta.settings import WORKER_VARIABLE, Settings

STARTING_SECONDS = 5.0  # within which whoever made a submission's file has started its process, or died


class InlineEngine:
    """Remembers its submissions in ``folder``, for whoever opens it there again. ``command`` is what executes
    a run, before its id.

    Of a submission the folder holds `NAME.job` (made first: who makes it starts the process), `NAME.log`,
    `NAME.exit` (its exit status, written by the shell around it) and `NAME.stop` (it was asked to stop).
    """

    def __init__(self, settings: Settings, folder: Path, command: list[str] | None = None) -> None:
        self._settings = settings
        self._folder = folder
        self._command = command or [sys.executable, "-m", "manta.worker"]
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def submit(
        self, submission: str, run_id: int, package: str, content: bytes, *, grace: float = 20.0
    ) -> None:
        root = self._folder / package
        if not root.exists():
            partial = self._folder / f".{package}-{os.getpid()}"
            partial.mkdir(parents=True, exist_ok=True)
            zipfile.ZipFile(io.BytesIO(content)).extractall(partial)
            with contextlib.suppress(OSError):  # somebody else was first
                partial.rename(root)
        job = self._file(submission, "job")
        try:
            held = os.open(job, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return
        handed = {WORKER_VARIABLE: self._settings.for_worker(), "MANTA_SUBMISSION": submission}
        line = shlex.join([*self._command, str(run_id)])
        status = shlex.quote(str(self._file(submission, "exit")))
        with self._file(submission, "log").open("wb") as log:
            started = subprocess.Popen(
                ["/bin/sh", "-c", f"trap : TERM; {line}; echo $? > {status}.new; mv {status}.new {status}"],
                cwd=root,
                env=os.environ | handed,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[submission] = started
        os.write(held, json.dumps({"pid": started.pid, "grace": grace}).encode())
        os.close(held)

    def jobs(self, submissions: Collection[str] | None = None) -> Mapping[str, EngineJob]:
        known = {path.stem for path in self._folder.glob("*.job")}
        return {each: self._job(each) for each in known if submissions is None or each in submissions}

    def _job(self, submission: str) -> EngineJob:
        exit_file = self._file(submission, "exit")
        alive = bool(self._processes(submission))
        if alive and not exit_file.exists():
            return EngineJob(JobState.RUNNING)
        if not self._asked(submission) and self._age(submission) < STARTING_SECONDS:
            return EngineJob(JobState.PENDING)
        status = exit_file.read_text().strip() if exit_file.exists() else "137"
        if self._file(submission, "stop").exists():
            return EngineJob(JobState.STOPPED)
        if status == "0":
            return EngineJob(JobState.SUCCEEDED)
        return EngineJob(JobState.FAILED, f"exit status {status}")

    def _age(self, submission: str) -> float:
        return time.time() - self._file(submission, "job").stat().st_mtime

    def stop(self, submission: str) -> None:
        stop = self._file(submission, "stop")
        if stop.exists() or not self._file(submission, "job").exists():
            return
        stop.touch()
        group = self._processes(submission)
        for process in group:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)

        def kill() -> None:
            for process in group:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

        killer = threading.Timer(self._asked(submission).get("grace", 20.0), kill)
        killer.daemon = True
        killer.start()

    def forget(self) -> None:
        """As a cluster does whose head dies: everything is killed, and nothing remembered."""
        for path in self._folder.glob("*.job"):
            for process in self._processes(path.stem):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
                    process.wait()
            path.unlink()

    def logs(self, submission: str, offset: int = 0) -> Iterator[bytes]:
        path = self._file(submission, "log")
        return read_file(path, offset) if path.exists() else iter(())

    def _processes(self, submission: str) -> list[psutil.Process]:
        """The shell and the worker in it, while they live."""
        child = self._children.get(submission)
        if child is not None and child.poll() is not None:
            return []
        try:
            shell = psutil.Process(self._asked(submission)["pid"])
            if shell.status() == psutil.STATUS_ZOMBIE or submission not in " ".join(shell.cmdline()):
                return []
            return [shell, *shell.children(recursive=True)]
        except (psutil.NoSuchProcess, KeyError):
            return []

    def _asked(self, submission: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file(submission, "job").read_text())
        except (OSError, ValueError):
            return {}  # who made it died before it could say more
        return found

    def _file(self, submission: str, what: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{submission}.{what}"

    def put_apps(self, apps: list[dict[str, Any]]) -> None:
        if apps:
            raise ExtraMissing("endpoints need Ray Serve", hint="use an engine on Ray")

    def apps(self) -> Mapping[str, EngineApp]:
        return {}

    def check(self) -> None:
        """It is here."""
