"""The engine: Ray, as the control wing knows it, through the REST APIs of its dashboard."""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import httpx

from manta.control.parts import ray_folder
from manta.errors import Unavailable
from manta.secrets import redactor, resolve_url, without_passwords
from manta.settings import WORKER_VARIABLE, Settings

CHUNK_BYTES = 2**20
ASKED_ONE_BY_ONE = 8  # submissions; a list of all that Ray remembers grows without end
KILLED = re.compile(r"exit code (-9|137)\b")
OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|memory monitor|MemoryError|std::bad_alloc", re.IGNORECASE)


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
    """A submission as the engine sees it; ``message`` is its own word on how it ended, ``out_of_memory``
    whether it is known to have been killed for memory."""

    state: JobState
    message: str = ""
    out_of_memory: bool = False


@dataclass(frozen=True)
class EngineApp:
    """A serving application: its status in Ray Serve's words, and what went wrong."""

    status: str
    message: str = ""


class Engine(Protocol):
    """What the controller asks of whatever executes runs. Everything raises Unavailable when it does not
    answer."""

    def submit(
        self, submission: str, run_id: int, package: str, content: bytes, *, grace: float = 20.0
    ) -> None:
        """Start a run; asked to stop, it is given ``grace`` seconds. The same submission again changes
        nothing."""

    def jobs(self, submissions: Collection[str] | None = None) -> Mapping[str, EngineJob]:
        """Of these submissions, or of all, those that the engine remembers."""

    def stop(self, submission: str) -> None:
        """Ask a submission to stop. Returns at once; called again until it has stopped."""

    def logs(self, submission: str, offset: int = 0) -> Iterator[bytes]:
        """What it has printed from byte ``offset`` on, in pieces of bounded size; nothing for a submission
        whose log the engine does not have."""

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
        self._http = httpx.Client(base_url=resolve_url(settings.ray_url), timeout=30.0)
        self._local = settings.ray_url == f"http://{settings.host}:{settings.ports.dashboard}"
        # A local head lives in this very environment; elsewhere `python` is the image's.
        self._python = shlex.quote(sys.executable) if self._local else "python"
        self._oom_kills = _oom_kills()
        self._seen_ended: dict[str, bool] = {}  # submission → whether it was killed for memory

    def submit(
        self, submission: str, run_id: int, package: str, content: bytes, *, grace: float = 20.0
    ) -> None:
        uri = self._upload(package, content)
        body = {
            # No shell stays between Ray and the worker: its exit status is the worker's own.
            "entrypoint": f"exec {self._python} -m manta.worker {run_id}",
            "submission_id": submission,
            "runtime_env": {
                "working_dir": uri,
                "env_vars": {
                    WORKER_VARIABLE: self._settings.for_worker(),
                    "MANTA_SUBMISSION": submission,
                    "RAY_JOB_STOP_WAIT_TIME_S": str(math.ceil(grace)),
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

    def jobs(self, submissions: Collection[str] | None = None) -> Mapping[str, EngineJob]:
        if submissions is None or len(submissions) > ASKED_ONE_BY_ONE:
            listed = self._call("GET", "/api/jobs/").json()
        else:
            answers = [self._call("GET", f"/api/jobs/{each}", accept=(200, 404)) for each in submissions]
            listed = [answer.json() for answer in answers if answer.status_code == 200]
        oom_kills = _oom_kills() if self._local else 0
        found = {
            job["submission_id"]: self._job(job, oom_kills)
            for job in listed
            if job.get("submission_id") and (submissions is None or job["submission_id"] in submissions)
        }
        self._oom_kills = oom_kills
        return found

    def _job(self, job: dict[str, Any], oom_kills: int) -> EngineJob:
        submission, state, message = job["submission_id"], JobState(job["status"]), job.get("message") or ""
        if state is not JobState.FAILED:
            return EngineJob(state, message)
        if submission not in self._seen_ended:
            # The kernel says that it killed something for memory, not what: a process that was killed in the
            # same moment is taken for it.
            killed = job.get("driver_exit_code") in (-9, 137) or KILLED.search(message) is not None
            by_kernel = killed and oom_kills > self._oom_kills
            self._seen_ended[submission] = by_kernel or OUT_OF_MEMORY.search(message) is not None
        return EngineJob(state, message, self._seen_ended[submission])

    def stop(self, submission: str) -> None:
        self._call("POST", f"/api/jobs/{submission}/stop", accept=(200, 404, 500))

    def logs(self, submission: str, offset: int = 0) -> Iterator[bytes]:
        # A local head's file is read in place, also that of a head that has died since. Elsewhere Ray sends
        # it from its beginning each time, and what is known already is dropped on the way.
        name = f"job-driver-{submission}.log"
        if self._local:
            for path in ray_folder(self._settings).glob(f"session_2*/logs/{name}"):
                yield from read_file(path, offset)
            return
        known = self._call("GET", f"/api/jobs/{submission}", accept=(200, 404))
        node = known.json().get("driver_node_id") if known.status_code == 200 else None
        if node is None:
            return
        query: dict[str, str | int] = {"node_id": node, "filename": name, "lines": -1}
        try:
            with self._http.stream("GET", "/api/v0/logs/file", params=query) as answer:
                if answer.status_code != 200:
                    return
                for chunk in answer.iter_bytes(CHUNK_BYTES):
                    yield chunk[max(offset, 0) :]
                    offset -= len(chunk)
        except httpx.HTTPError as error:
            raise self._silent(error) from error

    def put_apps(self, apps: list[dict[str, Any]]) -> None:
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": self._settings.host, "port": self._settings.ports.serve},
            "applications": [
                {
                    "name": app["name"],
                    "route_prefix": app["route"],
                    "import_path": app["import_path"],
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
            raise self._silent(error) from error
        if answer.status_code not in accept:
            raise Unavailable(f"Ray answered {answer.status_code} to {method} {path}: {answer.text[-500:]}")
        return answer

    def _silent(self, error: httpx.HTTPError) -> Unavailable:
        return Unavailable(
            f"Ray does not answer at {without_passwords(self._settings.ray_url)}: "
            f"{redactor.text(str(error)) or type(error).__name__}",
            hint="`manta status` shows what is up; `manta up` starts what is not",
        )


def read_file(path: Path, offset: int) -> Iterator[bytes]:
    """The file from byte ``offset`` on, in pieces."""
    with path.open("rb") as held:
        held.seek(offset)
        while chunk := held.read(CHUNK_BYTES):
            yield chunk


def _oom_kills() -> int:
    """How many processes this machine's kernel has killed for memory; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _why(app: dict[str, Any]) -> str:
    said = [app.get("message") or ""]
    said += [each.get("message") or "" for each in app.get("deployments", {}).values()]
    return "\n".join(each for each in said if each)
