"""Leases: what one process at a time may hold, and loses when it no longer renews it."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import and_, delete, or_, select, update
from sqlalchemy.exc import IntegrityError

from manta.ledger import tables as t
from manta.ledger.database import Database, now


class Leases:
    """The leases of one ledger. Times are the asker's clock: keep ``seconds`` well above the clocks'
    differences. Moves in the ledger are compare-and-set besides: two holders for a moment do no harm."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def take(self, name: str, holder: str, seconds: float) -> bool:
        """Take the lease, or renew it when ``holder`` has it. False while another's has not run out."""
        at = now()
        values = {"holder": holder, "expires_at": at + timedelta(seconds=seconds)}
        free = or_(t.leases.c.holder == holder, t.leases.c.expires_at < at)
        try:
            with self._db.write() as db:
                if db.execute(update(t.leases).where(t.leases.c.name == name, free).values(values)).rowcount:
                    return True
                if db.execute(select(t.leases.c.name).where(t.leases.c.name == name)).first() is None:
                    db.execute(t.leases.insert().values({"name": name} | values))
                    return True
        except IntegrityError:
            pass  # somebody else made it first
        return False

    def holder(self, name: str) -> str | None:
        """Who holds it now; None when nobody does."""
        query = select(t.leases.c.holder).where(t.leases.c.name == name, t.leases.c.expires_at >= now())
        with self._db.read() as db:
            return db.execute(query).scalar_one_or_none()

    def release(self, name: str, holder: str) -> None:
        """Give it back before it runs out; nothing happens when ``holder`` no longer has it."""
        with self._db.write() as db:
            db.execute(delete(t.leases).where(and_(t.leases.c.name == name, t.leases.c.holder == holder)))
