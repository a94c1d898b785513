"""Feast's Redis layout: one hash for each entity key, which all views of that entity share.

The hash's key is the entity key and the project's name; a feature is a field named by the hash of
`view:feature`, and each view has one event time, in the field `_ts:view`. So the features of a view that were
written together are read together, and a view is written whole: with a part of it, the rest would seem to be
as new.

A key is written by one script, at once: the newest event time wins whoever writes meanwhile. (Feast's own
writer reads the time, and writes later: that may still cross with others.) Over the keys of a view there is
no transaction in Redis: while a view is written, a reader finds some keys new and others not yet. What was
written is counted, and keys that are gone are looked for, by one walk over all keys.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import struct
import threading
import weakref
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import mmh3

from manta.definitions.sources import driver
from manta.errors import FeaturesUnavailable
from manta.features.compiled import View
from manta.features.stores import Held
from manta.features.wire import DUMMY_KEY, NUMBER
from manta.secrets import redactor, resolve

if TYPE_CHECKING:
    import polars as pl

redis: Any = driver("redis", "redis")

KEYS_AT_ONCE = 1000  # read in one round trip
KEYS_A_SCRIPT = 128  # Redis serves nobody else meanwhile: less than a millisecond
KEYS_A_STEP = 5000  # of the walk over all keys
TIMEOUT_SECONDS = 5.0

# ARGV: whether to write whatever is there, seconds until a key expires (0: never), the name of the event
# time's field, how many fields, their names; then for each key its event time and its values.
_WRITE = """
local whole, expire, ts, n = ARGV[1] == '1', tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local function parts(stamp)
  local at, out, size = 1, {0, 0}, #stamp
  while at <= size do
    local place, first = string.byte(stamp, at) == 8 and 1 or 2, at + 1
    local value, unit, low = 0, 1, 0
    repeat
      at = at + 1
      low = string.byte(stamp, at)
      if at - first == 9 then break end
      value, unit = value + (low % 128) * unit, unit * 128
    until low < 128
    if at - first == 9 then
      value, unit = 0, 1
      for i = first, first + 8 do
        value, unit = value + (127 - string.byte(stamp, i) % 128) * unit, unit * 128
      end
      value = -value - 1
    end
    out[place], at = value, at + 1
  end
  return out[1], out[2]
end
local pairs_ = {}
for f = 1, n do pairs_[2 * f - 1] = ARGV[4 + f] end
pairs_[2 * n + 1] = ts
local at = 4 + n
for k = 1, #KEYS do
  local stamp, write = ARGV[at + 1], true
  if not whole then
    local held = redis.call('HGET', KEYS[k], ts)
    if held and held ~= stamp then
      local s, ns = parts(stamp)
      local hs, hns = parts(held)
      write = s > hs or (s == hs and ns >= hns)
    end
  end
  if write then
    for f = 1, n do pairs_[2 * f] = ARGV[at + 1 + f] end
    pairs_[2 * n + 2] = stamp
    redis.call('HSET', KEYS[k], unpack(pairs_))
    if expire > 0 then redis.call('EXPIRE', KEYS[k], expire) end
  end
  at = at + 1 + n
end
return #KEYS
"""


def open_store(store: dict[str, Any]) -> RedisStore:
    """``store``: the `project`, Feast's `connection_string` (in which references to secrets may stand) and
    `key_ttl_seconds`."""
    return RedisStore(store["project"], store["connection_string"], store.get("key_ttl_seconds") or 0)


class RedisStore:
    def __init__(self, project: str, connection_string: str, key_ttl_seconds: int = 0) -> None:
        self._project = project
        self._link = Link(connection_string)
        self._expire = key_ttl_seconds

    def rows(self, views: Sequence[View]) -> RedisRows:
        return RedisRows(self._link, self._project, views)

    def write(self, view: View, rows: pl.DataFrame, *, whole: bool = False) -> int:
        """Key by key: a failure leaves some keys as they were and the others as they are to be."""
        from manta.features.stores._columns import batches, instants_of, keys_of, values_of

        whole = whole and not view.pushed
        suffix = self._project.encode()
        keys = [key + suffix for key in keys_of(view, rows)]
        fields = _fields(self._project, view)
        head = [b"1" if whole else b"0", b"%d" % self._expire, fields[-1], b"%d" % (len(fields) - 1)]
        head += fields[:-1]

        def commands() -> Iterator[bytes]:
            loaded = _pack([b"SCRIPT", b"LOAD", _WRITE.encode()])
            for number, batch in enumerate(batches(rows, 50 * KEYS_A_SCRIPT)):
                first = number * 50 * KEYS_A_SCRIPT
                columns = [instants_of(batch["__ts"])]
                columns += [values_of(feature.type, batch[feature.name]) for feature in view.features]
                flat = [value for values in zip(*columns, strict=True) for value in values]
                width = len(columns)
                for at in range(0, batch.height, KEYS_A_SCRIPT):
                    some = keys[first + at : first + min(at + KEYS_A_SCRIPT, batch.height)]
                    values = flat[at * width : (at + len(some)) * width]
                    yield loaded + _pack([b"EVALSHA", _sha(), b"%d" % len(some), *some, *head, *values])
                    loaded = b""

        done = sum(self._link.send(commands(), few=rows.height <= KEYS_A_SCRIPT))
        there = self._walk(view, set(keys), fields) if whole else done
        if (done, there) != (rows.height, rows.height):
            raise FeaturesUnavailable(
                f"view {view.name!r} is under {min(done, there)} keys online, and should under {rows.height}",
                hint="Redis has lost keys (its maxmemory-policy must be noeviction); run the materialization "
                "again",
            )
        return rows.height

    def prepare(self) -> None:
        """Nothing: Redis has no tables."""

    def close(self) -> None:
        self._link.close()

    def _walk(self, view: View, keys: set[bytes], fields: list[bytes]) -> int:
        """Remove the view from under other keys than these; gives under how many of these something is."""
        pattern = b"%b*%b" % (_escaped(_prefix(view)), _escaped(self._project.encode()))
        found: set[bytes] = set()
        cursor = b"0"
        while True:
            step = [b"SCAN", cursor, b"MATCH", pattern, b"COUNT", b"%d" % KEYS_A_STEP]
            ((cursor, some),) = self._link.ask([_pack(step)])
            found.update(some)
            if cursor == b"0":
                break
        gone = [key for key in found - keys if _is_key(key, len(view.keys) or 1, self._project.encode())]
        for at in range(0, len(gone), KEYS_AT_ONCE):
            self._link.ask([_pack([b"HDEL", key, *fields]) for key in gone[at : at + KEYS_AT_ONCE]])
        return len(found & keys)


class RedisRows:
    """One round trip for up to 1000 keys; each key of each view is read at one instant."""

    def __init__(self, link: Link, project: str, views: Sequence[View]) -> None:
        self._link = link
        self._asked = [_Asked(project, view) for view in views]

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        answers: list[Any] = []
        for commands in self._commands(keys):
            answers += self._link.ask(commands)
        return self._held(keys, answers)

    async def fetch_async(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        answers: list[Any] = []
        for commands in self._commands(keys):
            answers += await self._link.ask_async(commands)
        return self._held(keys, answers)

    def _commands(self, keys: Sequence[Sequence[bytes]]) -> Iterator[list[bytes]]:
        each = [
            command
            for asked, column in zip(self._asked, keys, strict=True)
            for command in asked.commands(column)
        ]
        for start in range(0, len(each), KEYS_AT_ONCE):
            yield each[start : start + KEYS_AT_ONCE]

    def _held(self, keys: Sequence[Sequence[bytes]], answers: list[Any]) -> list[Held]:
        """``answers``: for each key, the values of its view's features and the event time, or None for what
        is not there."""
        found, start = [], 0
        for asked, column in zip(self._asked, keys, strict=True):
            found.append(_held(column, answers[start : start + len(column)], asked.features))
            start += len(column)
        return found


class _Asked:
    """How a view is asked for. ``features``: how many it has."""

    def __init__(self, project: str, view: View) -> None:
        fields = _fields(project, view)
        self.features = len(view.features)
        self._start = b"*%d\r\n$5\r\nHMGET\r\n" % (len(fields) + 2)
        self._end = project.encode() + b"\r\n" + b"".join([_bulk(field) for field in fields])
        self._suffix = len(project.encode())
        self._heads: dict[int, bytes] = {}

    def commands(self, keys: Sequence[bytes]) -> list[bytes]:
        heads, end = self._heads, self._end
        for size in {len(key) for key in keys} - heads.keys():
            heads[size] = self._start + b"$%d\r\n" % (size + self._suffix)
        return [heads[len(key)] + key + end for key in keys]


def _held(keys: Sequence[bytes], answers: list[list[bytes | None]], features: int) -> Held:
    columns = list(zip(*answers, strict=True)) or [()] * (features + 1)
    if None in columns[-1] or None in columns[0]:  # some may be nothing at all: without a time, or a value
        there = [at for at, row in enumerate(answers) if row[-1] is not None and row.count(None) < features]
        if len(there) < len(keys):
            return _held([keys[at] for at in there], [answers[at] for at in there], features)
    *values, stamps = columns
    return Held(keys, values, [[_micros(stamp) for stamp in stamps]])


class Link:
    """Connections to one Redis: one for each thread, and for each event loop as many as are used at once.

    A connection that fails is closed, and what was asked is asked once more over a new one: after Redis has
    been away, the next question finds it again.
    """

    def __init__(self, connection_string: str) -> None:
        self._text = connection_string
        self._local = threading.local()
        self._made: weakref.WeakSet[Any] = weakref.WeakSet()
        self._free: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()
        self._pools: dict[str, Any] = {}

    def ask(self, commands: list[bytes], answers: int = 0) -> list[Any]:
        """The answer to each command, in one round trip.

        Raises:
            FeaturesUnavailable: Redis does not answer, or refuses a command.
        """
        for again in (True, False):
            try:
                connection = self._connection()
                connection.send_packed_command([b"".join(commands)], check_health=False)
                count = answers or len(commands)
                return [connection.read_response(disable_decoding=True) for _ in range(count)]
            except (redis.RedisError, OSError) as error:
                self._drop()
                if not (again and isinstance(error, redis.ConnectionError | OSError)):
                    raise self._unavailable(error, "be read") from error
        raise AssertionError("not reached")

    async def ask_async(self, commands: list[bytes]) -> list[Any]:
        free = self._free.setdefault(asyncio.get_running_loop(), [])
        for again in (True, False):
            connection = free.pop() if free else None
            try:
                if connection is None:
                    connection = self._make("redis.asyncio")
                    await connection.connect()
                await connection.send_packed_command([b"".join(commands)], check_health=False)
                answers = [await connection.read_response(disable_decoding=True) for _ in commands]
                free.append(connection)
                return answers
            except (redis.RedisError, OSError) as error:
                await _closed(connection)
                free.clear()  # they are as old as this one
                if not (again and isinstance(error, redis.ConnectionError | OSError)):
                    raise self._unavailable(error, "be read") from error
            except asyncio.CancelledError:
                await _closed(connection)
                raise
        raise AssertionError("not reached")

    def send(self, commands: Iterator[bytes], *, few: bool) -> Iterator[int]:
        """Send scripts (before the first comes what loads it), the next while Redis works on the last; gives
        the numbers that they answer. ``few``: there is one at most, and so it may be sent again.

        Raises:
            FeaturesUnavailable: Redis does not answer, or refuses one.
        """
        if few:
            for command in commands:
                yield self.ask([command], answers=2)[1]
            return
        self._drop()  # a kept connection may have died, and this is not sent twice
        try:
            connection, waiting = self._connection(), 1
            for command in commands:
                connection.send_packed_command([command], check_health=False)
                waiting += 1
                while waiting > 2:
                    yield from self._number(connection)
                    waiting -= 1
            for _ in range(waiting):
                yield from self._number(connection)
        except (redis.RedisError, OSError) as error:
            self._drop()
            raise self._unavailable(error, "be written") from error

    @staticmethod
    def _number(connection: Any) -> list[int]:
        answer = connection.read_response(disable_decoding=True)
        return [answer] if isinstance(answer, int) else []

    def close(self) -> None:
        for connection in list(self._made):
            connection.disconnect()
        self._local = threading.local()
        self._free.clear()

    def _connection(self) -> Any:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            connection = self._local.connection = self._make("redis")
            self._made.add(connection)
            connection.connect()
        return connection

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        if connection is not None:
            self._local.connection = None
            connection.disconnect()

    def _make(self, module: str) -> Any:
        if module not in self._pools:
            client = importlib.import_module(module).Redis(**parsed(resolve(self._text)))
            self._pools[module] = client.connection_pool
        pool = self._pools[module]
        return pool.connection_class(**pool.connection_kwargs)

    def _unavailable(self, error: Exception, what: str) -> FeaturesUnavailable:
        where = self._text.split(",")[0]
        return FeaturesUnavailable(
            f"the online store at {where} cannot {what}: {redactor.text(str(error))}",
            hint="see that Redis runs there and lets this user in; the next call connects anew",
        )


def parsed(connection_string: str) -> dict[str, Any]:
    """What Feast's `host:port,name=value,…` says, as the client takes it."""
    kwargs: dict[str, Any] = {
        "socket_timeout": TIMEOUT_SECONDS,
        "socket_connect_timeout": TIMEOUT_SECONDS,
        "retry": None,
    }
    where, *given = connection_string.split(",")
    for each in given:
        name, _, value = each.partition("=")
        try:
            kwargs[name] = json.loads(value)
        except json.JSONDecodeError:
            kwargs[name] = value
    host, _, port = where.partition(":")
    return {**kwargs, "host": host, "port": int(port or 6379)}


# --- the layout ---------------------------------------------------------------------------------------------


def _fields(project: str, view: View) -> list[bytes]:
    """The fields of a view's features, and last that of its event time."""
    name = view.table.removeprefix(f"{project}_")
    hashes = [mmh3.hash(f"{name}:{feature.name}", signed=False) for feature in view.features]
    return [*(struct.pack("<I", each) for each in hashes), f"_ts:{name}".encode()]


def _prefix(view: View) -> bytes:
    """How every entity key with these join keys begins."""
    names = sorted(key.join_key for key in view.keys) or [DUMMY_KEY]
    parts = [struct.pack("<II", NUMBER["string"], len(name.encode())) + name.encode() for name in names]
    return struct.pack("<I", len(names)) + b"".join(parts)


def _is_key(data: bytes, keys: int, suffix: bytes) -> bool:
    """Whether it is an entity key of so many join keys and that project's name, and not another that ends
    alike."""
    at = 4
    try:
        for _ in range(2 * keys):
            at += 8 + struct.unpack_from("<I", data, at + 4)[0]
    except struct.error:
        return False
    return data[at:] == suffix


def _escaped(text: bytes) -> bytes:
    """As a part of a pattern that means just that."""
    return b"".join(b"\\" + bytes([c]) if c in b"*?[]\\^-" else bytes([c]) for c in text)


@lru_cache(4096)
def _micros(stamp: bytes) -> int:
    """Of a `google.protobuf.Timestamp`, in microseconds."""
    seconds = nanos = at = 0
    while at < len(stamp):
        tag, value, shift = stamp[at], 0, 0
        while True:
            at += 1
            value |= (stamp[at] & 0x7F) << shift
            shift += 7
            if stamp[at] < 0x80:
                break
        at += 1
        if tag == 8:
            seconds = value - (1 << 64) if value >> 63 else value
        else:
            nanos = value
    return seconds * 1_000_000 + nanos // 1000


@lru_cache(1)
def _sha() -> bytes:
    import hashlib

    return hashlib.sha1(_WRITE.encode(), usedforsecurity=False).hexdigest().encode()


def _bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


def _pack(parts: list[bytes]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


async def _closed(connection: Any) -> None:
    if connection is not None:
        await connection.disconnect(nowait=True)
