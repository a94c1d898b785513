"""Those who submit: four at once, over HTTP, each with its own project and idempotency keys, resending until
answered; one who applies; and one who has a run stopped when told to."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from manta.project import Described, Project, load
from manta.settings import Settings

# What is submitted, how often, and how it must end: state, end reason, attempts when none is lost.
JOBS = {
    "quick": (6, "SUCCEEDED", "DONE", 1),
    "slow": (3, "SUCCEEDED", "DONE", 1),
    "long": (1, "SUCCEEDED", "DONE", 1),
    "fails": (2, "FAILED", "USER_ERROR", 1),
    "flaky": (1, "SUCCEEDED", "DONE", 3),
    "dies": (1, "SUCCEEDED", "DONE", 2),
    "top": (2, "SUCCEEDED", "DONE", 1),
    "endless": (0, "STOPPED", "STOP_REQUESTED", 1),  # by who stops it
}
NEEDED = "base"  # by each run of `top`: one of its own, for its fingerprint is the submission's key
SENT_TWICE = 0.15
APPLIED = "applied"  # the project that is applied again and again
STOPPED = 0.3  # of the slow ones
AT_ONCE = 3  # runs of one submitter that have not ended
PATIENCE_SECONDS = 300.0


@dataclass
class Sent:
    """One submission as its sender knows it: ``run`` is None until the server has answered."""

    key: str
    job: str
    stopped: bool = False
    run: int | None = None


@dataclass
class Asked:
    """One apply as its sender knows it: ``runs`` is empty until the server has answered."""

    version: str
    runs: dict[str, int] = field(default_factory=dict)


class Http:
    """Asks the server until it answers: connections are lost, and it is down for a while."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = httpx.Client(base_url=settings.server_url, timeout=30)

    def ask(self, method: str, path: str, accept: tuple[int, ...] = (200, 201, 204), **content: Any) -> Any:
        """Raises RuntimeError for an answer that is neither accepted nor "not now"."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = self._client.request(method, path, headers=self._headers(), **content)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code in accept:
                return answer
            if answer is not None and answer.status_code not in (429, 503):
                raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:2000]}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"{method} {path}: not answered for {PATIENCE_SECONDS:.0f} s")
            time.sleep(0.1)

    def _headers(self) -> dict[str, str]:
        key = self._settings.home / "owner.key"
        return {"Authorization": f"Bearer {key.read_text().strip()}"} if key.exists() else {}


class Submitter(threading.Thread):
    """Submits until told to end, and then waits until what it has submitted has ended."""

    def __init__(self, number: int, seed: int, settings: Settings, project: Project, trace: Path) -> None:
        super().__init__(name=f"submitter-{number}", daemon=True)
        self.sent: list[Sent] = []
        self.trouble: list[str] = []
        self._ending = threading.Event()
        self._chance = random.Random(f"{seed}-{number}")
        self._number = number
        self._http = Http(settings)
        self._project = project.model_copy(update={"name": f"soak{number}"})
        self._trace = trace

    def end(self) -> None:
        self._ending.set()

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.trouble.append(f"{self.name}: {type(error).__name__}: {error}")

    def _work(self) -> None:
        active: list[Sent] = []
        while not self._ending.is_set():
            if len(active) < AT_ONCE:
                active.append(self._submit())
                continue
            self._ending.wait(0.5)
            going_on = self._active()
            active = [sent for sent in active if sent.run in going_on]

    def _submit(self) -> Sent:
        job = self._chance.choices(list(JOBS), [weight for weight, *_ in JOBS.values()])[0]
        sent = self._send(job)
        if self._chance.random() < SENT_TWICE and self._post(sent) != sent.run:
            self.trouble.append(f"key {sent.key}: a second run for the same submission")
        if job == "slow" and self._chance.random() < STOPPED:
            self._ending.wait(self._chance.uniform(0, 5))
            self._halt(sent)
        return sent

    def _send(self, job: str) -> Sent:
        sent = Sent(f"{self._number}-{len(self.sent)}", job)
        self.sent.append(sent)
        sent.run = self._post(sent)
        return sent

    def _halt(self, sent: Sent) -> None:
        sent.stopped = True
        self._http.ask("POST", f"/v1/runs/{sent.run}/stop")

    def _post(self, sent: Sent) -> int:
        project = versioned(self._project, {NEEDED: sent.key})
        body = {"project": project.model_dump(mode="json"), "job": sent.job, "key": sent.key}
        path = f"/v1/projects/{self._project.name}/runs"
        return int(self._http.ask("POST", path, json=body).json()["id"])

    def _active(self) -> set[int]:
        path = f"/v1/projects/{self._project.name}/runs"
        page = self._http.ask("GET", path, params={"active": True, "limit": 200}).json()
        return {int(run["id"]) for run in page["items"]}


class Stopper(Submitter):
    """Has one run stopped, once it executes, each time that it is told to."""

    def __init__(self, number: int, seed: int, settings: Settings, project: Project, trace: Path) -> None:
        super().__init__(number, seed, settings, project, trace)
        self._wanted = threading.Event()

    def stop_one(self) -> None:
        """Returns at once."""
        self._wanted.set()

    def _work(self) -> None:
        while not self._ending.is_set():
            if self._wanted.wait(0.2):
                self._wanted.clear()
                sent = self._send("endless")
                deadline = time.monotonic() + PATIENCE_SECONDS
                while not self._executes(sent) and time.monotonic() < deadline:
                    time.sleep(0.1)
                self._halt(sent)

    def _executes(self, sent: Sent) -> bool:
        return (self._trace / f"{sent.run}.lock").exists()


class Applier(Submitter):
    """Applies one version after the other of a project with a job and one that needs it."""

    def __init__(self, number: int, seed: int, settings: Settings, project: Project, trace: Path) -> None:
        super().__init__(number, seed, settings, project, trace)
        self.asked: list[Asked] = []
        two = tuple(each for each in project.described if each.definition["name"] in (NEEDED, "top"))
        self._project = project.model_copy(update={"name": APPLIED, "described": two})

    def _work(self) -> None:
        while not self._ending.is_set():
            version = f"v{len(self.asked)}"
            self.asked.append(asked := Asked(version))
            project = versioned(self._project, {NEEDED: version, "top": version})
            path = f"/v1/projects/{APPLIED}/apply"
            asked.runs = self._http.ask("POST", path, json=project.model_dump(mode="json")).json()["runs"]
            while not self._ending.is_set() and self._active() & set(asked.runs.values()):
                self._ending.wait(0.5)


def versioned(project: Project, fingerprints: dict[str, str]) -> Project:
    """The project as if those jobs had been changed."""

    def changed(each: Described) -> Described:
        fingerprint = fingerprints.get(each.definition["name"], each.fingerprint)
        return each.model_copy(update={"fingerprint": fingerprint})

    return project.model_copy(update={"described": tuple(map(changed, project.described))})


def prepare(settings: Settings) -> Project:
    """Load the soak's project and put its package; the server is up."""
    project, content = load(settings)
    Http(settings).ask("PUT", f"/v1/packages/{project.package}", content=content)
    return project


def traced(project: Project, trace: Path) -> Project:
    """The project whose jobs leave their traces in ``trace``, also those that nobody submits alone."""
    told = tuple(
        each.model_copy(update={"definition": each.definition | {"params": {"trace": str(trace)}}})
        for each in project.described
    )
    return project.model_copy(update={"described": told})
