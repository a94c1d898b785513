"""The audit log: append-only, each entry chained to the one before by its hash, written in the transaction
of the change that it tells of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC
from typing import Any

from sqlalchemy import Connection, insert, select, update

from manta.ledger import tables as t
from manta.ledger.actor import Actor
from manta.ledger.database import Database, now
from manta.ledger.records import Entry, Verdict

GENESIS = "0" * 64


class Audit:
    """The log of one ledger."""

    def __init__(self, database: Database) -> None:
        self._db = database

    def record(
        self,
        by: Actor,
        action: str,
        target: str = "",
        *,
        project: str = "",
        outcome: str = "done",
        **detail: Any,
    ) -> None:
        """An entry of its own: for what changes nothing else, such as a denial."""
        with self._db.write() as db:
            append(db, by, action, target, project=project, outcome=outcome, **detail)

    def entries(
        self,
        *,
        project: str | None = None,
        actor: str | None = None,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Entry]:
        """Newest first; ``before`` is the sequence number to go on from."""
        query = select(t.audit).order_by(t.audit.c.seq.desc()).limit(limit)
        if project is not None:
            query = query.where(t.audit.c.project == project)
        if actor is not None:
            query = query.where(t.audit.c.actor == actor)
        if before is not None:
            query = query.where(t.audit.c.seq < before)
        with self._db.read() as db:
            return [Entry(**row) for row in db.execute(query).mappings()]

    def verify(self, expect: str | None = None) -> Verdict:
        """Recompute the whole chain. ``expect`` is a head seen earlier that must still lie in it."""
        previous, seq, met = GENESIS, 0, expect in (None, GENESIS)
        for entry in self._oldest_first():
            if entry.seq != seq + 1:
                why = f"entry {seq + 1} is missing"
                return Verdict(entries=seq, head=previous, broken=seq + 1, why=why)
            if entry.previous != previous:
                why = f"entry {entry.seq} does not follow the one before it"
                return Verdict(entries=seq, head=previous, broken=entry.seq, why=why)
            if entry.hash != _hash(entry.model_dump(exclude={"hash"})):
                why = f"entry {entry.seq} was changed after it was written"
                return Verdict(entries=seq, head=previous, broken=entry.seq, why=why)
            previous, seq = entry.hash, entry.seq
            met = met or previous == expect
        with self._db.read() as db:
            head = db.execute(select(t.audit_head)).mappings().one()
        if (head["seq"], head["hash"]) != (seq, previous):
            why = f"the log ends at entry {seq}, and {head['seq']} were written"
            return Verdict(entries=seq, head=previous, broken=0, why=why)
        if not met:
            return Verdict(entries=seq, head=previous, broken=0, why="the expected head is not in the log")
        return Verdict(entries=seq, head=previous)

    def _oldest_first(self, step: int = 1000) -> Iterator[Entry]:
        seq = 0
        while True:
            query = select(t.audit).where(t.audit.c.seq > seq).order_by(t.audit.c.seq).limit(step)
            with self._db.read() as db:
                rows = db.execute(query).mappings().all()
            if not rows:
                return
            yield from (Entry(**row) for row in rows)
            seq = rows[-1]["seq"]


def append(
    db: Connection,
    by: Actor,
    action: str,
    target: str = "",
    *,
    project: str = "",
    outcome: str = "done",
    **detail: Any,
) -> None:
    """Write an entry in the caller's transaction. The head's row is locked, so that the chain has no fork."""
    head = db.execute(select(t.audit_head).with_for_update()).mappings().one()
    entry: dict[str, Any] = {
        "seq": head["seq"] + 1,
        "at": now(),
        "actor": by.name,
        "door": by.door,
        "action": action,
        "target": target,
        "project": project,
        "outcome": outcome,
        # As it will be read back: what JSON makes of it.
        "detail": json.loads(json.dumps(detail)),
        "previous": head["hash"],
    }
    entry["hash"] = _hash(entry)
    db.execute(insert(t.audit).values(entry))
    db.execute(update(t.audit_head).values(seq=entry["seq"], hash=entry["hash"]))


def _hash(entry: Mapping[str, Any]) -> str:
    at = entry["at"].astimezone(UTC).isoformat(timespec="microseconds")
    text = json.dumps({**entry, "at": at}, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
