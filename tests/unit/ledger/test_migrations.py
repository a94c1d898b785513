"""The ledger's tables: migrated to what the code says, by many at once, from any earlier state."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from manta.errors import Conflict, SettingsInvalid, Unavailable
from manta.ledger import migrate, tables
from manta.ledger.actor import OWNER
from manta.ledger.database import Database
from manta.ledger.store import Ledger


def _difference(url: str) -> list[object]:
    database = Database(url)
    with database.write() as db:
        found = compare_metadata(MigrationContext.configure(db), tables.metadata)
    database.close()
    return list(found)


def test_the_migrations_make_the_tables_that_the_code_uses(ledger: Ledger) -> None:
    assert _difference(ledger.url) == []


def test_the_newest_migration_is_the_one_the_code_names() -> None:
    scripts = ScriptDirectory(str(migrate.SCRIPTS))
    assert scripts.get_current_head() == tables.HEAD


def test_a_ledger_from_before_there_were_migrations_is_taken_over(tmp_path: Path) -> None:
    """As the first ledgers were made: by the first migration's tables, with no record of a migration."""
    url = f"sqlite:///{tmp_path}/old.db"
    database = Database(url)
    with database.write() as db:
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(migrate.SCRIPTS))
        config.attributes["connection"] = db
        command.upgrade(config, "0001")
        db.execute(text("drop table alembic_version"))
        db.execute(text("insert into identity values ('abcdef')"))
        db.execute(
            text(
                "insert into runs (key, project, job, kind, definition, fingerprint, package, params, needs,"
                " state, attempt, submission, message, stop_requested, metrics, created_at) values"
                " ('k', 'p', 'j', 'job', '{}', 'f', 'z', '{}', '[]', 'QUEUED', 0, '', '', 0, '{}',"
                " '2026-01-01 00:00:00')"
            )
        )
    database.close()
    ledger = Ledger(url)
    ledger.create()
    assert ledger.identity() == "abcdef"
    [run] = ledger.runs()
    assert (run.job, run.submitted_by, run.origin, run.priority) == ("j", "", "manta", 0)
    assert _difference(url) == []
    ledger.close()


def _create(url: str) -> None:
    ledger = Ledger(url)
    ledger.create()
    ledger.audit.record(OWNER, "came")
    ledger.close()


def test_many_processes_may_make_it_at_once(ledger_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    makers = [context.Process(target=_create, args=(ledger_url,)) for _ in range(4)]
    for maker in makers:
        maker.start()
    for maker in makers:
        maker.join()
    assert [maker.exitcode for maker in makers] == [0] * 4
    ledger = Ledger(ledger_url)
    assert ledger.audit.verify().entries == 4
    assert ledger.audit.verify().broken is None
    ledger.close()


def test_a_ledger_of_a_newer_manta_is_refused_and_left_as_it_is(ledger: Ledger) -> None:
    database = Database(ledger.url)
    with database.write() as db:
        db.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(Conflict, match="9999"):
        Ledger(ledger.url).create()
    with database.write() as db:
        db.execute(text(f"update alembic_version set version_num = '{tables.HEAD}'"))
    database.close()


def test_a_url_that_is_no_ledger_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="mysql"):
        Ledger("mysql://somewhere/x")
    with pytest.raises(SettingsInvalid):
        Ledger("what is this")
    with pytest.raises(Unavailable, match="does not answer"):
        Ledger("postgresql://nobody@127.0.0.1:1/none").create()
