"""The ledger's store: every read and write of runs, versions, aliases and endpoints.

Each method is one transaction. Moves of a run's state are compare-and-set on the state it was seen in, so
two writers never both win.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, and_, create_engine, event, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from manta.definitions import Ref
from manta.errors import Conflict, NotFound
from manta.ledger import tables as t
from manta.ledger.endpoints import EndpointRow
from manta.ledger.runs import ACTIVE, EndReason, Progress, Run, State, Version, check_move

READS = "manta_reads"  # the execution option of a transaction that will not write


def now() -> datetime:
    return datetime.now(UTC)


def _engine(url: str) -> Engine:
    engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"))
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def _pragmas(connection: Any, _record: Any) -> None:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA busy_timeout=20000")
            connection.execute("PRAGMA foreign_keys=ON")
            # The driver's own BEGIN is deferred: two readers that turn writers would then deadlock.
            connection.isolation_level = None

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            reads = connection.get_execution_options().get(READS, False)
            connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


class Ledger:
    """Opens the ledger at a SQLAlchemy URL. Safe to use from several threads and processes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._engine = _engine(url)
        self._reader = self._engine.execution_options(**{READS: True})

    def create(self) -> None:
        """Make the tables that are missing. Called once by `manta up`, before anything reads."""
        if self._engine.dialect.name == "sqlite" and self._engine.url.database:
            Path(self._engine.url.database).parent.mkdir(parents=True, exist_ok=True)
        t.metadata.create_all(self._engine)

        with self._engine.begin() as db:
            if db.execute(select(t.identity.c.value)).first() is None:
                db.execute(insert(t.identity).values(value=secrets.token_hex(3)))

    def identity(self) -> str:
        """Six hexadecimal digits, made with the ledger: they tell it from every other."""
        with self._reader.begin() as db:
            return str(db.execute(select(t.identity.c.value)).scalar_one())

    def close(self) -> None:
        self._engine.dispose()

    # --- runs -----------------------------------------------------------------------------------------

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
        params: Mapping[str, Any] | None = None,
        needs: Iterable[int] = (),
    ) -> Run:
        """Record a run as QUEUED. The same idempotency ``key`` again gives the run it gave first."""
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
            "state": State.QUEUED,
            "attempt": 0,
            "submission": "",
            "message": "",
            "stop_requested": False,
            "metrics": {},
            "created_at": now(),
        }
        try:
            with self._engine.begin() as db:
                run_id = db.execute(insert(t.runs).values(row)).inserted_primary_key[0]  # type: ignore[index]
                self._event(db, run_id, "submitted", {"job": job})
        except IntegrityError:
            with self._engine.begin() as db:
                found = db.execute(select(t.runs.c.id).where(t.runs.c.key == key)).scalar_one_or_none()
            if found is None:
                raise
            run_id = found
        return self.run(run_id)

    def run(self, run_id: int) -> Run:
        """Raises:
        NotFound: there is no such run.
        """
        found = self._runs(t.runs.c.id == run_id, limit=1)
        if not found:
            raise NotFound(f"there is no run {run_id}", hint="`manta runs` lists them")
        return found[0]

    def runs(
        self,
        *,
        project: str | None = None,
        job: str | None = None,
        states: Iterable[State] | None = None,
        ids: Iterable[int] | None = None,
        limit: int = 50,
    ) -> list[Run]:
        """Newest first."""
        wanted: list[Any] = []
        if ids is not None:
            wanted.append(t.runs.c.id.in_(list(ids)))
        if project is not None:
            wanted.append(t.runs.c.project == project)
        if job is not None:
            wanted.append(t.runs.c.job == job)
        if states is not None:
            wanted.append(t.runs.c.state.in_(list(states)))
        return self._runs(and_(True, *wanted), limit=limit)

    def active(self, project: str | None = None) -> list[Run]:
        return self.runs(project=project, states=ACTIVE, limit=100_000)

    def _runs(self, where: Any, limit: int) -> list[Run]:
        with self._reader.begin() as db:
            rows = (
                db.execute(select(t.runs).where(where).order_by(t.runs.c.id.desc()).limit(limit))
                .mappings()
                .all()
            )
            ids = [row["id"] for row in rows]
            found: dict[tuple[int, str], list[Version]] = {}
            if ids:
                query = select(t.versions).where(t.versions.c.run_id.in_(ids)).order_by(t.versions.c.id)
                for row in db.execute(query).mappings():
                    version = Version(
                        kind=row["kind"], name=row["name"], version=row["version"], detail=row["detail"]
                    )
                    found.setdefault((row["run_id"], row["direction"]), []).append(version)
        return [
            Run(
                **{name: row[name] for name in Run.model_fields if name not in ("inputs", "outputs")}
                | {name: _utc(row[name]) for name in _TIMES},
                inputs=tuple(found.get((row["id"], "in"), ())),
                outputs=tuple(found.get((row["id"], "out"), ())),
            )
            for row in rows
        ]

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

        Raises:
            Conflict: the move is not legal, or the run has changed its state or attempt since it was seen.
        """
        check_move(run.id, run.state, to)
        values: dict[str, Any] = {"state": to, "message": message, **fields}
        if end_reason is not None:
            values["end_reason"] = end_reason
        if metrics is not None:
            values["metrics"] = dict(metrics)
        if to.ended:
            values["ended_at"] = now()
        with self._engine.begin() as db:
            seen = and_(t.runs.c.id == run.id, t.runs.c.state == run.state, t.runs.c.attempt == run.attempt)
            if db.execute(update(t.runs).where(seen).values(values)).rowcount != 1:
                raise Conflict(f"run {run.id} is no longer {run.state} in attempt {run.attempt}")
            for version in outputs:
                self._put_version(db, run.id, "out", version)
            self._event(db, run.id, str(to).lower(), {"message": message} if message else {})
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
            progress=None,
        )

    def request_stop(self, run_id: int) -> Run:
        """Ask for a run to be stopped; the controller does it. A run that has ended stays as it is."""
        with self._engine.begin() as db:
            db.execute(
                update(t.runs)
                .where(t.runs.c.id == run_id, t.runs.c.state.in_(list(ACTIVE)))
                .values(stop_requested=True)
            )
        return self.run(run_id)

    def beat(self, run_id: int, attempt: int, progress: Progress | None = None) -> None:
        """A worker's sign of life, with its progress when it has some to tell."""
        values: dict[str, Any] = {"heartbeat_at": now()}
        if progress is not None:
            values["progress"] = progress.model_dump()
        with self._engine.begin() as db:
            db.execute(
                update(t.runs).where(t.runs.c.id == run_id, t.runs.c.attempt == attempt).values(values)
            )

    def read_by(self, run_id: int, version: Version) -> None:
        """Record that the run reads ``version``."""
        with self._engine.begin() as db:
            self._put_version(db, run_id, "in", version)

    def last_success(self, project: str, job: str) -> Run | None:
        found = self.runs(project=project, job=job, states=[State.SUCCEEDED], limit=1)
        return found[0] if found else None

    # --- versions -------------------------------------------------------------------------------------

    def head(self, project: str, ref: Ref) -> Version | None:
        """The version of ``ref`` that the newest run to succeed produced; None before the first."""
        where = and_(
            t.runs.c.project == project,
            t.runs.c.state == State.SUCCEEDED,
            t.versions.c.direction == "out",
            t.versions.c.kind == ref.kind,
            t.versions.c.name == ref.name,
        )
        return self._version(where)

    def version(self, project: str, ref: Ref, version: str) -> Version:
        """Raises:
        NotFound: no run produced it.
        """
        found = self._version(
            and_(
                t.runs.c.project == project,
                t.versions.c.direction == "out",
                t.versions.c.kind == ref.kind,
                t.versions.c.name == ref.name,
                t.versions.c.version == version,
            )
        )
        if found is None:
            raise NotFound(f"there is no version {version} of {ref}")
        return found

    def versions(self, project: str, kind: str) -> list[tuple[Version, Run]]:
        """Every version of that kind with the run that produced it, newest first."""
        query = (
            select(t.versions.c.run_id)
            .join(t.runs)
            .where(t.runs.c.project == project, t.versions.c.direction == "out", t.versions.c.kind == kind)
        )
        with self._reader.begin() as db:
            ids = sorted(set(db.execute(query).scalars()), reverse=True)
        runs = self._runs(t.runs.c.id.in_(ids), limit=len(ids)) if ids else []
        return [(version, run) for run in runs for version in run.outputs if version.kind == kind]

    def _version(self, where: Any) -> Version | None:
        query = select(t.versions).join(t.runs).where(where).order_by(t.versions.c.id.desc()).limit(1)
        with self._reader.begin() as db:
            row = db.execute(query).mappings().one_or_none()
        if row is None:
            return None
        return Version(kind=row["kind"], name=row["name"], version=row["version"], detail=row["detail"])

    @staticmethod
    def _put_version(db: Connection, run_id: int, direction: str, version: Version) -> None:
        values = {"version": version.version, "detail": version.detail}
        same = and_(
            t.versions.c.run_id == run_id,
            t.versions.c.direction == direction,
            t.versions.c.kind == version.kind,
            t.versions.c.name == version.name,
        )
        if db.execute(update(t.versions).where(same).values(values)).rowcount == 0:
            place = {"run_id": run_id, "direction": direction, "kind": version.kind, "name": version.name}
            db.execute(insert(t.versions).values(place | values))

    # --- aliases --------------------------------------------------------------------------------------

    def alias(self, project: str, model: str, alias: str) -> str | None:
        """The version it points to; None when it has never been set."""
        with self._reader.begin() as db:
            return db.execute(select(t.aliases.c.version).where(*_alias(project, model, alias))).scalar()

    def aliases(self, project: str) -> dict[tuple[str, str], str]:
        """``(model, alias)`` → version."""
        with self._reader.begin() as db:
            rows = db.execute(select(t.aliases).where(t.aliases.c.project == project)).mappings()
            return {(row["model"], row["alias"]): row["version"] for row in rows}

    def promote(
        self,
        project: str,
        model: str,
        alias: str,
        version: str,
        *,
        expect: str | None,
        run_id: int | None,
        gates: list[dict[str, Any]],
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Point the alias at ``version`` if it still points at ``expect``; recorded with why.

        ``detail`` is what there is to know of a version that the run made, written in the same transaction:
        an alias never points at what the ledger does not know. Pointing it where it points already changes
        nothing.

        Raises:
            Conflict: somebody moved it meanwhile.
        """
        with self._engine.begin() as db:
            held = db.execute(select(t.aliases.c.version).where(*_alias(project, model, alias))).scalar()
            if held == version:
                return
            if held != expect:
                raise Conflict(
                    f"{alias} of {model} points at version {held}, not at {expect}",
                    hint="compare with the version that holds it now, then promote again",
                )
            if run_id is not None and detail is not None:
                made = Version(kind="model", name=model, version=version, detail=dict(detail))
                self._put_version(db, run_id, "out", made)
            place = {"project": project, "model": model, "alias": alias}
            if held is None:
                db.execute(insert(t.aliases).values(place | {"version": version}))
            else:
                db.execute(update(t.aliases).where(*_alias(project, model, alias)).values(version=version))
            record = {"version": version, "previous": held, "run_id": run_id, "at": now(), "gates": gates}
            db.execute(insert(t.promotions).values(place | record))

    # --- project and endpoints ------------------------------------------------------------------------

    def apply_project(self, name: str, package: str, definitions: list[dict[str, Any]]) -> None:
        values = {"package": package, "definitions": definitions, "applied_at": now()}
        with self._engine.begin() as db:
            if db.execute(update(t.projects).where(t.projects.c.name == name).values(values)).rowcount == 0:
                db.execute(insert(t.projects).values({"name": name} | values))

    def project(self, name: str) -> tuple[str, list[dict[str, Any]]] | None:
        """``(package, definitions)`` as last applied; None before that."""
        with self._reader.begin() as db:
            row = db.execute(select(t.projects).where(t.projects.c.name == name)).mappings().one_or_none()
        return (row["package"], row["definitions"]) if row else None

    def put_endpoint(self, project: str, name: str, **values: Any) -> None:
        """Write those columns of an endpoint's row, making it if need be."""
        fields = values | {"changed_at": now()}
        same = and_(t.endpoints.c.project == project, t.endpoints.c.name == name)
        with self._engine.begin() as db:
            if db.execute(update(t.endpoints).where(same).values(fields)).rowcount == 0:
                blank = {"state": "WANTED", "served": {}, "message": ""}
                db.execute(insert(t.endpoints).values({"project": project, "name": name} | blank | fields))

    def drop_endpoint(self, project: str, name: str) -> None:
        same = and_(t.endpoints.c.project == project, t.endpoints.c.name == name)
        with self._engine.begin() as db:
            db.execute(t.endpoints.delete().where(same))

    def endpoints(self, project: str | None = None) -> list[EndpointRow]:
        query = select(t.endpoints).order_by(t.endpoints.c.project, t.endpoints.c.name)
        if project is not None:
            query = query.where(t.endpoints.c.project == project)
        with self._reader.begin() as db:
            rows = db.execute(query).mappings().all()
        return [EndpointRow(**{**row, "changed_at": _utc(row["changed_at"])}) for row in rows]

    # --- events ---------------------------------------------------------------------------------------

    @staticmethod
    def _event(db: Connection, run_id: int | None, what: str, detail: dict[str, Any]) -> None:
        db.execute(insert(t.events).values(run_id=run_id, at=now(), what=what, detail=detail))

    def events(self, run_id: int) -> list[tuple[datetime, str, dict[str, Any]]]:
        """Oldest first: when, what, detail."""
        query = select(t.events).where(t.events.c.run_id == run_id).order_by(t.events.c.id)
        with self._reader.begin() as db:
            rows = db.execute(query).mappings().all()
        return [(_utc(row["at"]) or now(), row["what"], row["detail"]) for row in rows]

    def count(self) -> int:
        """How many runs there are."""
        with self._reader.begin() as db:
            return db.execute(select(func.count()).select_from(t.runs)).scalar_one()


_TIMES = ("created_at", "started_at", "ended_at", "heartbeat_at")


def _utc(at: datetime | None) -> datetime | None:
    # SQLite gives times back without their zone.
    return at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at


def _alias(project: str, model: str, alias: str) -> tuple[Any, ...]:
    c = t.aliases.c
    return (c.project == project, c.model == model, c.alias == alias)
