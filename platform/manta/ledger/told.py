"""How much of each attempt was told to an OpenLineage consumer: what is left to tell is found here again,
whoever died while telling it."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import and_, or_, select, update

from manta.ledger import tables as t
from manta.ledger.database import Database
from manta.ledger.runs import Attempt

NOTHING, START, ALL = 0, 1, 2


class Untold(NamedTuple):
    """``stage`` is how much of the attempt was told: NOTHING or its START."""

    attempt: Attempt
    stage: int


class Told:
    """What was told of the attempts of one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def pending(self, limit: int = 100) -> list[Untold]:
        """Attempts of which there is something to tell, oldest first: that they run, or have ended."""
        c = t.attempts.c
        ended = c.ended_at.is_not(None)
        begun = and_(c.told == NOTHING, or_(c.running_at.is_not(None), ended))
        query = (
            select(t.attempts)
            .where(or_(begun, and_(c.told == START, ended)))
            .order_by(c.run_id, c.number)
            .limit(limit)
        )
        with self._db.read() as db:
            return [Untold(Attempt(**row), row["told"]) for row in db.execute(query).mappings()]

    def mark(self, attempt: Attempt, stage: int) -> None:
        """That it was told up to ``stage``; never less than before."""
        c = t.attempts.c
        same = and_(c.run_id == attempt.run_id, c.number == attempt.number, c.told < stage)
        with self._db.write() as db:
            db.execute(update(t.attempts).where(same).values(told=stage))
