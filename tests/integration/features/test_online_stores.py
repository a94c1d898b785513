"""Each kind of online store by itself: what a write leaves, whoever else writes, and what is then read."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manta.errors import FeaturesUnavailable
from manta.features.compiled import Feature, Key, View
from manta.features.stores import Held, OnlineStore, kinds, open_store_of
from manta.features.wire import decode_value, key_encoder
from tests.soak.parts import RedisServer

from .conftest import KINDS, PASSWORD, every_store

DAY = 86_400_000_000
NOW = 1_700_000_000_000_000
VIEW = View(
    "stats",
    "test_stats",
    "d",
    "at",
    "made",
    0.0,
    (Key("user", "user", "int64"), Key("town", "city", "string")),
    (Feature("score", "float64", "score"), Feature("name", "string", "name")),
)


@pytest.fixture
def facts(online_kind: str, tmp_path: Path) -> dict[str, Any]:
    if online_kind == "sqlite":
        return {"kind": "sqlite", "path": str(tmp_path / "online.db")}
    if online_kind == "redis":
        where = f"127.0.0.1:{os.environ['TEST_REDIS_PORT']},password=${{env:TEST_PASSWORD}}"
        return {"kind": "redis", "project": "test", "connection_string": where}
    import psycopg

    schema, host = os.environ["TEST_PG_SCHEMA"], os.environ["TEST_PG_HOST"]
    with psycopg.connect(host=host, user="postgres", autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}")  # type: ignore[arg-type]
    told = {"host": host, "port": 5432, "database": "postgres", "user": "postgres", "db_schema": schema}
    return {"kind": "postgres", "project": "test", "password": "${env:TEST_PASSWORD}", **told}


@pytest.fixture
def store(facts: dict[str, Any]) -> Iterator[OnlineStore]:
    with closing(open_store_of(facts)) as opened:
        opened.prepare()
        yield opened


def frame(*rows: tuple[int, str, int, int | None, float | None]) -> pl.DataFrame:
    """Rows of (user, town, event time, created, score)."""
    names = ["__key_0", "__key_1", "__ts", "__created", "score"]
    columns = (
        dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
        if rows
        else {name: [] for name in names}
    )
    types = {
        "__key_0": pl.Int64,
        "__key_1": pl.String,
        "__ts": pl.Int64,
        "__created": pl.Int64,
        "score": pl.Float64,
    }
    return pl.DataFrame(columns, schema=types).with_columns(name=pl.col("score").cast(pl.String))


def held(store: OnlineStore, *keys: tuple[int, str], view: View = VIEW) -> dict[Any, Any]:
    """Key → (score, event time) of those that are there."""
    encode = key_encoder([(key.join_key, key.type) for key in view.keys])
    by = {encode(key) or b"": key for key in keys}
    rows = cells([view], store.rows([view]).fetch([list(by)]))
    assert rows == cells([view], asyncio.run(store.rows([view]).fetch_async([list(by)])))
    return {by[key]: (decode_value(value), event) for _, key, name, value, event in rows if name == "score"}


def cells(views: Sequence[View], held: Sequence[Held]) -> list[tuple[int, bytes, str, bytes, int]]:
    """What is held, as (which view, key, feature, value, event time), sorted."""
    found = []
    for place, (view, (keys, values, events)) in enumerate(zip(views, held, strict=True)):
        assert len(set(keys)) == len(keys)
        times = events if len(events) > 1 else events * len(view.features)
        for feature, column, of in zip(view.features, values, times, strict=True):
            for key, value, event in zip(keys, column, of, strict=True):
                if value is not None:
                    assert event is not None
                    found.append((place, key, feature.name, value, event))
        assert {key for at, key, *_ in found if at == place} == set(keys)
    return sorted(found)


def test_each_kind_is_a_module() -> None:
    assert kinds() == sorted(KINDS)


@pytest.mark.parametrize("online_kind", ["postgres"], indirect=True)
def test_feasts_second_index_is_dropped_unless_somebody_reads_for_long(
    store: OnlineStore, facts: dict[str, Any]
) -> None:
    import psycopg

    store.write(VIEW, frame((1, "a", NOW, None, 1.0)))
    options = f"-c search_path={facts['db_schema']}"
    with (
        psycopg.connect(host=facts["host"], user="postgres", options=options, autocommit=True) as db,
        psycopg.connect(host=facts["host"], user="postgres", options=options) as reader,
    ):
        indexes = "SELECT count(*) FROM pg_index WHERE indrelid = 'test_stats'::regclass"
        db.execute("CREATE INDEX IF NOT EXISTS test_stats_ek ON test_stats (entity_key)")  # as Feast does
        reader.execute("SELECT 1 FROM test_stats")  # in a transaction that goes on
        store.write(VIEW, frame((1, "a", NOW, None, 2.0)), whole=True)
        assert db.execute(indexes).fetchone() == (2,)
        reader.rollback()
        store.write(VIEW, frame((1, "a", NOW, None, 3.0)), whole=True)
        assert db.execute(indexes).fetchone() == (1,)
    assert held(store, (1, "a")) == {(1, "a"): (3.0, NOW)}


@every_store
def test_the_newest_event_time_wins_and_of_one_time_the_last(store: OnlineStore) -> None:
    store.write(VIEW, frame((1, "a", NOW, None, 1.0), (-2, "", NOW, None, 2.0), (3, "é*", NOW, None, 3.0)))
    a, b, c = (1, "a"), (-2, ""), (3, "é*")
    assert held(store, a, b, c, (1, "b")) == {a: (1.0, NOW), b: (2.0, NOW), c: (3.0, NOW)}
    older, same, newer = NOW - 1_000_000, NOW, NOW + 1_000_000
    store.write(VIEW, frame((*a, older, None, 9.0), (*b, same, None, 4.0), (*c, newer, None, None)))
    assert held(store, a, b, c) == {a: (1.0, NOW), b: (4.0, NOW), c: (None, newer)}
    # Of before 1970, which protobuf writes otherwise.
    store.write(VIEW, frame((7, "old", -3 * DAY, None, 1.0), (8, "old", -3 * DAY, None, 1.0)))
    store.write(VIEW, frame((7, "old", -4 * DAY, None, 2.0), (8, "old", -2 * DAY, None, 2.0)))
    store.write(VIEW, frame((7, "old", -3 * DAY - 1_000_000, None, 3.0)))
    assert held(store, (7, "old"), (8, "old")) == {(7, "old"): (1.0, -3 * DAY), (8, "old"): (2.0, -2 * DAY)}


@pytest.mark.parametrize("online_kind", ["sqlite", "postgres"], indirect=True)
def test_of_one_event_time_the_later_created_wins_where_it_is_kept(store: OnlineStore) -> None:
    a = (1, "a")
    store.write(VIEW, frame((*a, NOW, NOW + 5_000_000, 1.0)))
    store.write(VIEW, frame((*a, NOW, NOW + 4_000_000, 2.0)))
    assert held(store, a) == {a: (1.0, NOW)}
    store.write(VIEW, frame((*a, NOW, NOW + 5_000_000, 3.0)))
    assert held(store, a) == {a: (3.0, NOW)}


@every_store
def test_written_whole_there_is_nothing_else(store: OnlineStore) -> None:
    others = [(i, f"c{i}") for i in range(300)]
    beside = View("beside", "test_beside", "d", None, None, 0.0, VIEW.keys, VIEW.features)
    store.write(VIEW, frame(*((*key, NOW, None, 1.0) for key in others)), whole=True)
    store.write(beside, frame(*((*key, NOW, None, 5.0) for key in others)), whole=True)
    store.write(VIEW, frame((*others[0], NOW - DAY, None, 2.0), (*others[9], NOW, None, 3.0)), whole=True)
    assert held(store, *others) == {others[0]: (2.0, NOW - DAY), others[9]: (3.0, NOW)}
    assert len(held(store, *others, view=beside)) == 300
    assert store.write(VIEW, frame(), whole=True) == 0
    assert held(store, *others) == {}
    pushed = View(**{**vars(VIEW), "pushed": True})
    store.write(pushed, frame(*((*key, NOW, None, 1.0) for key in others)))
    store.write(pushed, frame((*others[0], NOW - DAY, None, 2.0), (*others[1], NOW, None, 3.0)), whole=True)
    assert len(held(store, *others)) == 300
    assert held(store, *others[:2]) == {others[0]: (1.0, NOW), others[1]: (3.0, NOW)}


@every_store
def test_a_view_without_entities_and_many_views_at_once(store: OnlineStore) -> None:
    world = View("world", "test_world", "d", None, None, 0.0, (), VIEW.features)
    row = frame((0, "", NOW, None, 7.0)).drop("__key_0", "__key_1")
    store.write(world, row, whole=True)
    store.write(VIEW, frame((1, "a", NOW, None, 1.0)), whole=True)
    assert held(store, (), view=world) == {(): (7.0, NOW)}
    keys = [
        [key_encoder([])(()) or b""],
        [],
        [key_encoder([("user", "int64"), ("city", "string")])([1, "a"]) or b""],
    ]
    views = [world, VIEW, VIEW]
    rows = cells(views, store.rows(views).fetch(keys))
    assert rows == cells(views, asyncio.run(store.rows(views).fetch_async(keys)))
    assert [(place, name) for place, _, name, _, _ in rows] == [
        (p, n) for p in (0, 2) for n in ("name", "score")
    ]


@every_store
def test_many_keys_of_which_some_hold_a_part_or_nothing(store: OnlineStore, online_kind: str) -> None:
    """Written in parts at different times (SQLite and PostgreSQL keep a time for each feature), with features
    that are of the view but not asked for, held without a value, and more keys than are asked at once."""
    chance = random.Random(7)
    third = Feature("third", "float64", "third")
    wide = View(**{**vars(VIEW), "features": (*VIEW.features, third)})
    names = [feature.name for feature in wide.features]
    users = list(range(1300))
    encode = key_encoder([("user", "int64"), ("city", "string")])
    keys = {user: encode([user, "a"]) or b"" for user in users}
    held: dict[tuple[bytes, str], tuple[Any, int]] = {}
    for step in range(6):
        at = NOW + step * 1_000_000
        part = names if online_kind == "redis" else chance.sample(names, chance.randint(1, 3))
        some = chance.sample(users, 900 if step == 0 else 300)
        score = [None if user % 5 == 0 else float(user + step) for user in some]
        rows = frame(*((user, "a", at, None, value) for user, value in zip(some, score, strict=True)))
        rows = rows.with_columns(third=pl.col("score") * 2)
        features = tuple(feature for feature in wide.features if feature.name in part)
        store.write(View(**{**vars(wide), "features": features}), rows)
        for row in rows.iter_rows(named=True):
            held |= {(keys[row["__key_0"]], name): (row[name], at) for name in part}
    never = Feature("never", "int64", "never")
    for features in (wide.features, VIEW.features, (third,), (never, third), (never,)):
        asked = View(**{**vars(wide), "features": features})
        for column in ([*keys.values(), b"nothing"], [keys[3]], [keys[5]], [b"nothing"], []):
            of = {feature.name for feature in asked.features}
            expected = {cell: value for cell, value in held.items() if cell[0] in column and cell[1] in of}
            views = [asked, VIEW]
            found = store.rows(views).fetch([column, []])
            got = {(key, name): (decode_value(value), at) for _, key, name, value, at in cells(views, found)}
            assert got == expected
            assert cells([asked], store.rows([asked]).fetch([column])) == cells(views, found)


@every_store
def test_writers_at_once_leave_the_newest(store: OnlineStore, facts: dict[str, Any]) -> None:
    chance = random.Random(5)
    batches = [
        [(user, "a", NOW + 1_000_000 * chance.randrange(50), None) for user in range(20)] for _ in range(24)
    ]
    newest = {user: max(rows[user][2] for rows in batches) for user in range(20)}

    def write(rows: list[Any]) -> None:
        store.write(VIEW, frame(*((*row, float(row[2])) for row in rows)))

    store.write(VIEW, frame((0, "a", 0, None, 0.0)))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, batches))
    assert held(store, *((user, "a") for user in range(20))) == {
        (user, "a"): (float(at), at) for user, at in newest.items()
    }


@pytest.mark.parametrize("online_kind", ["sqlite", "postgres"], indirect=True)
def test_who_writes_a_view_whole_at_once_with_others_leaves_what_one_of_them_wrote(
    store: OnlineStore, facts: dict[str, Any]
) -> None:
    """From an empty view on: there is nothing yet that a second writer could wait for."""
    keys = [(user, "a") for user in range(3000)]
    together = threading.Barrier(4)

    def write(writer: int) -> None:
        with closing(open_store_of(facts)) as own:
            together.wait()
            mine = keys[writer:]  # each has other keys, too
            own.write(VIEW, frame(*((*key, NOW + writer, None, float(writer)) for key in mine)), whole=True)

    store.write(VIEW, frame(), whole=True)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    there = held(store, *keys)
    (left,) = set(there.values())
    assert there == dict.fromkeys(keys[int(left[0]) :], left)


@pytest.mark.parametrize("online_kind", ["redis"], indirect=True)
def test_keys_of_a_project_whose_name_ends_alike_stay(facts: dict[str, Any]) -> None:
    other = {**facts, "project": "my-test"}
    mine, theirs = open_store_of(facts), open_store_of(other)
    view = View(**{**vars(VIEW), "table": "my-test_stats"})
    theirs.write(view, frame((1, "a", NOW, None, 1.0), (2, "my-", NOW, None, 1.0)), whole=True)
    mine.write(VIEW, frame((3, "a", NOW, None, 1.0)), whole=True)
    assert len(held(theirs, (1, "a"), (2, "my-"), view=view)) == 2


@pytest.mark.parametrize("online_kind", ["redis", "postgres"], indirect=True)
def test_a_store_that_is_down_says_so_without_its_password(
    facts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PASSWORD not in str(facts)
    if facts["kind"] == "redis":
        away = {**facts, "connection_string": "127.0.0.1:1,password=${env:TEST_PASSWORD}"}
        monkeypatch.setenv("TEST_WRONG", "a-wrong-password")
        wrong = {**facts, "connection_string": facts["connection_string"].replace("PASSWORD", "WRONG")}
    else:
        away, wrong = {**facts, "host": "127.0.0.1", "port": 1}, {**facts, "user": "nobody"}
    for bad in (away, wrong):
        store = open_store_of(bad)
        rows = store.rows([VIEW])
        for ask in (
            lambda rows=rows: rows.fetch([[b"k"]]),
            lambda rows=rows: asyncio.run(rows.fetch_async([[b"k"]])),
            lambda store=store: store.write(VIEW, frame((1, "a", NOW, None, 1.0))),
            lambda store=store: store.write(VIEW, frame((1, "a", NOW, None, 1.0)), whole=True),
        ):
            with pytest.raises(FeaturesUnavailable, match=r"the online store at .* cannot be") as failure:
                ask()
            assert failure.value.hint
            assert "password" not in str(failure.value).replace("password authentication", "").replace(
                "username-password pair", ""
            )


@pytest.mark.parametrize("online_kind", ["redis", "postgres"], indirect=True)
def test_after_the_store_was_away_the_next_question_is_answered(
    online_kind: str, facts: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cut: Callable[[], None]
    if online_kind == "redis":
        server = RedisServer(tmp_path, PASSWORD)
        server.start()
        request.addfinalizer(server.kill)
        facts = {**facts, "connection_string": f"127.0.0.1:{server.port},password=${{env:TEST_PASSWORD}}"}

        def cut() -> None:
            server.kill()
            server.start()
    else:
        import psycopg

        def cut() -> None:
            with psycopg.connect(host=facts["host"], user="postgres", autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                    "AND backend_type = 'client backend'"
                )

    store = open_store_of(facts)
    store.write(VIEW, frame((1, "a", NOW, None, 1.0)))
    rows = store.rows([VIEW])
    asked = [[key_encoder([("user", "int64"), ("city", "string")])([1, "a"]) or b""]]

    async def many() -> list[int]:
        counts = [len(cells([VIEW], each)) for each in await asyncio.gather(*map(ask, range(5)))]
        cut()
        return counts + [len(cells([VIEW], await ask(0))) for _ in range(3)]

    def ask(_: int) -> Any:
        return rows.fetch_async(asked)

    assert len(cells([VIEW], rows.fetch(asked))) == 2
    cut()
    assert len(cells([VIEW], rows.fetch(asked))) == 2
    assert asyncio.run(many()) == [2] * 8
    cut()
    store.write(VIEW, frame((1, "a", NOW + 1_000_000, None, 2.0)))
    assert held(store, (1, "a")) == {(1, "a"): (2.0, NOW + 1_000_000)}


@every_store
def test_readers_in_threads_find_whole_rows_while_it_is_written(store: OnlineStore, online_kind: str) -> None:
    users = list(range(700))
    store.write(VIEW, frame(*((user, "a", NOW, None, 0.0) for user in users)), whole=True)
    rows, stop = store.rows([VIEW]), threading.Event()
    encode = key_encoder([("user", "int64"), ("city", "string")])
    asked = [[encode([user, "a"]) or b"" for user in users]]
    wrong: list[Any] = []

    def look() -> None:
        last = dict.fromkeys(asked[0], 0.0)
        while not stop.is_set():
            by: dict[bytes, dict[str, Any]] = {}
            for _, key, name, value, _ in cells([VIEW], rows.fetch(asked)):
                by.setdefault(key, {})[name] = decode_value(value)
            for key in asked[0]:
                score, name = by[key]["score"], by[key]["name"]
                if name != str(score) or score < last[key]:
                    wrong.append((score, name, last[key]))
                last[key] = score
            if online_kind != "redis" and len(set(last.values())) > 1:  # each write is one transaction
                wrong.append(set(last.values()))

    readers = [threading.Thread(target=look) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(1, 9):
        at = NOW + step * 1_000_000
        store.write(VIEW, frame(*((user, "a", at, None, float(step)) for user in users)), whole=step % 2 == 0)
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert {score for score, _ in held(store, *((user, "a") for user in users)).values()} == {8.0}
