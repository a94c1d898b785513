"""Requests that carried an idempotency key, and what they were answered."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

from sqlalchemy import ColumnElement, and_, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from manta.ledger import tables as t
from manta.ledger.database import Database, now


class Seen(NamedTuple):
    """A request that was sent before. ``status`` is None while the first is at work, in ``holder``."""

    request: str
    status: int | None
    answer: str
    holder: str
    seconds: float


class Requests:
    """The requests of one ledger: one for each principal and key."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def begin(self, principal: str, key: str, request: str, holder: str) -> Seen | None:
        """Write down that ``request`` is at work in ``holder``. None when it is the first with its key, else
        what is known of the first."""
        row = {"principal": principal, "key": key, "request": request, "at": now(), "answer": holder}
        try:
            with self._db.write() as db:
                db.execute(insert(t.requests).values(row))
                return None
        except IntegrityError:
            pass
        with self._db.read() as db:
            found = db.execute(select(t.requests).where(*_same(principal, key))).mappings().first()
        if found is None:  # the first failed meanwhile, and left nothing
            return self.begin(principal, key, request, holder)
        ended = found["status"] is not None
        return Seen(
            request=found["request"],
            status=found["status"],
            answer=found["answer"] if ended else "",
            holder="" if ended else found["answer"],
            seconds=(now() - found["at"]).total_seconds(),
        )

    def take_over(self, principal: str, key: str, holder: str, dead: str) -> bool:
        """Go on with a request whose holder has died. False when somebody else does already."""
        with self._db.write() as db:
            values = {"answer": holder, "at": now()}
            return (
                db.execute(update(t.requests).where(_held(principal, key, dead)).values(values)).rowcount == 1
            )

    def end(self, principal: str, key: str, holder: str, status: int, answer: str) -> None:
        """Keep the answer, for whoever sends the request again."""
        with self._db.write() as db:
            values = {"status": status, "answer": answer}
            db.execute(update(t.requests).where(_held(principal, key, holder)).values(values))

    def forget(self, principal: str, key: str, holder: str) -> None:
        """The request failed: it may be sent again with the same key."""
        with self._db.write() as db:
            db.execute(delete(t.requests).where(_held(principal, key, holder)))

    def purge(self, older_than: timedelta) -> None:
        """Remove what is older; its keys may then be used anew."""
        old = t.requests.c.at < now() - older_than
        with self._db.read() as db:
            if db.execute(select(t.requests.c.key).where(old).limit(1)).first() is None:
                return
        with self._db.write() as db:
            db.execute(delete(t.requests).where(old))


def _same(principal: str, key: str) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
    return (t.requests.c.principal == principal, t.requests.c.key == key)


def _held(principal: str, key: str, holder: str) -> ColumnElement[bool]:
    return and_(*_same(principal, key), t.requests.c.status.is_(None), t.requests.c.answer == holder)
