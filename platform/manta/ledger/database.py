"""Opens the ledger's database: SQLite on a laptop, PostgreSQL for a team, one code path."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json
from sqlalchemy import Connection, Engine, Table, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DisconnectionError, NoSuchModuleError, OperationalError

from manta.errors import ExtraMissing, SettingsInvalid, Unavailable
from manta.secrets import redactor, resolve_url, without_passwords

READS = "manta_reads"  # the execution option of a transaction that will not write
# A connection that was used a moment ago is taken to live: asking it each time would double what a read
# takes. One that lay idle longer is asked before it is used, and replaced when its server has gone.
IDLE_SECONDS = 1.0


def now() -> datetime:
    return datetime.now(UTC)


class Database:
    """A pool of connections. Safe to use from several threads and processes.

    The secrets that the URL names are read here; ``url`` is what may be shown of it.

    Raises:
        SecretUnreadable: one of them is not there.
        SettingsInvalid: the URL is not one of SQLite or PostgreSQL.
        ExtraMissing: PostgreSQL's driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = without_passwords(url)
        self.engine = _open(url)
        self._reader = self.engine.execution_options(**{READS: True})
        writes = {} if self.is_sqlite else {"isolation_level": "READ COMMITTED"}
        self._writer = self.engine.execution_options(**writes)

    @property
    def is_sqlite(self) -> bool:
        return self.engine.dialect.name == "sqlite"

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """One transaction: all of it is committed, or none.

        Raises:
            Unavailable: the database does not answer.
        """
        with _mapped(self), self._writer.begin() as db:
            yield db

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """What does not write, and on SQLite waits for no writer. There all of it sees one state of the
        ledger; in PostgreSQL each statement sees the newest.

        Raises:
            Unavailable: the database does not answer.
        """
        with _mapped(self), self._reader.begin() as db:
            yield db

    def upsert(
        self,
        db: Connection,
        table: Table,
        key: Mapping[str, Any],
        values: Mapping[str, Any],
        blank: Mapping[str, Any] | None = None,
    ) -> None:
        """Insert the row, with ``blank`` for what ``values`` leave out; or, where one with that primary key
        is, change it to ``values``."""
        # Loaded when used: a dialect imports all of its drivers' sides, which every worker would wait for.
        dialect = importlib.import_module(f"sqlalchemy.dialects.{self.engine.dialect.name}")
        insert: Callable[[Table], Any] = dialect.insert
        statement = insert(table).values({**key, **(blank or {}), **values})
        db.execute(statement.on_conflict_do_update(index_elements=list(key), set_=dict(values)))

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _mapped(database: Database) -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        # Connections that died with the server are of no more use.
        if not database.is_sqlite:
            database.engine.dispose()
        raise Unavailable(
            f"the ledger at {database.url} does not answer: {redactor.text(str(error.orig))}",
            hint="is its database up? what was not committed is sent again by who sent it",
        ) from error


def _open(url: str) -> Engine:
    try:
        made = make_url(resolve_url(url))
        if made.get_backend_name() not in ("sqlite", "postgresql"):
            raise SettingsInvalid(
                f"ledger_url names {made.get_backend_name()}",
                hint="use sqlite:///… or postgresql+psycopg://…",
            )
        if made.get_backend_name() == "postgresql":
            made = made.set(drivername="postgresql+psycopg")
            # Each statement sees what was committed before it, in a transaction or not: a read needs none,
            # and saves the two ways there and back that begin and end it. Whoever writes asks for one.
            alone: Any = {"isolation_level": "AUTOCOMMIT", "json_deserializer": _json}
            engine = create_engine(made, pool_size=10, max_overflow=20, **alone)
            _ask_the_idle(engine)
            return engine
        engine = create_engine(made, json_deserializer=_json)
    except (ArgumentError, NoSuchModuleError) as error:
        raise SettingsInvalid(
            f"ledger_url: {without_passwords(redactor.text(str(error)))}",
            hint="use sqlite:///… or postgresql+psycopg://…",
        ) from None
    except ModuleNotFoundError as error:
        raise ExtraMissing(
            f"a ledger in PostgreSQL needs {error.name}", hint="pip install 'manta-ml[postgres]'"
        ) from None
    event.listen(engine, "connect", _pragmas)
    event.listen(engine, "begin", _begin)
    return engine


def _ask_the_idle(engine: Engine) -> None:
    """Before a connection is used that has lain idle, see that its server is there."""

    def used(_connection: Any, record: Any) -> None:
        record.info["used"] = time.monotonic()

    def about_to_be_used(connection: Any, record: Any, _fairy: Any) -> None:
        now = time.monotonic()
        if now - record.info.get("used", now) < IDLE_SECONDS:  # or just made
            return
        try:
            engine.dialect.do_ping(connection)
        except engine.dialect.loaded_dbapi.Error as error:
            raise DisconnectionError(str(error)) from error  # the pool takes another

    event.listen(engine, "checkin", used)
    event.listen(engine, "checkout", about_to_be_used)


def _json(text: str | bytes) -> Any:
    try:
        return from_json(text)  # several times as fast
    except ValueError:
        return json.loads(text)  # which takes halves of surrogate pairs too


def _pragmas(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA busy_timeout=20000")
    connection.execute("PRAGMA foreign_keys=ON")
    # The driver's own BEGIN is deferred: two readers that turn writers would then deadlock.
    connection.isolation_level = None


def _begin(connection: Connection) -> None:
    reads = connection.get_execution_options().get(READS, False)
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
