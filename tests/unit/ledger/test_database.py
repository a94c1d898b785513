"""What each ledger's database gives, over both: whole transactions, connections that live, JSON as it was."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from sqlalchemy import insert, select, text

from manta.ledger import database, migrate
from manta.ledger import tables as t
from manta.ledger.database import Database

LEASE = {"name": "n", "holder": "h", "expires_at": database.now()}


@pytest.fixture
def db(ledger_url: str) -> Iterator[Database]:
    db = Database(ledger_url)
    migrate.upgrade(db)
    yield db
    db.close()


def leases(db: Database) -> list[str]:
    with db.read() as reading:
        return list(reading.execute(select(t.leases.c.name)).scalars())


def test_what_fails_half_way_leaves_nothing(db: Database) -> None:
    def half() -> None:
        with db.write() as writing:
            writing.execute(insert(t.leases).values(LEASE))
            assert leases(db) == []  # nor does anybody see it before it is whole
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        half()
    assert leases(db) == []
    with db.write() as writing:
        writing.execute(insert(t.leases).values(LEASE))
    assert leases(db) == ["n"]


def test_json_comes_back_as_it_was(db: Database) -> None:
    given = {"half": "\ud800", "big": 2**70, "small": 1e-300, "text": "schön", "nothing": None, "none": []}
    with db.write() as writing:
        row = {"run_id": None, "at": database.now(), "what": "told", "detail": given}
        writing.execute(insert(t.events).values(row))
    with db.read() as reading:
        assert reading.execute(select(t.events.c.detail)).scalar_one() == given


@pytest.fixture
def postgres_db(postgres_url: str) -> Iterator[Database]:
    db = Database(postgres_url)
    migrate.upgrade(db)
    yield db
    db.close()


def test_a_connection_that_died_while_idle_is_replaced(
    postgres_db: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "IDLE_SECONDS", 0.0)
    assert leases(postgres_db) == []
    end = "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
    with psycopg.connect(postgres_url, autocommit=True) as other:
        ended = other.execute(f"{end} and pid <> pg_backend_pid()").fetchall()
    assert ended == [(True,)]
    assert leases(postgres_db) == []
    with postgres_db.write() as writing:
        assert writing.execute(text("select 1")).scalar_one() == 1
