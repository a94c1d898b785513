"""Projects as last applied, and the endpoints that they want."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, delete, select, update

from manta.ledger import audit
from manta.ledger import tables as t
from manta.ledger.actor import Actor
from manta.ledger.database import Database, now
from manta.ledger.endpoints import EndpointRow


class Projects:
    """The projects of one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def apply(self, name: str, package: str, definitions: list[dict[str, Any]], *, by: Actor) -> None:
        """Keep what the project defines now."""
        values = {"package": package, "definitions": definitions, "applied_at": now()}
        with self._db.write() as db:
            self._db.upsert(db, t.projects, {"name": name}, values)
            audit.append(db, by, "apply", f"package:{package}", project=name)

    def get(self, name: str) -> tuple[str, list[dict[str, Any]]] | None:
        """``(package, definitions)`` as last applied; None before that."""
        with self._db.read() as db:
            row = db.execute(select(t.projects).where(t.projects.c.name == name)).mappings().one_or_none()
        return (row["package"], row["definitions"]) if row else None

    def names(self) -> list[str]:
        """Every project that was applied or that has a run."""
        with self._db.read() as db:
            applied = db.execute(select(t.projects.c.name)).scalars().all()
            run = db.execute(select(t.runs.c.project).distinct()).scalars().all()
        return sorted({*applied, *run})

    def want_endpoint(self, project: str, name: str, *, by: Actor, **values: Any) -> None:
        """What a user wants of an endpoint; the controller brings it about."""
        with self._db.write() as db:
            fields = values | {"state": "WANTED", "changed_at": now()}
            key = {"project": project, "name": name}
            self._db.upsert(db, t.endpoints, key, fields, blank={"served": {}, "message": ""})
            audit.append(db, by, "deploy", f"endpoint:{name}", project=project)

    def seen_endpoint(self, project: str, name: str, **values: Any) -> None:
        """What the controller has seen of it. One that was removed meanwhile stays removed."""
        same = and_(t.endpoints.c.project == project, t.endpoints.c.name == name)
        with self._db.write() as db:
            db.execute(update(t.endpoints).where(same).values(values | {"changed_at": now()}))

    def drop_endpoint(self, project: str, name: str, *, by: Actor) -> None:
        same = and_(t.endpoints.c.project == project, t.endpoints.c.name == name)
        with self._db.write() as db:
            if db.execute(delete(t.endpoints).where(same)).rowcount:
                audit.append(db, by, "remove", f"endpoint:{name}", project=project)

    def endpoints(self, project: str | None = None) -> list[EndpointRow]:
        query = select(t.endpoints).order_by(t.endpoints.c.project, t.endpoints.c.name)
        if project is not None:
            query = query.where(t.endpoints.c.project == project)
        with self._db.read() as db:
            return [EndpointRow(**row) for row in db.execute(query).mappings()]
