"""Where each model's aliases point, and every move they made.

Moves are compare-and-set: whoever moves an alias says which version was shown to hold it, and is refused when
that is no longer so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, and_, insert, select, update
from sqlalchemy.exc import IntegrityError

from manta.errors import Conflict, GateFailed, NotFound
from manta.ledger import audit, versions
from manta.ledger import tables as t
from manta.ledger.actor import Actor
from manta.ledger.database import Database, now
from manta.ledger.records import Promotion
from manta.ledger.runs import Version


class _Overtaken(Exception):
    """The alias does not point where it was expected to."""


class Aliases:
    """The aliases of one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def get(self, project: str, model: str, alias: str) -> str | None:
        """The version it points to; None when it has never been set."""
        with self._db.read() as db:
            return db.execute(select(t.aliases.c.version).where(*_same(project, model, alias))).scalar()

    def all(self, project: str) -> dict[tuple[str, str], str]:
        """``(model, alias)`` → version."""
        return {(model, alias): version for (_, model, alias), version in self.everywhere(project).items()}

    def everywhere(self, project: str | None = None) -> dict[tuple[str, str, str], str]:
        """``(project, model, alias)`` → version, of one project or of all."""
        query = select(t.aliases).order_by(*t.aliases.primary_key)
        if project is not None:
            query = query.where(t.aliases.c.project == project)
        with self._db.read() as db:
            return {
                (row["project"], row["model"], row["alias"]): row["version"]
                for row in db.execute(query).mappings()
            }

    def history(
        self,
        project: str,
        model: str,
        alias: str | None = None,
        *,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Promotion]:
        """The moves of a model's aliases, newest first; ``before`` is the id to go on from."""
        c = t.promotions.c
        query = select(t.promotions).where(c.project == project, c.model == model).order_by(c.id.desc())
        if alias is not None:
            query = query.where(c.alias == alias)
        if before is not None:
            query = query.where(c.id < before)
        with self._db.read() as db:
            return [_promotion(row) for row in db.execute(query.limit(limit)).mappings()]

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
        by: Actor,
        why: str = "",
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Point the alias at ``version``, which a run has just made, if it still points at ``expect``;
        recorded with why.

        ``detail`` is what there is to know of a version that the run made, written in the same transaction:
        an alias never points at what the ledger does not know. Pointing it where it points already changes
        nothing.

        Raises:
            Conflict: somebody moved it meanwhile.
        """
        with self._compared(project, model, alias, expect), self._db.write() as db:
            held = _held(db, project, model, alias)
            if held == version:
                return
            if held != expect:
                raise _Overtaken
            if run_id is not None and detail is not None:
                made = Version(kind="model", name=model, version=version, detail=dict(detail))
                versions.put(db, run_id, "out", made)
            record = {"previous": held, "run_id": run_id, "gates": gates, "why": why}
            _move(db, project, model, alias, version, by, record)

    def point(
        self,
        project: str,
        model: str,
        alias: str,
        version: str,
        *,
        expect: str | None,
        by: Actor,
        why: str,
    ) -> Promotion:
        """Point the alias at a version that is registered and has passed its gates, if it still points at
        ``expect``. Gives the move that made it point there: this one, or, when it points there already, the
        one before, and nothing is changed.

        Raises:
            NotFound: no such version is registered.
            GateFailed: the version did not pass its gates.
            Conflict: somebody moved the alias meanwhile; the message says who.
        """
        with self._compared(project, model, alias, expect), self._db.write() as db:
            held = _held(db, project, model, alias)
            if held != version:
                if held != expect:
                    raise _Overtaken
                run_id, gates = _passed(db, project, model, version)
                record = {"previous": held, "run_id": run_id, "gates": gates, "why": why}
                _move(db, project, model, alias, version, by, record)
        return self.history(project, model, alias, limit=1)[0]

    def rollback(
        self, project: str, model: str, alias: str, *, expect: str | None, by: Actor, why: str
    ) -> Promotion:
        """Take the last promotion of the alias back, if it still points at ``expect``: it points at the
        version that held it before. Done again, the promotion before that one is taken back.

        Raises:
            NotFound: the alias has not been set, or nothing held it before.
            GateFailed: the version before did not pass its gates.
            Conflict: somebody moved the alias meanwhile; the message says who.
        """
        with self._compared(project, model, alias, expect), self._db.write() as db:
            held = _held(db, project, model, alias)
            if held != expect:
                raise _Overtaken
            version = _before(_moves(db, project, model, alias))
            if version is None:
                raise NotFound(
                    f"nothing held {alias} of {model} before"
                    + (f" version {held}" if held else "; it has not been set"),
                    hint=f"`manta history {model}` lists its moves; `manta promote` points it at any version",
                )
            run_id, gates = _passed(db, project, model, version)
            record = {"previous": held, "run_id": run_id, "gates": gates, "why": why, "kind": "rollback"}
            _move(db, project, model, alias, version, by, record)
        return self.history(project, model, alias, limit=1)[0]

    @contextmanager
    def _compared(self, project: str, model: str, alias: str, expect: str | None) -> Iterator[None]:
        """Around a transaction that finds the alias elsewhere: who moved it is read after its end."""
        try:
            yield
        except (_Overtaken, IntegrityError) as error:
            if isinstance(error, IntegrityError) and self.get(project, model, alias) is None:
                raise  # not the alias's row that was there already
            raise self._moved(project, model, alias, expect) from None

    def _moved(self, project: str, model: str, alias: str, expect: str | None) -> Conflict:
        held = self.get(project, model, alias)
        last = self.history(project, model, alias, limit=1)
        told = ""
        if last and last[0].version == held:
            at = last[0].at.strftime("%Y-%m-%d %H:%M:%S UTC")
            told = f"; {last[0].by or 'somebody'} moved it at {at}"
            told += f": {last[0].why}" if last[0].why else ""
        points = f"points at version {held}" if held else "has not been set"
        return Conflict(
            f"{alias} of {model} {points}, not at {expect or 'none'}{told}",
            hint=f"compare with the version that holds it now (`manta history {model}`), then promote again",
            version=held,
            by=last[0].by if told else "",
        )


def _held(db: Connection, project: str, model: str, alias: str) -> str | None:
    """Where the alias points; nobody else moves it before this transaction has ended."""
    query = select(t.aliases.c.version).where(*_same(project, model, alias)).with_for_update()
    return db.execute(query).scalar()


def _move(
    db: Connection,
    project: str,
    model: str,
    alias: str,
    version: str,
    by: Actor,
    record: Mapping[str, Any],
) -> None:
    """Raises:
    _Overtaken, IntegrityError: somebody else was faster.
    """
    held = record["previous"]
    place = {"project": project, "model": model, "alias": alias}
    if held is None:
        db.execute(insert(t.aliases).values(place | {"version": version}))
    else:
        # Compared again by the database, where two transactions may have read the same.
        seen = (*_same(project, model, alias), t.aliases.c.version == held)
        if db.execute(update(t.aliases).where(*seen).values(version=version)).rowcount != 1:
            raise _Overtaken
    kept = {"version": version, "promoted_by": by.name, "at": now(), **record}
    db.execute(insert(t.promotions).values(place | kept))
    why = {"why": record["why"]} if record["why"] else {}
    audit.append(
        db,
        by,
        record.get("kind", "promote"),
        f"model:{model}@{version}",
        project=project,
        alias=alias,
        previous=held,
        run=record["run_id"],
        **why,
    )


def _passed(db: Connection, project: str, model: str, version: str) -> tuple[int, list[dict[str, Any]]]:
    """The run that made a registered version, and what its gates said.

    Raises:
        NotFound: no such version is registered; what a replay made is not.
        GateFailed: one of its gates did not let pass.
    """
    v, r, p = t.versions.c, t.runs.c, t.promotions.c
    found = db.execute(
        select(r.id, r.metrics)
        .select_from(t.versions.join(t.runs))
        .where(and_(r.project == project, r.replay_of.is_(None), v.direction == "out"))
        .where(and_(v.kind == "model", v.name == model, v.version == version))
        .order_by(v.id.desc())
        .limit(1)
    ).first()
    if found is None:
        raise NotFound(
            f"no version {version} of {model} is registered", hint="`manta models` lists those that are"
        )
    # A run that was stopped after it had promoted left its figures only there.
    first = db.execute(
        select(p.gates)
        .where(p.project == project, p.model == model, p.version == version, p.run_id == found.id)
        .order_by(p.id)
        .limit(1)
    ).scalar()
    gates = list((found.metrics or {}).get("gates") or first or ())
    failed = [gate for gate in gates if not gate.get("passed")]
    if failed:
        raise GateFailed(
            f"version {version} of {model} did not pass its gates: "
            + "; ".join(str(gate.get("gate")) for gate in failed),
            hint=f"`manta show {found.id}` has their figures",
            gates=gates,
        )
    return found.id, gates


def _moves(db: Connection, project: str, model: str, alias: str) -> list[Any]:
    """``(kind, version)``, oldest first."""
    c = t.promotions.c
    where = (c.project == project, c.model == model, c.alias == alias)
    return list(db.execute(select(c.kind, c.version).where(*where).order_by(c.id)).tuples())


def _before(moves: Iterable[tuple[str, str]]) -> str | None:
    """The version that a rollback after these moves, ``(kind, version)``, goes back to."""
    held: list[str] = []
    for kind, version in moves:
        if kind == "rollback":
            held = held[:-1]
        else:
            held.append(version)
    return held[-2] if len(held) > 1 else None


def _promotion(row: Any) -> Promotion:
    kept = {name: value for name, value in row.items() if name not in ("project", "promoted_by")}
    return Promotion(**kept, by=row["promoted_by"])


def _same(project: str, model: str, alias: str) -> tuple[Any, ...]:
    c = t.aliases.c
    return (c.project == project, c.model == model, c.alias == alias)
