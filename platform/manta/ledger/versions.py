"""Versions of what runs read and produce: datasets, features, models."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, insert, or_, select, update

from manta.definitions import Ref
from manta.errors import NotFound
from manta.ledger import tables as t
from manta.ledger.database import Database
from manta.ledger.runs import Run, State, Version
from manta.secrets import redactor


class Versions:
    """The versions of one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def head(self, project: str, ref: Ref) -> Version | None:
        """The version of ``ref`` that the newest run to succeed produced, replays apart; None before the
        first."""
        where = and_(
            t.runs.c.project == project,
            t.runs.c.state == State.SUCCEEDED,
            t.runs.c.replay_of.is_(None),
            t.versions.c.direction == "out",
            t.versions.c.kind == ref.kind,
            t.versions.c.name == ref.name,
        )
        return self._newest(where)

    def get(self, project: str, ref: Ref, version: str) -> Version:
        """Raises:
        NotFound: no run produced it.
        """
        found = self._newest(
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

    def read_by(self, run_id: int, version: Version) -> None:
        """Record that the run reads ``version``."""
        with self._db.write() as db:
            put(db, run_id, "in", version)

    def inputs(self, run_id: int) -> list[Version]:
        """What the run has read so far."""
        where = and_(t.versions.c.run_id == run_id, t.versions.c.direction == "in")
        with self._db.read() as db:
            rows = db.execute(select(t.versions).where(where).order_by(t.versions.c.id)).mappings().all()
        return [_version(row) for row in rows]

    def producers(self, project: str, kind: str) -> list[int]:
        """The runs that produced a version of that kind, newest first, replays apart."""
        query = (
            select(t.versions.c.run_id)
            .distinct()
            .join(t.runs)
            .where(t.runs.c.project == project, t.runs.c.replay_of.is_(None))
            .where(t.versions.c.direction == "out", t.versions.c.kind == kind)
        )
        with self._db.read() as db:
            return sorted(db.execute(query).scalars(), reverse=True)

    def trained(self, project: str, model: str) -> list[int]:
        """The runs whose definition trains that model, or that produced a version of it, newest first:
        whatever became of them, replays included."""
        definition, c = t.runs.c.definition, t.versions.c
        made = select(c.run_id).where(c.direction == "out", c.kind == "model", c.name == model)
        query = select(t.runs.c.id).where(
            t.runs.c.project == project,
            or_(
                definition["model"].as_string() == model,
                definition[("training", "model")].as_string() == model,  # a search's
                t.runs.c.id.in_(made),
            ),
        )
        with self._db.read() as db:
            return sorted(db.execute(query).scalars(), reverse=True)

    def _newest(self, where: Any) -> Version | None:
        query = select(t.versions).join(t.runs).where(where).order_by(t.versions.c.id.desc()).limit(1)
        with self._db.read() as db:
            row = db.execute(query).mappings().one_or_none()
        return _version(row) if row is not None else None


def of_runs(db: Connection, ids: list[int]) -> dict[tuple[int, str], list[Version]]:
    """``(run, direction)`` → versions, of those runs."""
    found: dict[tuple[int, str], list[Version]] = {}
    c = t.versions.c
    query = select(c.run_id, c.direction, c.kind, c.name, c.version, c.detail)
    query = query.where(c.run_id.in_(ids)).order_by(c.id)
    for run_id, direction, *of in db.execute(query).all() if ids else ():
        version = dict(zip(("kind", "name", "version", "detail"), of, strict=True))
        found.setdefault((run_id, direction), []).append(Version(**version))
    return found


def outputs_named(runs: list[Run], kind: str) -> list[tuple[Version, Run]]:
    """Every version of that kind among the runs' outputs, with the run that produced it."""
    return [(version, run) for run in runs for version in run.outputs if version.kind == kind]


def put(db: Connection, run_id: int, direction: str, version: Version) -> None:
    """Write a version in the caller's transaction; a run has one of each name and direction."""
    values = {"version": redactor.text(version.version), "detail": redactor.value(version.detail)}
    same = and_(
        t.versions.c.run_id == run_id,
        t.versions.c.direction == direction,
        t.versions.c.kind == version.kind,
        t.versions.c.name == version.name,
    )
    if db.execute(update(t.versions).where(same).values(values)).rowcount == 0:
        place = {"run_id": run_id, "direction": direction, "kind": version.kind, "name": version.name}
        db.execute(insert(t.versions).values(place | values))


def _version(row: Any) -> Version:
    return Version(kind=row["kind"], name=row["name"], version=row["version"], detail=row["detail"])
