"""Platform: the verbs, over plan, ledger and control. The API server is a door to it."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from manta.answers import Applied, EndpointInfo, Readiness
from manta.app_models import Models
from manta.control import imports, replay
from manta.control.controller import Controller, package_file, run_logs
from manta.control.engine import Engine, RayEngine
from manta.control.inline import InlineEngine
from manta.control.leader import LEASE
from manta.control.mirror import Mirror
from manta.control.openlineage import Emitter
from manta.definitions import Definition, Policy, StaysUp, digest, from_json
from manta.errors import InvalidInput, NotFound, Unacknowledged, Unavailable
from manta.ledger.actor import Actor
from manta.ledger.comparison import Comparison, comparison_of
from manta.ledger.database import now
from manta.ledger.endpoints import EndpointRow
from manta.ledger.lineage import DEPTH, SIZE
from manta.ledger.manifest import Manifest
from manta.ledger.records import Direction, Lineage
from manta.ledger.runs import ACTIVE, Attempt, Run
from manta.ledger.store import Event, Ledger
from manta.plan import Action, Held, Plan, Step, needed, plan
from manta.project import Project
from manta.settings import Settings

READY_SECONDS = 1.0


class Platform:
    """One per server process. Thread-safe. ``start`` begins the control loop; ``close`` ends it.

    Attributes:
        models: what is registered, and where its aliases point.
    """

    def __init__(self, settings: Settings, engine: Engine | None = None) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.ledger_url)
        self.engine = engine or _engine(settings)
        self.controller = Controller(settings, self.ledger, self.engine)
        self._mirror = Mirror(settings, self.ledger)
        self.models = Models(self.ledger, self._moved)
        self._emitter = Emitter(settings, self.ledger) if settings.openlineage else None
        self._thread: threading.Thread | None = None
        self._applying = threading.Lock()
        self._looking = threading.Lock()
        self._looked_until = 0.0
        self._ready = Readiness()

    def start(self) -> None:
        self.ledger.create()
        self._thread = threading.Thread(target=self.controller.run_forever, name="controller", daemon=True)
        self._thread.start()
        self._mirror.start()
        if self._emitter:
            self._emitter.start()

    def close(self) -> None:
        self.controller.stop()
        self._mirror.close()
        if self._emitter:
            self._emitter.close()
        if self._thread:
            self._thread.join(timeout=10)
        self.ledger.close()

    def _moved(self) -> None:
        """An alias has: endpoints follow, and MLflow shows it."""
        self.controller.wake()
        self._mirror.wake()

    def readiness(self) -> Readiness:
        """Whether the parts that it needs answer; asked of them at most once a second."""
        with self._looking:
            if time.monotonic() >= self._looked_until:
                self._ready = Readiness(
                    ledger=_said(self.ledger.identity),
                    controller=self.controller.trouble or _said(self._led),
                    ray=_said(self.engine.check),
                )
                self._looked_until = time.monotonic() + READY_SECONDS
            return self._ready

    def _led(self) -> None:
        """Raises:
        Unavailable: no controller, of this server or of another, leads.
        """
        if not self.controller.leader.leading and self.ledger.leases.holder(LEASE) is None:
            raise Unavailable("none leads yet")

    # --- plan and apply -------------------------------------------------------------------------------

    def put_package(self, package: str, content: bytes) -> None:
        """Keep a project's package under its digest.

        Raises:
            InvalidInput: the content is not what the digest says.
        """
        if hashlib.sha256(content).hexdigest()[:32] != package:
            raise InvalidInput("the package's content does not match its digest", hint="send it again")
        imports.keep(package_file(self.settings, package), content)

    def has_package(self, package: str) -> bool:
        return package_file(self.settings, package).exists()

    def projects(self) -> list[str]:
        """The names of those that were applied or that have runs."""
        return self.ledger.projects.names()

    def plan(self, project: Project) -> Plan:
        return plan(project, self._held(project))

    def apply(self, project: Project, *, by: Actor, acknowledge: bool = False) -> Applied:
        """Carry out the plan: submit a run for each step that needs one, deploy and remove endpoints.

        The same project applied twice, also concurrently, sets each run going once.

        Args:
            acknowledge: what the plan breaks may be broken.

        Raises:
            NotFound: its package has not been put.
            Unacknowledged: the plan breaks what is served; nothing has been done.
        """
        self._check_package(project.package)
        with self._applying:
            held = self._held(project)
            made = plan(project, held)
            if made.breaks and not acknowledge:
                raise Unacknowledged(
                    "this changes features that are served now: "
                    + "; ".join(str(each) for each in made.breaks),
                    hint="`manta apply --acknowledge` does it; or leave these as they are and give "
                    "the next model a feature service of its own",
                    breaks=[each.model_dump(mode="json") for each in made.breaks],
                )
            runs: dict[str, int] = {}
            for step in made.steps:
                if step.action is Action.RUN:
                    runs[step.name] = self._submit_step(project, held, step, runs, "apply", by)
                elif step.action is Action.DEPLOY:
                    endpoint, fingerprint = project.endpoints()[step.name]
                    self.ledger.projects.want_endpoint(
                        project.name,
                        step.name,
                        definition=endpoint.to_json(),
                        package=project.package,
                        fingerprint=fingerprint,
                        by=by,
                    )
                elif step.action is Action.REMOVE:
                    self.ledger.projects.drop_endpoint(project.name, step.name, by=by)
                elif step.run is not None:
                    runs[step.name] = step.run
            definitions = [described.model_dump(mode="json") for described in project.described]
            self.ledger.projects.apply(project.name, project.package, definitions, by=by)
        self.controller.wake()
        return Applied(plan=made, runs=runs)

    def _held(self, project: Project) -> Held:
        name = project.name
        heads, last, succeeded, active = {}, {}, {}, {}
        for job_name, (job, _) in project.jobs().items():
            for run in self.ledger.runs(project=name, job=job_name, limit=1, replays=False):
                last[job_name] = run
                if not run.state.ended and not run.stop_requested:
                    active[job_name] = run
            success = self.ledger.last_success(name, job_name)
            if success:
                succeeded[job_name] = success
            for ref in job.outputs():
                head = self.ledger.versions.head(name, ref)
                if head:
                    heads[ref] = head
        endpoints = {row.name: row for row in self.ledger.projects.endpoints(name)}
        return Held(last=last, succeeded=succeeded, active=active, heads=heads, endpoints=endpoints)

    # --- runs -----------------------------------------------------------------------------------------

    def run(
        self,
        project: Project,
        job: str,
        params: Mapping[str, Any],
        key: str | None = None,
        *,
        by: Actor,
    ) -> Run:
        """Submit one run of ``job``, fresh or not, and before it one of each job that it needs and that is
        not fresh; one that is at work already is waited for. The same ``key`` of the same principal gives the
        same run.

        Raises:
            NotFound: the project has no such job, or its package has not been put.
            InvalidInput: the job takes no parameter of that name.
            Conflict: the key was used for another job, or other parameters.
        """
        self._check_job(project, job, params)
        # Keys are chosen by whoever sends them: those of two principals, or of two projects, never meet.
        key = f"{project.name}-{digest([by.name, key])}" if key else secrets.token_hex(16)
        needs = [] if self.ledger.submitted(key) else self._submit_needs(project, job, by)
        run = self._submit(project, job, params, needs, key, by)
        self.controller.wake()
        return run

    def _submit_needs(self, project: Project, job: str, by: Actor) -> list[int]:
        """The runs that a run of ``job`` is to wait for, submitted where they are not at work."""
        if not Policy.of(project.jobs()[job][0].to_json()).needs:
            return []
        with self._applying:
            held = self._held(project)
            runs: dict[str, int] = {}
            for step in needed(project, held, job):
                if step.action is Action.RUN:
                    runs[step.name] = self._submit_step(project, held, step, runs, "need", by)
                elif step.action is Action.FOLLOW and step.run is not None:
                    runs[step.name] = step.run
        return list(runs.values())

    def _submit_step(
        self, project: Project, held: Held, step: Step, runs: Mapping[str, int], why: str, by: Actor
    ) -> int:
        """Submit a run of a plan's step, once for those that plan the same from the same state."""
        needs = [runs[need] for need in step.needs]
        last = held.last.get(step.name)
        key = digest([step.name, needs, last.id if last else 0])
        return self._submit(project, step.name, {}, needs, f"{project.name}-{why}-{key}", by).id

    def put_foreign(self, sha256: str, content: bytes) -> None:
        """Keep a model that was made elsewhere, as it is: nobody looks into it here.

        Raises:
            InvalidInput: the content is not what the digest says.
        """
        imports.put(self.settings, sha256, content)

    def has_foreign(self, sha256: str) -> bool:
        return imports.path_of(self.settings, sha256).exists()

    def import_model(
        self, project: Project, training: str, sha256: str, file: str, key: str | None = None, *, by: Actor
    ) -> Run:
        """Submit a run of a training that takes a file which was put here, instead of fitting: on the same
        held-out rows, through the same gates. What the training itself last made stays fresh.

        Raises:
            NotFound: the project has no such training; the file, or the project's package, has not been put.
            Conflict: the key was used for another submission.
        """
        self._check_package(project.package)
        if not self.has_foreign(sha256):
            raise NotFound(f"the file {sha256} has not been put", hint=f"PUT it at /v1/foreign/{sha256}")
        taken = imports.of_training(project, training, sha256, file)
        key = f"{project.name}-{digest([by.name, key])}" if key else secrets.token_hex(16)
        needs = [] if self.ledger.submitted(key) else self._submit_needs(project, training, by)
        run = self._submit(project, imports.job_of(training), {}, needs, key, by, described=taken)
        self.controller.wake()
        return run

    def adopt(
        self, project: Project, job: str, params: Mapping[str, Any], submission: str, *, by: Actor
    ) -> Run:
        """Take into the ledger a run that was submitted straight to Ray, and that executes as ``submission``.
        The same submission again gives the same run.

        Raises:
            NotFound, InvalidInput, Conflict: as :meth:`run`.
        """
        self._check_job(project, job, params)
        run = self._submit(project, job, params, (), f"adopted-{submission}", by, adopted=submission)
        self.controller.wake()
        return run

    def _check_job(self, project: Project, job: str, params: Mapping[str, Any]) -> None:
        self._check_package(project.package)
        jobs = project.jobs()
        if job not in jobs:
            raise NotFound(f"the project has no job {job!r}", hint=f"it has: {', '.join(sorted(jobs))}")
        takes = getattr(jobs[job][0], "params", {})
        unknown = sorted(set(params) - set(takes))
        if unknown:
            raise InvalidInput(
                f"job {job!r} takes no parameter {', '.join(unknown)}",
                hint=f"it takes: {', '.join(sorted(takes)) or 'none'}",
            )

    def _submit(
        self,
        project: Project,
        job: str,
        params: Mapping[str, Any],
        needs: Iterable[int],
        key: str,
        by: Actor,
        *,
        adopted: str = "",
        described: tuple[Definition, str] | None = None,
    ) -> Run:
        """``described``: definition and fingerprint of what is no job of the project by that name."""
        definition, fingerprint = described or project.jobs()[job]
        policy = Policy.of(definition.to_json())
        return self.ledger.submit(
            key=key,
            project=project.name,
            job=job,
            kind=definition.kind,
            definition=definition.to_json(),
            fingerprint=fingerprint,
            package=project.package,
            params=params,
            needs=needs,
            by=by,
            priority=policy.priority,
            deadline_at=now() + timedelta(seconds=policy.deadline) if policy.deadline else None,
            adopted=adopted,
            commit=project.commit,
        )

    def _check_package(self, package: str) -> None:
        if not self.has_package(package):
            raise NotFound(f"the package {package} has not been put", hint="put it, then submit again")

    def get_run(self, run_id: int) -> Run:
        return self.ledger.run(run_id)

    def runs(
        self,
        project: str,
        job: str | None = None,
        active: bool = False,
        ids: Sequence[int] | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Newest first: of one job, those that have not ended, or those with these ids; ``before`` is the id
        to go on from."""
        states = ACTIVE if active else None
        return self.ledger.runs(project=project, job=job, states=states, ids=ids, before=before, limit=limit)

    def stop(self, run_id: int, *, by: Actor) -> Run:
        """Ask for a run to be stopped. Returns at once; ask :meth:`get_run` until it has ended."""
        self.ledger.run(run_id)
        run = self.ledger.request_stop(run_id, by=by)
        self.controller.wake()
        return run

    def events(self, run_id: int) -> list[Event]:
        """What happened to a run, oldest first."""
        return self.ledger.events(self.ledger.run(run_id).id)

    def attempts(self, run_id: int) -> list[Attempt]:
        """The tries of a run, oldest first."""
        return self.ledger.attempts(self.ledger.run(run_id).id)

    def logs(self, run_id: int, attempt: int | None = None, offset: int = 0) -> tuple[bytes, int]:
        """What an attempt, the last unless given, has printed so far: at most 4 MiB from byte ``offset`` on,
        and the offset to go on from. Once the run has ended, an empty answer is the log's end.

        Raises:
            NotFound: there is no such run, or no such attempt of it.
        """
        run = self.ledger.run(run_id)
        if attempt is not None and not 1 <= attempt <= run.attempt:
            raise NotFound(f"run {run_id} has no attempt {attempt}", hint=f"it has had {run.attempt}")
        return run_logs(self.settings, self.engine, run, attempt, offset)

    def replay(self, run_id: int, *, by: Actor) -> Run:
        """Submit a new run that repeats this one: the same package, definition and parameters, and the very
        versions that it read. What it makes becomes nobody's newest, and no model is promoted.

        Raises:
            NotFound: there is no such run, or its package is gone.
            InvalidInput: it did not succeed, or repeating it would change what is served.
        """
        first = self.ledger.run(run_id)
        replay.check(first)
        self._check_package(first.package)
        run = self.ledger.submit(
            key=f"{first.project}-replay-{secrets.token_hex(16)}",
            project=first.project,
            job=first.job,
            kind=first.kind,
            definition=first.definition,
            fingerprint=first.fingerprint,
            package=first.package,
            params=first.params,
            priority=first.priority,
            replay_of=first.id,
            commit=first.commit,
            by=by,
        )
        self.controller.wake()
        return run

    def manifest(self, run_id: int) -> Manifest:
        """All that decides what a run makes, and one id of it.

        Raises:
            NotFound: there is no such run.
        """
        return self.ledger.manifest(run_id)

    def comparison(self, run_id: int) -> Comparison:
        """Whether a replay made the same as the run that it repeats.

        Raises:
            NotFound: there is no such run, or it is no replay.
        """
        run = self.ledger.run(run_id)
        if run.replay_of is None:
            raise NotFound(f"run {run_id} is no replay", hint=f"manta replay {run_id} repeats it")
        return comparison_of(run)

    def lineage(
        self, project: str, of: str, direction: Direction = "both", *, depth: int = DEPTH, size: int = SIZE
    ) -> Lineage:
        """What ``run:17``, ``model:delay@3``, ``dataset:flights@2`` … was made from ("up"), and what was made
        from it ("down").

        Raises:
            InvalidInput: ``of`` names nothing that has a lineage.
            NotFound: the project has no such thing.
        """
        return self.ledger.histories.lineage(project, of, direction, depth=depth, size=size)

    # --- endpoints -----------------------------------------------------------------------------------

    def endpoints(self, project: str) -> list[EndpointInfo]:
        return [self._endpoint(row) for row in self.ledger.projects.endpoints(project)]

    def endpoint(self, project: str, name: str) -> EndpointInfo:
        """Raises:
        NotFound: there is no such endpoint.
        """
        found = {info.name: info for info in self.endpoints(project)}
        if name not in found:
            raise NotFound(
                f"there is no endpoint {name!r}",
                hint=f"there is: {', '.join(found)}" if found else "`manta apply` puts them up",
            )
        return found[name]

    def _endpoint(self, row: EndpointRow) -> EndpointInfo:
        endpoint = from_json(row.definition)
        assert isinstance(endpoint, StaysUp)
        return EndpointInfo(
            name=row.name,
            kind=endpoint.kind,
            model=endpoint.serves,
            state=row.state,
            url=f"{self.settings.serve_url}{row.route}",
            served=row.served,
            message=row.message,
        )


def _engine(settings: Settings) -> Engine:
    if settings.engine == "inline":
        return InlineEngine(settings, settings.home / "inline")
    return RayEngine(settings)


def _said(part: Callable[[], object]) -> str:
    try:
        part()
    except Unavailable as error:
        return error.message
    return "ok"
