"""The adopted path: `ray job submit --working-dir . -- python -m manta.worker NAME [--param k=v …]`.

Whoever submits straight to Ray (Airflow's Ray operator, KubeRay's RayJob, a shell) gets a run of the ledger
all the same: the Ray job registers itself with the platform's server, and goes on as the worker of that run.
Its project is the working directory; its platform is the one that the cluster belongs to
(:meth:`Settings.on_cluster`), and it comes with a key, so that its run has a name on it.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import httpx

from manta.errors import InvalidInput, PlatformDown, from_problem
from manta.ledger.runs import Run
from manta.project import load
from manta.settings import WORKER_VARIABLE, Settings

# Ray puts the job's configuration there for its driver; in its metadata is the submission's own name.
RAY_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"
PATIENCE_SECONDS = 20.0  # a server that is being started again is waited for


def adopt(words: list[str]) -> Run:
    """Register this Ray job as a run of the job that ``words`` name, and put into the environment what a
    worker of that run finds there. Called again by the same Ray job, it gives the same run.

    Raises:
        InvalidInput: this is not a Ray job, or a parameter is not k=v or none of the job's.
        NotFound: the project has no such job.
        PlatformDown: the platform does not answer. Nothing is run unrecorded.
        Unauthenticated, Forbidden: there is no key, or one that may not submit.
    """
    arguments = _parser().parse_args(words)
    submission = _submission()
    settings = Settings.on_cluster(Path.cwd())
    with _Server(settings) as server:
        server.ask("GET", "/healthz")  # before the project is loaded, for that can take its time
        project, content = load(settings)
        if server.ask("HEAD", f"/v1/packages/{project.package}", accept=(200, 404)).status_code == 404:
            server.ask("PUT", f"/v1/packages/{project.package}", content=content)
        body = {
            "project": project.model_dump(mode="json"),
            "job": arguments.name,
            "params": dict(map(_param, arguments.param)),
            "submission": submission,
        }
        run = Run(**server.ask("POST", f"/v1/projects/{project.name}/adoptions", json=body).json())
    os.environ[WORKER_VARIABLE] = settings.for_worker()
    os.environ["MANTA_SUBMISSION"] = submission
    print(f"manta: Ray job {submission} is run {run.id} of {settings.server_url}", flush=True)
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m manta.worker", description="Execute a job on Ray.")
    parser.add_argument("name", help="a job of the project in the working directory")
    parser.add_argument("--param", action="append", default=[], help="k=v; v is JSON, or else text")
    return parser


def _submission() -> str:
    config: dict[str, Any] = json.loads(os.environ.get(RAY_JOB_CONFIG, "{}"))
    submission = (config.get("metadata") or {}).get("job_submission_id")
    if not submission:
        raise InvalidInput(
            "this process is not the driver of a Ray job",
            hint="`manta run NAME`, or: ray job submit --working-dir . -- python -m manta.worker NAME",
        )
    return str(submission)


def _param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise InvalidInput(f"--param {text!r} is not k=v", hint="for example --param epochs=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


class _Server:
    """The platform's server, as far as an adopted job asks it. Each question may be asked twice."""

    def __init__(self, settings: Settings) -> None:
        key = _key(settings)
        self._http = httpx.Client(
            base_url=settings.server_url,
            timeout=30.0,
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(self, method: str, path: str, accept: tuple[int, ...] = (200, 201, 204), **content: Any) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._http.request(method, path, **content)
                break
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise PlatformDown(
                        f"the platform does not answer at {error.request.url}: "
                        f"{error or type(error).__name__}; nothing was run",
                        hint="start it (`manta up`), or set MANTA_SERVER_URL in the cluster's environment",
                    ) from None
                time.sleep(0.5)
        if answer.status_code in accept:
            return answer
        try:
            problem = answer.json()
        except ValueError:
            problem = {"detail": f"{answer.request.url} answered {answer.status_code}: {answer.text[:500]}"}
        raise from_problem(problem)


def _key(settings: Settings) -> str:
    """The API key: MANTA_API_KEY, the file that MANTA_API_KEY_FILE names, or the owner's on a laptop."""
    if key := os.environ.get("MANTA_API_KEY"):
        return key
    file = Path(os.environ.get("MANTA_API_KEY_FILE") or settings.home / "owner.key")
    return file.read_text().strip() if file.is_file() else ""
