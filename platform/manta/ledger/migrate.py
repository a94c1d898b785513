"""Brings a ledger's tables to this version of manta: Alembic's migrations, under a lock."""

from __future__ import annotations

import secrets
from pathlib import Path

from sqlalchemy import Connection, insert, inspect, select, text

from manta.errors import Conflict
from manta.ledger import tables as t
from manta.ledger.audit import GENESIS
from manta.ledger.database import Database

ADVISORY_LOCK = 0x6D616E7461  # "manta": PostgreSQL's lock for whoever migrates
SCRIPTS = Path(__file__).parent / "migrations"


def upgrade(database: Database) -> None:
    """Safe to call from many processes at once; the first migrates, the others wait and find it done.

    Raises:
        Conflict: the ledger is of a newer manta.
    """
    if database.is_sqlite and database.engine.url.database:
        Path(database.engine.url.database).parent.mkdir(parents=True, exist_ok=True)
    # SQLite's write transaction is itself the lock.
    with database.write() as db:
        if not database.is_sqlite:
            db.execute(text("select pg_advisory_xact_lock(:key)"), {"key": ADVISORY_LOCK})
        if revision(db) != t.HEAD:
            _migrate(db)
        _fill(db)


def revision(db: Connection) -> str | None:
    """Which migration the ledger is at; "0001" for one from before there were migrations, None for none."""
    tables = inspect(db).get_table_names()
    if "alembic_version" in tables:
        return db.execute(text("select version_num from alembic_version")).scalar_one_or_none()
    return "0001" if "runs" in tables else None


def _migrate(db: Connection) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    config.attributes["connection"] = db
    held = revision(db)
    try:
        if held == "0001":
            command.stamp(config, held)
        command.upgrade(config, t.HEAD)
    except CommandError as error:
        raise Conflict(
            f"the ledger is at migration {held}, which this manta does not know: {error}",
            hint="it was upgraded by a newer manta: install that one here too",
        ) from error


def _fill(db: Connection) -> None:
    if db.execute(select(t.identity.c.value)).first() is None:
        db.execute(insert(t.identity).values(value=secrets.token_hex(3)))
    if db.execute(select(t.audit_head.c.id)).first() is None:
        db.execute(insert(t.audit_head).values(id=1, seq=0, hash=GENESIS))
