"""Feast's PostgreSQL layout: one table per view, one row per (entity key, feature).

A view is written in one transaction: its rows are copied, a row for each key, into a temporary table, and
spread from there. Readers see the values of before until it commits. Of a view that is pushed to, and so is
never replaced whole, a part at a time is written, so that no push waits for all.

What is read comes in PostgreSQL's own binary form, over a prepared statement, by libpq itself.
"""

from __future__ import annotations

import asyncio
import struct
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, groupby, repeat
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from manta.definitions.sources import driver
from manta.errors import FeaturesUnavailable, SettingsInvalid
from manta.features.compiled import Feature, View
from manta.features.stores import Held
from manta.features.stores._held import held_of, place_of
from manta.secrets import redactor, resolve
from manta.words import quoted

if TYPE_CHECKING:
    import polars as pl

psycopg: Any = driver("psycopg", "postgres")

KEYS_PER_PART = 20_000
LOCK_MILLISECONDS = 200
TIMEOUT_SECONDS = 5
YEAR_2000 = 946_684_800_000_000  # PostgreSQL counts microseconds from there
_BYTEA, _BYTEA_ARRAY = 17, 1001
_U16, _I32 = struct.Struct("!H"), struct.Struct("!i")
_NULL = _I32.pack(-1)
_CONNECTION = ("host", "port", "user", "password", "sslmode", "keepalives_idle")
_COLUMNS = "entity_key, feature_name, value, value_text, event_ts, created_ts"
_FILES = {"sslkey_path": "sslkey", "sslcert_path": "sslcert", "sslrootcert_path": "sslrootcert"}


def open_store(store: dict[str, Any]) -> PostgresStore:
    """``store``: what Feast's configuration says of the connection; references to secrets may stand in it."""
    return PostgresStore(store)


class PostgresStore:
    def __init__(self, store: dict[str, Any]) -> None:
        self._link = Link(store)

    def rows(self, views: Sequence[View]) -> PostgresRows:
        return PostgresRows(self._link, views)

    def write(self, view: View, rows: pl.DataFrame, *, whole: bool = False) -> int:
        """With ``whole``, in one transaction: a failure leaves the view as it was."""
        from manta.features.stores._columns import batches, in_order, keys_of

        whole = whole and not view.pushed
        keys, rows = in_order(keys_of(view, rows), rows)
        if whole:
            self._drop_second_index(view)
            self._transaction(view, keys, rows, whole=True)
            return rows.height
        for number, batch in enumerate(batches(rows, KEYS_PER_PART)):
            first = number * KEYS_PER_PART
            self._transaction(view, keys[first : first + batch.height], batch, whole=False)
        return rows.height

    def _drop_second_index(self, view: View) -> None:
        """Feast makes one beside the primary key, which begins with the same column and serves as well."""
        with (
            self._link.connection(f"be written (view {view.name!r})") as connection,
            # Readers would wait behind it; and whoever owns the table may keep it.
            suppress(psycopg.errors.LockNotAvailable, psycopg.errors.InsufficientPrivilege),
        ):
            connection.execute(f"SET lock_timeout = '{LOCK_MILLISECONDS}ms'")
            found = connection.execute(_SECOND_INDEX, [quoted(view.table), f"{view.table}_ek"]).fetchone()
            if found is not None:
                connection.execute(f"DROP INDEX IF EXISTS {found[0]}")

    def _transaction(self, view: View, keys: list[bytes], rows: pl.DataFrame, whole: bool) -> None:
        with (
            self._link.connection(f"be written (view {view.name!r})") as connection,
            connection.transaction(),
        ):
            cursor = connection.cursor()
            cursor.execute(_table(view))
            if whole and _is_empty(cursor, view):
                _copy(cursor, f"{quoted(view.table)} ({_COLUMNS})", _long(view, keys, rows))
            else:
                cursor.execute(_temporary(view))
                _copy(cursor, "now_there", _wide(view, keys, rows))
                cursor.execute("ANALYZE now_there")
                cursor.execute(_upsert(view, whole))
                if whole:
                    cursor.execute(
                        f"DELETE FROM {quoted(view.table)} AS t WHERE NOT EXISTS "
                        "(SELECT FROM now_there AS n WHERE n.entity_key = t.entity_key)"
                    )
            _check_counts(cursor, view, rows.height, whole)

    def prepare(self) -> None:
        """Raises:
        SettingsInvalid: sessions of this user are not in UTC, where Feast writes other times than it means.
        """
        with self._link.connection("be read") as connection:
            (zone,) = connection.execute("SHOW timezone").fetchone()
        if zone.upper() not in ("UTC", "ETC/UTC", "GMT", "ETC/GMT", "UCT", "ZULU"):
            raise SettingsInvalid(
                f"sessions of the online store are in the time zone {zone}, where Feast writes other times "
                "than it means",
                hint="ALTER ROLE … SET timezone TO 'UTC', for the role that the online store names",
            )

    def close(self) -> None:
        self._link.close()


# Quoted, and with its schema where that is not the first; of the table that the view has, not of one that is
# called the same elsewhere.
_SECOND_INDEX = (
    "SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
    "WHERE indrelid = to_regclass(%s) AND relname = %s"
)


class PostgresRows:
    """One query for all views, at one instant."""

    def __init__(self, link: Link, views: Sequence[View]) -> None:
        self._link = link
        self._places = [{name.encode(): at for name, at in place_of(view).items()} for view in views]
        # Of several views, a fifth column says of which a row is.
        which = [f", {place}::int2" if len(views) > 1 else "" for place in range(len(views))]
        self._query = " UNION ALL ".join(
            f"SELECT entity_key, feature_name, coalesce(value, ''), event_ts{which[place]} "
            f"FROM {quoted(view.table)} "
            f"WHERE entity_key = ANY(${place + 1}) AND feature_name IN ({_names(view)})"
            for place, view in enumerate(views)
        )
        self._local = threading.local()

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        return self._held(self._link.ask(self._query, [_array(column) for column in keys]))

    async def fetch_async(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        return self._held(await self._link.ask_async(self._query, list(map(list, keys))))

    def _held(self, result: Any) -> list[Held]:
        rows = self._cells(result)
        if len(self._places) == 1:
            return [held_of(list(chain.from_iterable(rows)), 4, self._places[0], _micros)]
        cells: list[list[bytes]] = [[] for _ in self._places]
        for place, some in groupby(rows, itemgetter(4)):
            cells[_U16.unpack(place)[0]].extend(chain.from_iterable(some))
        return [held_of(each, 5, places, _micros) for each, places in zip(cells, self._places, strict=True)]

    def _cells(self, result: Any) -> list[tuple[bytes, ...]]:
        """The rows of a result, each cell in PostgreSQL's own bytes: the C half of psycopg takes them all at
        once, where a call for each would take longer than the query."""
        loader = getattr(self._local, "loader", None)
        if loader is None:
            loader = self._local.loader = psycopg.adapt.Transformer()
            loader.set_loader_types([_BYTEA] * (4 if len(self._places) == 1 else 5), psycopg.pq.Format.BINARY)
        loader.set_pgresult(result, set_loaders=False)
        rows: list[tuple[bytes, ...]] = loader.load_rows(0, result.ntuples, tuple)
        return rows


class Link:
    """Connections to one database: one for each thread, and for each event loop as many as are used at once.

    A connection that has died is found out by the next who uses it, who asks again over a new one.
    """

    def __init__(self, store: dict[str, Any]) -> None:
        self._store = store
        self._local = threading.local()
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()
        self._free: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()

    def ask(self, query: str, params: list[bytes]) -> Any:
        """The result, in binary.

        Raises:
            FeaturesUnavailable: the database does not answer, or has no such table.
        """
        for again in (True, False):
            try:
                connection = self._kept()
                return self._prepared(connection, query, params)
            except psycopg.Error as error:
                broken = self._drop()
                if not (again and broken):
                    raise self._unavailable(error, "be read") from error
        raise AssertionError("not reached")

    def _prepared(self, connection: Any, query: str, params: list[bytes]) -> Any:
        pq, pgconn = psycopg.pq, connection.pgconn
        names = self._local.names
        if query not in names:
            name = f"manta_{len(names)}".encode()
            result = pgconn.prepare(name, query.encode(), [_BYTEA_ARRAY] * len(params))
            if result.status != pq.ExecStatus.COMMAND_OK:
                raise psycopg.errors.error_from_result(result)
            names[query] = name
        result = pgconn.exec_prepared(names[query], params, [1] * len(params), 1)
        if result.status != pq.ExecStatus.TUPLES_OK:
            raise psycopg.errors.error_from_result(result)
        return result

    async def ask_async(self, query: str, params: list[list[bytes]]) -> Any:
        loop = asyncio.get_running_loop()
        free = self._free.setdefault(loop, [])
        for again in (True, False):
            connection, kept = None, bool(free)
            try:
                if free:
                    connection = free.pop()
                else:
                    connection = await psycopg.AsyncConnection.connect(**self._arguments(), autocommit=True)
                    connection.prepare_threshold = 0
                cursor = psycopg.AsyncRawCursor(connection)
                await cursor.execute(query, params, binary=True)
                result = cursor.pgresult
                free.append(connection)
                return result
            except psycopg.Error as error:
                if connection is not None:
                    await connection.close()
                free.clear()
                if not (again and kept):
                    raise self._unavailable(error, "be read") from error
            except asyncio.CancelledError:
                if connection is not None:
                    await connection.close()
                raise
        raise AssertionError("not reached")

    @contextmanager
    def connection(self, what: str) -> Iterator[Any]:
        """One for writing, in a transaction that the caller begins.

        Raises:
            FeaturesUnavailable: whatever the database complains of, ``what`` being what it cannot do.
        """
        try:
            with psycopg.connect(**self._arguments(), autocommit=True) as connection:
                yield connection
        except psycopg.Error as error:
            raise self._unavailable(error, what) from error

    def close(self) -> None:
        for connection in list(self._made):
            connection.close()
        self._local = threading.local()
        self._free.clear()

    def _kept(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = psycopg.connect(**self._arguments(), autocommit=True)
            self._local.connection, self._local.names = connection, {}
            self._made.add(connection)
        return connection

    def _drop(self) -> bool:
        """Whether the connection had died."""
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is None:
            return False
        broken = connection.pgconn.status != psycopg.pq.ConnStatus.OK
        connection.close()
        return bool(broken)

    def _arguments(self) -> dict[str, Any]:
        store = resolve(self._store)
        schema = (store.get("db_schema") or store["user"]).strip()
        path = schema if schema == "public" else f"{schema},public"
        given = {name: store[name] for name in _CONNECTION if store.get(name) is not None}
        given |= {name: store[key] for key, name in _FILES.items() if store.get(key)}
        return given | {
            "dbname": store["database"],
            "connect_timeout": TIMEOUT_SECONDS,
            "tcp_user_timeout": 1000 * TIMEOUT_SECONDS,
            # Look-ups are planned once; what they cost does not depend on the keys.
            "options": f"-c search_path={path} -c plan_cache_mode=force_generic_plan -c jit=off",
        }

    def _unavailable(self, error: Exception, what: str) -> FeaturesUnavailable:
        where = f"{self._store['host']}:{self._store.get('port', 5432)}/{self._store['database']}"
        if isinstance(error, psycopg.errors.UndefinedTable):
            hint = "materialize the features: `manta run` with the name of their Materialize"
        else:
            hint = "see that PostgreSQL runs there and lets this user in; the next call connects anew"
        said = redactor.text(str(error).strip())
        return FeaturesUnavailable(f"the online store at {where} cannot {what}: {said}", hint=hint)


# --- reading ------------------------------------------------------------------------------------------------


def _micros(instants: Sequence[bytes]) -> list[int]:
    return [at + YEAR_2000 for at in struct.unpack(f"!{len(instants)}q", b"".join(instants))]


def _array(keys: Sequence[bytes]) -> bytes:
    """A `bytea[]` in PostgreSQL's binary form."""
    if not keys:
        return struct.pack("!iii", 0, 0, _BYTEA)
    head = struct.pack("!iiiii", 1, 0, _BYTEA, len(keys), 1)
    return head + b"".join([_I32.pack(len(key)) + key for key in keys])


def _names(view: View) -> str:
    return ", ".join(_literal(feature.name) for feature in view.features)


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# --- writing ------------------------------------------------------------------------------------------------


def _table(view: View) -> str:
    """As Feast makes it when a repository is applied."""
    return (
        f"CREATE TABLE IF NOT EXISTS {quoted(view.table)} (entity_key BYTEA, feature_name TEXT, value BYTEA, "
        "value_text TEXT NULL, vector_value BYTEA NULL, event_ts TIMESTAMPTZ, created_ts TIMESTAMPTZ, "
        "PRIMARY KEY(entity_key, feature_name))"
    )


def _temporary(view: View) -> str:
    columns = "".join(f", v{at} bytea, t{at} text" for at in range(len(view.features)))
    return (
        "CREATE TEMPORARY TABLE now_there (entity_key bytea, event_ts timestamptz, created_ts timestamptz"
        f"{columns}) ON COMMIT DROP"
    )


def _is_empty(cursor: Any, view: View) -> bool:
    """Whether nothing is there; if so, no other writes into it before this transaction ends."""
    table = quoted(view.table)
    if cursor.execute(f"SELECT FROM {table} LIMIT 1").fetchone() is not None:
        return False
    cursor.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE")
    return cursor.execute(f"SELECT FROM {table} LIMIT 1").fetchone() is None


def _copy(cursor: Any, into: str, columns: Iterator[list[Iterable[bytes]]]) -> None:
    """``columns``, a batch of rows at a time, in the binary form of COPY, each row's first with its width."""
    with cursor.copy(f"COPY {into} FROM STDIN (FORMAT BINARY)") as copy:
        copy.write(b"PGCOPY\n\xff\r\n\0" + struct.pack("!ii", 0, 0))
        for batch in columns:
            # The first is of bytes for each row; what is the same for all has no end.
            copy.write(b"".join(chain.from_iterable(zip(*batch, strict=False))))
        copy.write(b"\xff\xff")


def _wide(view: View, keys: list[bytes], rows: pl.DataFrame) -> Iterator[list[Iterable[bytes]]]:
    """A row for each key, as the temporary table has it."""
    width = _U16.pack(3 + 2 * len(view.features))
    for some, batch in _batches(keys, rows):
        columns: list[Iterable[bytes]] = [_cells(some, width), *_times(batch)]
        for feature in view.features:
            columns += _feature(feature, batch)
        yield columns


def _long(view: View, keys: list[bytes], rows: pl.DataFrame) -> Iterator[list[Iterable[bytes]]]:
    """A row for each key and feature, as Feast has it, in the order of the primary key."""
    features = sorted(view.features, key=lambda each: each.name)
    for some, batch in _batches(keys, rows):
        cells = _cells(some, _U16.pack(len(_COLUMNS.split(","))))
        times = [event + created for event, created in zip(*_times(batch), strict=True)]
        columns: list[Iterable[bytes]] = []
        for feature in features:
            name = feature.name.encode()
            columns += [cells, repeat(_I32.pack(len(name)) + name), *_feature(feature, batch), times]
        yield columns


def _batches(keys: list[bytes], rows: pl.DataFrame) -> Iterator[tuple[list[bytes], pl.DataFrame]]:
    from manta.features.stores._columns import batches

    for number, batch in enumerate(batches(rows, KEYS_PER_PART)):
        first = number * KEYS_PER_PART
        yield keys[first : first + batch.height], batch


def _cells(values: Iterable[bytes], before: bytes = b"") -> list[bytes]:
    return [before + _I32.pack(len(value)) + value for value in values]


def _times(batch: pl.DataFrame) -> list[list[bytes]]:
    """When it happened and when it was written."""
    from manta.features.stores._columns import fixed

    columns = []
    for name in ("__ts", "__created"):
        micros = (batch[name] - YEAR_2000).fill_null(0).to_numpy().astype(">i8")
        columns.append(fixed(_I32.pack(8), micros))
        for at in batch[name].is_null().arg_true().to_list():
            columns[-1][at] = _NULL
    return columns


def _feature(feature: Feature, batch: pl.DataFrame) -> list[list[bytes]]:
    """Its value, and its text for Feast's filters."""
    from manta.features.stores._columns import texts_of, values_of

    texts = (None if text is None else text.encode() for text in texts_of(feature.type, batch[feature.name]))
    return [
        _cells(values_of(feature.type, batch[feature.name])),
        [_NULL if text is None else _I32.pack(len(text)) + text for text in texts],
    ]


def _upsert(view: View, whole: bool) -> str:
    spread = ", ".join(
        f"({_literal(feature.name)}, v{at}, t{at})"
        for at, feature in sorted(enumerate(view.features), key=lambda each: each[1].name)
    )
    # What is there already is left, not rewritten.
    replaced = (
        "(held.value, held.event_ts, held.created_ts) IS DISTINCT FROM "
        "(excluded.value, excluded.event_ts, excluded.created_ts)"
        if whole
        else "excluded.event_ts > held.event_ts OR (excluded.event_ts = held.event_ts "
        "AND (excluded.created_ts IS NULL OR held.created_ts IS NULL "
        "OR excluded.created_ts >= held.created_ts))"
    )
    return (
        f"INSERT INTO {quoted(view.table)} AS held "
        f"({_COLUMNS}) "
        "SELECT entity_key, name, value, text, event_ts, created_ts FROM now_there "
        f"CROSS JOIN LATERAL (VALUES {spread}) AS feature (name, value, text) "
        "ON CONFLICT (entity_key, feature_name) DO UPDATE SET value = excluded.value, "
        "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts "
        f"WHERE {replaced}"
    )


def _check_counts(cursor: Any, view: View, keys: int, whole: bool) -> None:
    """Raises:
    FeaturesUnavailable: a feature is there under fewer keys than were written, or under others.
    """
    only = "" if whole else " JOIN now_there USING (entity_key)"
    query = (
        f"SELECT feature_name, count(*) FROM {quoted(view.table)}{only} "
        f"WHERE feature_name IN ({_names(view)}) GROUP BY feature_name"
    )
    there = dict(cursor.execute(query).fetchall())
    for feature in view.features:
        found = there.get(feature.name, 0)
        if found != keys:
            raise FeaturesUnavailable(
                f"view {view.name!r} has {feature.name!r} under {found} keys online, and should under {keys}",
                hint="nothing of it has changed; run the materialization again",
            )
