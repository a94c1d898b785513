"""Where each model's aliases point, and every move they made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.exc import IntegrityError

from manta.errors import Conflict
from manta.ledger import audit, versions
from manta.ledger import tables as t
from manta.ledger.actor import Actor
from manta.ledger.database import Database, now
from manta.ledger.runs import Version


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
        with self._db.read() as db:
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
        by: Actor,
        detail: Mapping[str, Any] | None = None,
    ) -> None:
        """Point the alias at ``version`` if it still points at ``expect``; recorded with why.

        ``detail`` is what there is to know of a version that the run made, written in the same transaction:
        an alias never points at what the ledger does not know. Pointing it where it points already changes
        nothing.

        Raises:
            Conflict: somebody moved it meanwhile.
        """
        with self._db.write() as db:
            held = db.execute(select(t.aliases.c.version).where(*_same(project, model, alias))).scalar()
            if held == version:
                return
            if held != expect:
                raise _moved(model, alias, held, expect)
            if run_id is not None and detail is not None:
                made = Version(kind="model", name=model, version=version, detail=dict(detail))
                versions.put(db, run_id, "out", made)
            place = {"project": project, "model": model, "alias": alias}
            if held is None:
                try:
                    db.execute(insert(t.aliases).values(place | {"version": version}))
                except IntegrityError as error:
                    raise _moved(model, alias, None, expect) from error
            else:
                # Compared again by the database, where two transactions may have read the same.
                seen = (*_same(project, model, alias), t.aliases.c.version == held)
                if db.execute(update(t.aliases).where(*seen).values(version=version)).rowcount != 1:
                    raise _moved(model, alias, None, expect)
            record = {"version": version, "previous": held, "run_id": run_id, "at": now(), "gates": gates}
            db.execute(insert(t.promotions).values(place | record))
            target = f"model:{model}@{version}"
            audit.append(db, by, "promote", target, project=project, alias=alias, previous=held, run=run_id)


def _moved(model: str, alias: str, held: str | None, expect: str | None) -> Conflict:
    return Conflict(
        f"{alias} of {model} points at version {held or 'another'}, not at {expect}",
        hint="compare with the version that holds it now, then promote again",
    )


def _same(project: str, model: str, alias: str) -> tuple[Any, ...]:
    c = t.aliases.c
    return (c.project == project, c.model == model, c.alias == alias)
