"""SQL databases: a table or a query of PostgreSQL, MySQL, MariaDB, SQLite, SQL Server, and of whatever else
has a SQLAlchemy dialect.

How each is read is in :mod:`manta.connectors.databases`: PostgreSQL by binary COPY in parallel tasks that
share one snapshot, the others by one connection, unless told to do without one consistent state.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator, model_validator

from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.secrets import REFERENCE, resolve, resolve_url

if TYPE_CHECKING:
    from manta.connectors.databases import Piece

BACKENDS = {"postgresql": "postgres", "postgres": "postgres", "mysql": "mysql", "mariadb": "mysql"}


def resolved(url: str) -> str:
    """The URL with its secrets; a value within it is URL-encoded, a value that is all of it is not."""
    return str(resolve(url)) if REFERENCE.fullmatch(url) else resolve_url(url)


class Sql(Source):
    """A table, or a query, of a database.

        Sql(url="postgresql://reader:${env:DB_PASSWORD}@db/shop", table="orders", cursor="updated_at")

    All of a reading is of one moment where the database can give that. PostgreSQL: an exported snapshot,
    which all tasks share. MySQL, MariaDB, SQLite: one statement on one connection. SQL Server: the same,
    where the database allows snapshot isolation; else, rows that are changed meanwhile may be read before or
    after it. (SQL Server has not been tried with a server; its statements and its errors have.)

    Attributes:
        url: as SQLAlchemy writes it, ``postgresql://user:${env:PASSWORD}@host/database``; also ``mysql``,
            ``mariadb``, ``mssql`` and ``sqlite:///shop.db`` (a file, relative to the project folder); or as a
            whole a secret, ``${env:SHOP_URL}``.
        table: its name as the database has it, case included; with a schema: ``sales.orders``; with a dot in
            a name: ``"a.b".orders``.
        query: a select statement, in place of a table; it becomes a subquery.
        partition_on: the column, of any type that has an order, by whose ranges tasks share the work; rows
            that have none there are a piece of their own. An index on it helps. Without it a PostgreSQL table
            is cut by where its rows lie, everything else is one piece.
        cursor: the column that grows: only rows beyond the greatest value that the last committed reading
            saw are read, up to the greatest there is now. Null in no row. Rows come in its order, so that of
            several with one key the newest stays; with ``partition_on``, in its order within each piece.
        lateness: how far behind that value a reading begins, for rows that become visible late (a long
            transaction): in seconds, or for a number as such. Those rows are read again every time, so the
            ingest needs ``mode="upsert"``, and makes a version every time.
        consistent: False lets ``partition_on`` also cut what the database cannot show to several connections
            in one state.
    """

    kind: Literal["sql"] = "sql"
    url: str
    table: str | None = None
    query: str | None = None
    partition_on: str | None = None
    cursor: str | None = None
    lateness: float = Field(default=0, ge=0)
    consistent: bool = True

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        if "://" not in url and not REFERENCE.fullmatch(url):
            # It may hold a password: it is not repeated.
            raise ValueError("write it as postgresql://user:${env:PASSWORD}@host/database")
        return url

    @model_validator(mode="after")
    def _says_what_to_read(self) -> Sql:
        if (self.table is None) == (self.query is None):
            raise ValueError("name either a table or a query")
        if self.lateness and self.cursor is None:
            raise ValueError("lateness is how far before the cursor to begin: name the cursor's column")
        return self

    @property
    def incremental(self) -> bool:
        return self.cursor is not None

    @property
    def overlaps(self) -> bool:
        return self.lateness > 0

    @property
    def what(self) -> str:
        """What is read, for people."""
        return self.table or "the query"

    def observe(self, root: Path) -> None:
        return None

    def opened(self, ask: Ask) -> AbstractContextManager[Reading]:
        return self._backend().opened(self, ask)  # type: ignore[no-any-return]

    def read(self, piece: Piece, ask: Ask) -> Iterator[Rows]:
        return self._backend().read(self, piece, ask)  # type: ignore[no-any-return]

    def _backend(self) -> Any:
        scheme = resolved(self.url).partition("://")[0].partition("+")[0]
        return importlib.import_module(f"manta.connectors.databases.{BACKENDS.get(scheme, 'others')}")
