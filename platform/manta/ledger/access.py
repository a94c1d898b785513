"""Who may do what: API keys, as prefix and digest, and the roles that principals hold in projects."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, insert, select, update

from manta.errors import NotFound
from manta.ledger import audit
from manta.ledger import tables as t
from manta.ledger.actor import Actor
from manta.ledger.database import Database, now
from manta.ledger.records import ApiKey, Grant
from manta.ledger.roles import EVERY_PROJECT, Role


class Access:
    """The keys and grants of one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def add_key(
        self,
        prefix: str,
        digest: str,
        principal: str,
        *,
        by: Actor,
        label: str = "",
        expires_at: datetime | None = None,
    ) -> ApiKey:
        row: dict[str, Any] = {
            "prefix": prefix,
            "digest": digest,
            "principal": principal,
            "label": label,
            "created_at": now(),
            "created_by": by.name,
            "expires_at": expires_at,
        }
        with self._db.write() as db:
            db.execute(insert(t.api_keys).values(row))
            audit.append(db, by, "key.add", f"key:{prefix}", principal=principal, label=label)
        return ApiKey(**row)

    def key(self, prefix: str) -> ApiKey | None:
        with self._db.read() as db:
            row = db.execute(select(t.api_keys).where(t.api_keys.c.prefix == prefix)).mappings().first()
        return ApiKey(**row) if row else None

    def open(self, prefix: str) -> tuple[ApiKey, dict[str, str]] | None:
        """A key and the roles of its principal, as one read; None when there is no such key."""
        same = t.grants.c.principal == t.api_keys.c.principal
        query = (
            select(t.api_keys, t.grants.c.project, t.grants.c.role)
            .select_from(t.api_keys.outerjoin(t.grants, same))
            .where(t.api_keys.c.prefix == prefix)
        )
        with self._db.read() as db:
            rows = db.execute(query).mappings().all()
        if not rows:
            return None
        key = ApiKey(**{name: rows[0][name] for name in ApiKey.model_fields})
        return key, {row["project"]: row["role"] for row in rows if row["project"] is not None}

    def keys(self) -> list[ApiKey]:
        """Newest first."""
        with self._db.read() as db:
            rows = db.execute(select(t.api_keys).order_by(t.api_keys.c.created_at.desc())).mappings()
            return [ApiKey(**row) for row in rows]

    def revoke_key(self, prefix: str, *, by: Actor) -> None:
        """From now on it opens nothing. Revoking it again changes nothing.

        Raises:
            NotFound: there is no such key.
        """
        with self._db.write() as db:
            found = db.execute(select(t.api_keys.c.revoked_at).where(t.api_keys.c.prefix == prefix)).first()
            if found is None:
                raise NotFound(f"there is no key {prefix}", hint="`manta keys list` shows them")
            if found[0] is None:
                db.execute(update(t.api_keys).where(t.api_keys.c.prefix == prefix).values(revoked_at=now()))
                audit.append(db, by, "key.revoke", f"key:{prefix}")

    def used(self, prefixes: Iterable[str], at: datetime) -> None:
        """Write down when keys were used last. Not called with each use: each read would be a write."""
        with self._db.write() as db:
            these = t.api_keys.c.prefix.in_(list(prefixes))
            db.execute(update(t.api_keys).where(these).values(last_used_at=at))

    def grant(self, principal: str, project: str, role: str, *, by: Actor) -> None:
        """Give ``principal`` that role in ``project`` ("*": in all), in place of the one it had there."""
        key = {"principal": principal, "project": project}
        with self._db.write() as db:
            self._db.upsert(db, t.grants, key, {"role": role})
            audit.append(db, by, "grant", principal, project=project, role=role)

    def take_away(self, principal: str, project: str, *, by: Actor) -> None:
        """From now on the principal holds no role there. Taking it away again changes nothing."""
        same = and_(t.grants.c.principal == principal, t.grants.c.project == project)
        with self._db.write() as db:
            if db.execute(delete(t.grants).where(same)).rowcount:
                audit.append(db, by, "grant.remove", principal, project=project)

    def roles(self, principal: str) -> dict[str, str]:
        """Project → role; "*" for what holds in all."""
        query = select(t.grants.c.project, t.grants.c.role).where(t.grants.c.principal == principal)
        with self._db.read() as db:
            return dict(db.execute(query).tuples().all())

    def grants(self) -> list[Grant]:
        query = select(t.grants).order_by(t.grants.c.principal, t.grants.c.project)
        with self._db.read() as db:
            return [Grant(row.principal, row.project, row.role) for row in db.execute(query)]


__all__ = ["EVERY_PROJECT", "Access", "ApiKey", "Grant", "Role"]
