"""The audit log: every change is in it, and a change of it shows."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from manta.errors import NotFound
from manta.ledger.actor import Actor
from manta.ledger.database import Database
from manta.ledger.store import Ledger

ADA = Actor("user:ada", "http")


def _submit(ledger: Ledger, key: str) -> int:
    fields: dict[str, Any] = {"project": "p", "kind": "job", "definition": {}, "fingerprint": "f"}
    return ledger.submit(key=key, job="j", package="z", by=ADA, **fields).id


def test_changes_are_told_once_each_with_who_made_them(ledger: Ledger) -> None:
    run = _submit(ledger, "one")
    _submit(ledger, "one")
    ledger.request_stop(run, by=ADA)
    ledger.request_stop(run, by=ADA)
    ledger.projects.want_endpoint("p", "e", by=ADA, definition={}, package="z", fingerprint="f")
    ledger.projects.drop_endpoint("p", "e", by=ADA)
    ledger.projects.drop_endpoint("p", "e", by=ADA)
    ledger.access.add_key("mk_1", "d", "user:bob", by=ADA)
    ledger.access.revoke_key("mk_1", by=ADA)
    ledger.access.revoke_key("mk_1", by=ADA)
    ledger.access.grant("user:bob", "p", "viewer", by=ADA)
    ledger.access.take_away("user:bob", "p", by=ADA)
    ledger.audit.record(Actor("user:eve", "http"), "read", f"run:{run}", project="p", outcome="denied")
    told = [(e.actor, e.action, e.outcome) for e in reversed(ledger.audit.entries())]
    by_ada = ["submit", "stop", "deploy", "remove", "key.add", "key.revoke", "grant", "grant.remove"]
    assert told == [("user:ada", action, "done") for action in by_ada] + [("user:eve", "read", "denied")]
    with pytest.raises(NotFound):
        ledger.access.revoke_key("mk_none", by=ADA)


def test_the_chain_has_no_fork_when_many_write_at_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: _submit(ledger, str(number)), range(60)))
    verdict = ledger.audit.verify()
    assert (verdict.entries, verdict.broken) == (60, None)


@pytest.mark.parametrize(
    ("tampering", "broken"),
    [
        ("update audit set actor = 'user:bob' where seq = 3", 3),
        ("update audit set outcome = 'denied' where seq = 5", 5),
        ("update audit set at = '2020-01-01 00:00:00' where seq = 2", 2),
        ("delete from audit where seq = 4", 4),
        ("delete from audit where seq = 6", 0),
        ("update audit set seq = 10 where seq = 6", 6),
    ],
)
def test_any_change_of_the_log_is_found(ledger: Ledger, tampering: str, broken: int) -> None:
    for number in range(6):
        _submit(ledger, str(number))
    assert ledger.audit.verify().broken is None
    database = Database(ledger.url)
    with database.write() as db:
        db.execute(text(tampering))
    database.close()
    assert ledger.audit.verify().broken == broken


def test_a_log_that_was_rewritten_as_a_whole_lacks_the_head_that_was_kept(ledger: Ledger) -> None:
    _submit(ledger, "one")
    kept = ledger.audit.verify().head
    _submit(ledger, "two")
    assert ledger.audit.verify(expect=kept).broken is None
    assert ledger.audit.verify(expect="f" * 64).broken == 0


def test_entries_come_by_page_newest_first(ledger: Ledger) -> None:
    for number in range(7):
        _submit(ledger, str(number))
    first = ledger.audit.entries(limit=3)
    rest = ledger.audit.entries(before=first[-1].seq, limit=9)
    assert [entry.seq for entry in first + rest] == [7, 6, 5, 4, 3, 2, 1]
    assert ledger.audit.entries(project="other") == []
    assert len(ledger.audit.entries(actor="user:ada")) == 7
