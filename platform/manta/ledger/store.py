"""The ledger's store: runs, their attempts and events; and, as parts of it, versions, aliases, projects,
leases, who may do what, and the audit log.

Each method is one transaction. Moves of a run's state are compare-and-set on the state it was seen in, so
two writers never both win.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, and_, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from manta.errors import Conflict, NotFound
from manta.ledger import audit, migrate, versions
from manta.ledger import tables as t
from manta.ledger.access import Access
from manta.ledger.actor import Actor
from manta.ledger.aliases import Aliases
from manta.ledger.database import Database, now
from manta.ledger.leases import Leases
from manta.ledger.lineage import Histories
from manta.ledger.manifest import Manifest, manifest_of
from manta.ledger.projects import Projects
from manta.ledger.requests import Requests
from manta.ledger.runs import ACTIVE, WORKING, Attempt, EndReason, Progress, Run, State, Version, check_move
from manta.ledger.told import Told
from manta.secrets import redactor, without_passwords

# What of a run is in its row; its versions are in a table of their own.
RUN_FIELDS = [name for name in Run.model_fields if name not in ("inputs", "outputs")]
RUN_COLUMNS = [t.runs.c[name] for name in RUN_FIELDS]


class Event(NamedTuple):
    """Something that happened to a run."""

    at: datetime
    what: str
    detail: dict[str, Any]


class Ledger:
    """Opens the ledger at a SQLAlchemy URL. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        self.url = without_passwords(url)
        self._db = Database(url)
        self.versions = versions.Versions(self._db)
        self.aliases = Aliases(self._db)
        self.projects = Projects(self._db)
        self.histories = Histories(self._db)
        self.leases = Leases(self._db)
        self.told = Told(self._db)
        self.access = Access(self._db)
        self.audit = audit.Audit(self._db)
        self.requests = Requests(self._db)

    def create(self) -> None:
        """Bring the tables to this version of manta. Called by `manta up` and the server, before anything
        reads; many may call it at once."""
        migrate.upgrade(self._db)

    def identity(self) -> str:
        """Six hexadecimal digits, made with the ledger: they tell it from every other."""
        with self._db.read() as db:
            return str(db.execute(select(t.identity.c.value)).scalar_one())

    def close(self) -> None:
        self._db.close()

    # --- to submit ------------------------------------------------------------------------------------

    def submit(
        self,
        *,
        key: str,
        project: str,
        job: str,
        kind: str,
        definition: Mapping[str, Any],
        fingerprint: str,
        package: str,
        by: Actor,
        params: Mapping[str, Any] | None = None,
        needs: Iterable[int] = (),
        priority: int = 0,
        deadline_at: datetime | None = None,
        replay_of: int | None = None,
        adopted: str = "",
        commit: str = "",
    ) -> Run:
        """Record a run as QUEUED. The same idempotency ``key`` again gives the run it gave first.

        ``adopted`` names the Ray submission that executes the run already: it is then STARTING, in its
        first attempt, and was never queued.

        Raises:
            Conflict: the key was used for another job or other parameters.
        """
        row = {
            "key": key,
            "project": project,
            "job": job,
            "kind": kind,
            "definition": dict(definition),
            "fingerprint": fingerprint,
            "package": package,
            "params": dict(params or {}),
            "needs": list(needs),
            "state": State.STARTING if adopted else State.QUEUED,
            "attempt": 1 if adopted else 0,
            "submission": adopted,
            "message": "",
            "stop_requested": False,
            "metrics": {},
            "created_at": now(),
            "started_at": now() if adopted else None,
            "heartbeat_at": now() if adopted else None,
            "submitted_by": by.name,
            "origin": "ray" if adopted else "manta",
            "priority": priority,
            "deadline_at": deadline_at,
            "replay_of": replay_of,
            "commit": commit,
        }
        try:
            with self._db.write() as db:
                run_id = db.execute(insert(t.runs).values(row)).inserted_primary_key[0]  # type: ignore[index]
                self._event(db, run_id, "submitted", {"job": job, "by": by.name})
                if adopted:
                    self._new_attempt(db, run_id, 1, adopted)
                audit.append(db, by, "submit", f"run:{run_id}", project=project, job=job)
        except IntegrityError:
            first = self.submitted(key)
            if first is None:
                raise
            if (first.project, first.job, first.params) != (project, job, row["params"]):
                raise Conflict(
                    f"the idempotency key {key!r} was used for run {first.id} of {first.job!r}",
                    hint="a key stands for one submission: send another with a new key",
                ) from None
            return first
        return self.run(run_id)

    def submitted(self, key: str) -> Run | None:
        """The run that was submitted under that idempotency key."""
        found = self._runs(t.runs.c.key == key, limit=1)
        return found[0] if found else None

    # --- to read --------------------------------------------------------------------------------------

    def run(self, run_id: int) -> Run:
        """Raises:
        NotFound: there is no such run.
        """
        found = self._runs(t.runs.c.id == run_id, limit=1)
        if not found:
            raise NotFound(f"there is no run {run_id}", hint="`manta runs` lists them")
        return found[0]

    def project_of(self, run_id: int) -> str | None:
        """The project of a run; None when there is no such run."""
        with self._db.read() as db:
            return db.execute(select(t.runs.c.project).where(t.runs.c.id == run_id)).scalar_one_or_none()

    def count(self) -> dict[State, int]:
        """How many runs there are in each state; of states that have none, nothing."""
        query = select(t.runs.c.state, func.count()).group_by(t.runs.c.state)
        with self._db.read() as db:
            return {State(state): number for state, number in db.execute(query).tuples()}

    def runs(
        self,
        *,
        project: str | Iterable[str] | None = None,
        job: str | None = None,
        states: Iterable[State] | None = None,
        ids: Iterable[int] | None = None,
        before: int | None = None,
        limit: int = 50,
        replays: bool = True,
    ) -> list[Run]:
        """Newest first; of those projects; ``before`` is the id to go on from; with or without replays."""
        wanted: list[Any] = [] if replays else [t.runs.c.replay_of.is_(None)]
        if ids is not None:
            wanted.append(t.runs.c.id.in_(list(ids)))
        if isinstance(project, str):
            wanted.append(t.runs.c.project == project)
        elif project is not None:
            wanted.append(t.runs.c.project.in_(list(project)))
        if job is not None:
            wanted.append(t.runs.c.job == job)
        if states is not None:
            wanted.append(_in_states(frozenset(states)))
        if before is not None:
            wanted.append(t.runs.c.id < before)
        return self._runs(and_(True, *wanted), limit=limit)

    def active(self, project: str | None = None) -> list[Run]:
        return self.runs(project=project, states=ACTIVE, limit=100_000)

    def last_success(self, project: str, job: str) -> Run | None:
        """The newest run of the job that has succeeded, replays apart."""
        found = self.runs(project=project, job=job, states=[State.SUCCEEDED], limit=1, replays=False)
        return found[0] if found else None

    def made(self, project: str, kind: str) -> list[tuple[Version, Run]]:
        """Every version of that kind with the run that produced it, newest first."""
        ids = self.versions.producers(project, kind)
        return versions.outputs_named(self.runs(ids=ids, limit=len(ids)), kind) if ids else []

    def attempts(self, run_id: int) -> list[Attempt]:
        """Oldest first."""
        query = select(t.attempts).where(t.attempts.c.run_id == run_id).order_by(t.attempts.c.number)
        with self._db.read() as db:
            return [Attempt(**row) for row in db.execute(query).mappings()]

    def manifest(self, run_id: int) -> Manifest:
        """All that decides what the run makes, as far as it is known by now.

        Raises:
            NotFound: there is no such run.
        """
        return manifest_of(self.run(run_id), self.versions.inputs(run_id), self.attempts(run_id))

    def events(self, run_id: int) -> list[Event]:
        """Oldest first."""
        query = select(t.events).where(t.events.c.run_id == run_id).order_by(t.events.c.id)
        with self._db.read() as db:
            return [Event(row["at"], row["what"], row["detail"]) for row in db.execute(query).mappings()]

    def _runs(self, where: Any, limit: int) -> list[Run]:
        query = select(*RUN_COLUMNS).where(where).order_by(t.runs.c.id.desc()).limit(limit)
        with self._db.read() as db:
            rows = db.execute(query).all()
            found = versions.of_runs(db, [row.id for row in rows])
        return [
            Run(
                **dict(zip(RUN_FIELDS, row, strict=True)),
                inputs=tuple(found.get((row.id, "in"), ())),
                outputs=tuple(found.get((row.id, "out"), ())),
            )
            for row in rows
        ]

    # --- to move --------------------------------------------------------------------------------------

    def move(
        self,
        run: Run,
        to: State,
        *,
        end_reason: EndReason | None = None,
        message: str = "",
        outputs: Iterable[Version] = (),
        metrics: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> Run:
        """Move ``run``, as it was seen, to another state; outputs and metrics land in the same transaction.

        A move to QUEUED, an end reason with it, ends the attempt and leaves the run to be tried again.

        Raises:
            Conflict: the move is not legal, or the run has changed its state or attempt since it was seen.
        """
        check_move(run.id, run.state, to)
        message = redactor.text(message)
        values: dict[str, Any] = {"state": to, "message": message, **fields}
        if end_reason is not None and to.ended:
            values["end_reason"] = end_reason
        if metrics is not None:
            values["metrics"] = redactor.value(dict(metrics))
        if to.ended:
            values["ended_at"] = now()
        with self._db.write() as db:
            seen = and_(t.runs.c.id == run.id, t.runs.c.state == run.state, t.runs.c.attempt == run.attempt)
            if db.execute(update(t.runs).where(seen).values(values)).rowcount != 1:
                raise Conflict(f"run {run.id} is no longer {run.state} in attempt {run.attempt}")
            for version in outputs:
                versions.put(db, run.id, "out", version)
            if to is State.STARTING:
                self._new_attempt(db, run.id, values["attempt"], values["submission"])
            elif run.attempt and to is State.RUNNING:
                self._change_attempt(db, run, running_at=now())
            elif run.attempt and (to.ended or to is State.QUEUED) and run.state is not State.QUEUED:
                self._change_attempt(db, run, ended_at=now(), end_reason=end_reason, message=message)
            detail: dict[str, Any] = {"message": message} if message else {}
            if end_reason is not None:
                detail["reason"] = end_reason
            self._event(db, run.id, str(to).lower(), detail)
        return self.run(run.id)

    def start(self, run: Run, submission: str) -> Run:
        """QUEUED → STARTING, as a new attempt; written before Ray is asked."""
        return self.move(
            run,
            State.STARTING,
            attempt=run.attempt + 1,
            submission=submission,
            started_at=now(),
            heartbeat_at=now(),
            not_before=None,
            progress=None,
        )

    def accepted(self, run: Run) -> None:
        """Ray has the submission of this attempt; written after Ray was asked. From then on an attempt that
        Ray does not know is lost, and is not submitted again."""
        same = and_(
            t.attempts.c.run_id == run.id,
            t.attempts.c.number == run.attempt,
            t.attempts.c.accepted_at.is_(None),
        )
        with self._db.write() as db:
            db.execute(update(t.attempts).where(same).values(accepted_at=now()))

    def request_stop(self, run_id: int, *, by: Actor) -> Run:
        """Ask for a run to be stopped; the controller does it. A run that has ended, or that is asked to
        already, stays as it is."""
        with self._db.write() as db:
            running = and_(
                t.runs.c.id == run_id,
                t.runs.c.state.in_(list(ACTIVE)),
                t.runs.c.stop_requested.is_(False),
            )
            if db.execute(update(t.runs).where(running).values(stop_requested=True)).rowcount:
                project = db.execute(select(t.runs.c.project).where(t.runs.c.id == run_id)).scalar_one()
                self._event(db, run_id, "stop requested", {"by": by.name})
                audit.append(db, by, "stop", f"run:{run_id}", project=project)
        return self.run(run_id)

    def beat(self, run_id: int, attempt: int, progress: Progress | None = None) -> bool:
        """A worker's sign of life, with its progress when it has some to tell. False when this attempt is
        no longer the run's."""
        values: dict[str, Any] = {"heartbeat_at": now()}
        if progress is not None:
            values["progress"] = redactor.value(progress.model_dump())
        mine = and_(
            t.runs.c.id == run_id,
            t.runs.c.attempt == attempt,
            t.runs.c.state.in_(list(WORKING)),
        )
        with self._db.write() as db:
            return db.execute(update(t.runs).where(mine).values(values)).rowcount == 1

    def ran_in(self, run: Run, environment: Mapping[str, Any]) -> None:
        """Keep with the run's present attempt what it runs in."""
        with self._db.write() as db:
            self._change_attempt(db, run, environment=dict(environment))

    @staticmethod
    def _new_attempt(db: Connection, run_id: int, number: int, submission: str) -> None:
        row = {"run_id": run_id, "number": number, "submission": submission, "started_at": now()}
        db.execute(insert(t.attempts).values(row | {"message": ""}))

    @staticmethod
    def _change_attempt(db: Connection, run: Run, **values: Any) -> None:
        same = and_(t.attempts.c.run_id == run.id, t.attempts.c.number == run.attempt)
        db.execute(update(t.attempts).where(same).values(values))

    @staticmethod
    def _event(db: Connection, run_id: int, what: str, detail: dict[str, Any]) -> None:
        db.execute(insert(t.events).values(run_id=run_id, at=now(), what=what, detail=detail))


def _in_states(states: frozenset[State]) -> ColumnElement[bool]:
    if not states <= ACTIVE:
        return t.runs.c.state.in_(list(states))
    # Few are at work. Asked for by themselves, the index of states finds them, however long the history; else
    # SQLite goes through all of a project's runs for the sake of their order.
    same = t.runs.alias()
    return t.runs.c.id.in_(select(same.c.id).where(same.c.state.in_(list(states))))
