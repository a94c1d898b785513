"""An engine without Ray: each run is a process on this machine. For kinds of work that need no cluster,
and for testing the controller against real processes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manta.control.engine import EngineApp, EngineJob, JobState
from manta.errors import ExtraMissing
from manta.settings import WORKER_VARIABLE, Settings


class InlineEngine:
    """Remembers its submissions as long as it lives. ``command`` is what executes a run, before its id."""

    def __init__(self, settings: Settings, folder: Path, command: list[str] | None = None) -> None:
        self._settings = settings
        self._folder = folder
        self._command = command or [sys.executable, "-m", "manta.worker"]
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._stopping: set[str] = set()

    def submit(self, submission: str, run_id: int, package: str, content: bytes) -> None:
        if submission in self._started:
            return
        root = self._folder / package
        if not root.exists():
            root.mkdir(parents=True)
            zipfile.ZipFile(io.BytesIO(content)).extractall(root)
        handed = {WORKER_VARIABLE: self._settings.for_worker(), "MANTA_SUBMISSION": submission}
        with self._log(submission).open("wb") as log:
            self._started[submission] = subprocess.Popen(
                [*self._command, str(run_id)],
                cwd=root,
                env=os.environ | handed,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def jobs(self) -> Mapping[str, EngineJob]:
        return {submission: self._job(submission) for submission in self._started}

    def _job(self, submission: str) -> EngineJob:
        status = self._started[submission].poll()
        if status is None:
            return EngineJob(JobState.RUNNING)
        if submission in self._stopping:
            return EngineJob(JobState.STOPPED)
        if status == 0:
            return EngineJob(JobState.SUCCEEDED)
        return EngineJob(JobState.FAILED, f"exit status {status}")

    def stop(self, submission: str) -> None:
        if submission in self._started:
            self._stopping.add(submission)
            self._started[submission].terminate()

    def logs(self, submission: str) -> str:
        path = self._log(submission)
        return path.read_text(errors="replace") if path.exists() else ""

    def _log(self, submission: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{submission}.log"

    def put_apps(self, apps: list[dict[str, Any]]) -> None:
        if apps:
            raise ExtraMissing("endpoints need Ray Serve", hint="use an engine on Ray")

    def apps(self) -> Mapping[str, EngineApp]:
        return {}

    def check(self) -> None:
        """It is here."""
