"""The engine: Ray, as the control wing knows it, through the REST APIs of its dashboard."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import httpx

from manta.errors import Unavailable
from manta.settings import WORKER_VARIABLE, Settings

STOP_GRACE_SECONDS = 20


class JobState(StrEnum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)


@dataclass(frozen=True)
class EngineJob:
    """A submission as the engine sees it; ``message`` is its own word on how it ended."""

    state: JobState
    message: str = ""


@dataclass(frozen=True)
class EngineApp:
    """A serving application: its status in Ray Serve's words, and what went wrong."""

    status: str
    message: str = ""


class Engine(Protocol):
    """What the controller asks of whatever executes runs. Everything raises Unavailable when it does not
    answer."""

    def submit(self, submission: str, run_id: int, package: str, content: bytes) -> None:
        """Start a run. The same submission again changes nothing."""

    def jobs(self) -> Mapping[str, EngineJob]:
        """Every submission the engine remembers."""

    def stop(self, submission: str) -> None:
        """Ask a submission to stop. Returns at once; called again until it has stopped."""

    def logs(self, submission: str) -> str:
        """All that it has printed; empty for a submission the engine does not know."""

    def put_apps(self, apps: list[dict[str, Any]]) -> None:
        """Make these the serving applications: all of them, and no other."""

    def apps(self) -> Mapping[str, EngineApp]:
        """The serving applications there are."""

    def check(self) -> None:
        """Returns when it answers."""


class RayEngine:
    """Ray, through the Jobs and Serve REST APIs."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._http = httpx.Client(base_url=settings.ray_url, timeout=30.0)
        local = settings.ray_url == f"http://{settings.host}:{settings.ports.dashboard}"
        # A local head lives in this very environment; elsewhere `python` is the image's.
        self._python = shlex.quote(sys.executable) if local else "python"

    def submit(self, submission: str, run_id: int, package: str, content: bytes) -> None:
        uri = self._upload(package, content)
        body = {
            "entrypoint": f"{self._python} -m manta.worker {run_id}",
            "submission_id": submission,
            "runtime_env": {
                "working_dir": uri,
                "env_vars": {
                    WORKER_VARIABLE: self._settings.for_worker(),
                    "MANTA_SUBMISSION": submission,
                    "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_SECONDS),
                    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
                    "PYTHONUNBUFFERED": "1",
                },
            },
            "metadata": {"manta_run": str(run_id)},
        }
        answer = self._call("POST", "/api/jobs/", json=body, accept=(200, 500))
        if answer.status_code == 500 and "already" not in answer.text:
            raise Unavailable(f"Ray refused submission {submission}: {answer.text[-500:]}")

    def _upload(self, package: str, content: bytes) -> str:
        name = f"_ray_pkg_{package}.zip"
        path = f"/api/packages/gcs/{name}"
        if self._call("GET", path, accept=(200, 404)).status_code == 404:
            self._call("PUT", path, content=content)
        return f"gcs://{name}"

    def jobs(self) -> Mapping[str, EngineJob]:
        listed = self._call("GET", "/api/jobs/").json()
        return {
            job["submission_id"]: EngineJob(JobState(job["status"]), job.get("message") or "")
            for job in listed
            if job.get("submission_id")
        }

    def stop(self, submission: str) -> None:
        self._call("POST", f"/api/jobs/{submission}/stop", accept=(200, 404, 500))

    def logs(self, submission: str) -> str:
        answer = self._call("GET", f"/api/jobs/{submission}/logs", accept=(200, 404, 500))
        return answer.json().get("logs") or "" if answer.status_code == 200 else ""

    def put_apps(self, apps: list[dict[str, Any]]) -> None:
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": self._settings.host, "port": self._settings.ports.serve},
            "applications": [
                {
                    "name": app["name"],
                    "route_prefix": app["route"],
                    "import_path": "manta.serving.app:build",
                    "runtime_env": {
                        "working_dir": self._upload(app["package"], app["content"]),
                        "env_vars": {WORKER_VARIABLE: self._settings.for_worker()},
                    },
                    "args": app["args"],
                    "deployments": [
                        {
                            "name": "endpoint",
                            "num_replicas": app["replicas"],
                            # New replicas are up before old ones go: an update does not stall requests.
                            "max_surge_percent": 100,
                            "ray_actor_options": {"num_cpus": app["cpus"]},
                            "user_config": app["user_config"],
                        }
                    ],
                }
                for app in apps
            ],
        }
        self._call("PUT", "/api/serve/applications/", json=config)

    def apps(self) -> Mapping[str, EngineApp]:
        listed = self._call("GET", "/api/serve/applications/").json().get("applications", {})
        return {name: EngineApp(app["status"], _why(app)) for name, app in listed.items()}

    def check(self) -> None:
        self._call("GET", "/api/version")

    def _call(
        self, method: str, path: str, accept: tuple[int, ...] = (200,), **content: Any
    ) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **content)
        except httpx.HTTPError as error:
            raise Unavailable(
                f"Ray does not answer at {self._settings.ray_url}: {error or type(error).__name__}",
                hint="`manta status` shows what is up; `manta up` starts what is not",
            ) from error
        if answer.status_code not in accept:
            raise Unavailable(f"Ray answered {answer.status_code} to {method} {path}: {answer.text[-500:]}")
        return answer


def _why(app: dict[str, Any]) -> str:
    said = [app.get("message") or ""]
    said += [each.get("message") or "" for each in app.get("deployments", {}).values()]
    return "\n".join(each for each in said if each)
