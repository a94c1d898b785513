"""Reading by columns, held to reading value by value: the decoders, the keys, and whole answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manta.features.online import OnlineReader, Status
from manta.features.stores._held import held_of
from manta.features.stores.sqlite import create_table, quoted, seconds_kept, writable
from manta.features.wire import NO_TIME, SCALARS, decode_value, key_encoder, value_encoder
from manta.features.wire_columns import column_decoder, keys_encoder

from .test_feast_bytes import VALUES

slow = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
KINDS = [*SCALARS, "list[int64]", "list[string]"]
LONG = "é" * 200


def value_of(kind: str) -> st.SearchStrategy[Any]:
    small = {"int32": st.integers(-3, 20_000), "int64": st.integers(-3, 20_000), "string": st.just(LONG)}
    one = VALUES[kind] if kind in VALUES else st.lists(VALUES[kind[5:-1]], max_size=3)
    return small[kind] | one if kind in small else one


def bytes_of(kind: str) -> st.SearchStrategy[bytes]:
    return value_of(kind).map(value_encoder(kind))


OTHERS: list[bytes | None] = [
    None,
    b"",
    Value(unix_timestamp_val=NO_TIME).SerializeToString(),
    Value(bool_val=False).SerializeToString(),
    *(Value(string_val="x" * size).SerializeToString() for size in (1, 3, 7)),  # as long as a number
]
FOREIGN = st.sampled_from(OTHERS) | st.sampled_from(KINDS).flatmap(bytes_of)


@pytest.mark.parametrize("kind", KINDS)
@slow
@given(st.data())
def test_a_column_is_read_as_its_values_are(kind: str, data: st.DataObject) -> None:
    own = bytes_of(kind)
    column = data.draw(st.lists(own, max_size=8) | st.lists(own | FOREIGN, max_size=8))
    values, whole = column_decoder(kind)(column)
    expected = [decode_value(each) for each in column]
    assert list(map(repr, values)) == list(map(repr, expected))  # 1 is not True, and nan is nan
    assert whole == (None not in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_read_by_itself_is_not_read_in_a_column(kind: str) -> None:
    unknown = Value(json_val="{}").SerializeToString()
    with pytest.raises(ValueError, match="does not read"):
        column_decoder(kind)([b"", unknown])


KEY = st.sampled_from(["string", "int64", "int32", "bytes", "timestamp"])
WRONG = st.sampled_from([None, "1", 1, True, 1.5, 2**70, -(2**40), b"x", datetime(2020, 1, 1)])


@slow
@given(st.data(), st.lists(st.tuples(st.sampled_from("abcd"), KEY), max_size=3, unique_by=lambda key: key[0]))
def test_keys_are_encoded_in_columns_as_row_by_row(data: Any, keys: list[tuple[str, str]]) -> None:
    rows = 3 if not keys else data.draw(st.integers(0, 6))
    each: list[Any] = [
        data.draw(
            st.lists(VALUES[kind], min_size=rows, max_size=rows)
            | st.lists(VALUES[kind] | st.booleans(), min_size=rows, max_size=rows)
            | st.lists(VALUES[kind] | WRONG, min_size=rows, max_size=rows)
        )
        for _, kind in keys
    ]
    encode = key_encoder(keys)

    def one_by_one() -> list[bytes | None]:
        return [encode([column[row] for column in each]) for row in range(rows)]

    assert told(lambda: keys_encoder(keys)(each, rows)) == told(one_by_one)


def told(what: Callable[[], Any]) -> Any:
    try:
        return what()
    except (TypeError, OverflowError) as error:
        return type(error), str(error)


CELLS = st.dictionaries(
    st.tuples(st.sampled_from([b"k", b"l", b"m"]), st.sampled_from("xyz")),
    st.tuples(st.sampled_from([b"", b"v", b"w"]), st.integers(0, 1)),
)


@given(CELLS, st.permutations("xyw"), st.booleans(), st.randoms())
def test_rows_are_put_into_columns(
    held: dict[tuple[bytes, str], tuple[bytes, int]], names: list[str], in_order: bool, chance: random.Random
) -> None:
    rows = [(*cell, *what) for cell, what in held.items()]
    rows.sort() if in_order else chance.shuffle(rows)
    places = {name: place for place, name in enumerate(names)}
    flat = [cell for row in rows for cell in (*row, "more")]
    keys, values, events = held_of(flat, 5, places, lambda raw: [10 * at for at in raw])
    assert set(keys) == {key for key, name in held if name in places}
    assert len(keys) == len(set(keys))
    times = {key: {at for (k, name), (_, at) in held.items() if k == key and name in places} for key in keys}
    assert (len(events) == 1) == all(len(of) == 1 for of in times.values())
    for name, column, of in zip(names, values, events if len(events) > 1 else events * 3, strict=True):
        for key, value, event in zip(keys, column, of, strict=True):
            expected, at = held.get((key, name), (None, None))
            assert value == expected
            assert at is None or event == 10 * at


# --- whole answers ------------------------------------------------------------------------------------------

START = datetime(2026, 1, 1, tzinfo=UTC)
VIEWS: dict[str, dict[str, str]] = {
    "user": {"score": "float64", "name": "string", "seen": "timestamp"},
    "town": {"size": "int64"},
}
HOURS = {"user": 3, "town": 0}  # their TTL
Cells = dict[tuple[str, Any, str], tuple[Any, datetime]]


@pytest.fixture
def reader(tmp_path: Path) -> OnlineReader:
    views = [
        {
            "name": view,
            "table": f"t_{view}",
            "dataset": "d",
            "time": "at",
            "created": None,
            "ttl_seconds": 3600.0 * HOURS[view],
            "keys": [{"column": view, "join_key": view, "type": "int64" if view == "user" else "string"}],
            "features": [{"name": name, "type": kind, "column": name} for name, kind in features.items()],
        }
        for view, features in VIEWS.items()
    ]
    service = {
        "name": "both",
        "project": "t",
        "views": views,
        "on_demand": [],
        "features": [[view, name] for view, features in VIEWS.items() for name in features],
        "store": {"kind": "sqlite", "path": str(tmp_path / "online.db")},
    }
    return OnlineReader({"format": 1, "service": service}, "both")


def random_cells(chance: random.Random) -> Cells:
    """View, key and feature → value and event time: some keys whole and of one time, some in parts, some with
    what the service does not read."""
    values: dict[str, Callable[[], Any]] = {
        "float64": chance.random,
        "string": lambda: chance.choice(["", "x", LONG]),
        "timestamp": lambda: START + timedelta(days=chance.randrange(9)),
        "int64": lambda: chance.randrange(-5, 10**6),
    }
    found: Cells = {}
    for view, features in VIEWS.items():
        for key in range(8) if view == "user" else "abcd":
            at, apart = START + timedelta(hours=chance.randrange(6)), chance.random() < 0.2
            for name, kind in (features | {"other": "int64"}).items():
                if chance.random() < (0.3 if apart else 0.05):
                    continue
                if apart or name == "other":
                    at = START + timedelta(hours=chance.randrange(6))
                found[view, key, name] = (None if chance.random() < 0.1 else values[kind](), at)
    return found


def kept(cells: Cells, path: Path) -> None:
    with writable(str(path)) as connection:
        for view, features in VIEWS.items():
            create_table(connection, f"t_{view}")
            connection.execute(f"DELETE FROM t_{view}")
            encode = key_encoder([(view, "int64" if view == "user" else "string")])
            connection.executemany(
                f"INSERT INTO {quoted(f't_{view}')} (entity_key, feature_name, value, event_ts) "
                "VALUES (?, ?, ?, ?)",
                [
                    (encode([key]), name, value_encoder(features.get(name, "int64"))(value), seconds_kept(at))
                    for (of, key, name), (value, at) in cells.items()
                    if of == view
                ],
            )


def expected(cells: Cells, columns: dict[str, list[Any]], at: list[datetime]) -> Iterator[tuple[Any, ...]]:
    """Value by value: (what, view or feature, row, what it is)."""
    for view, features in VIEWS.items():
        for row, (key, when) in enumerate(zip(columns[view], at, strict=True)):
            used, old = [], False
            for name in features:
                value, event = cells.get((view, key, name), (None, None))
                if event is not None and value is None:
                    yield "null", (view, name), row, True
                if event is not None and HOURS[view] and event < when - timedelta(hours=HOURS[view]):
                    value, event, old = None, None, True
                used += [event] if event is not None else []
                yield "value", name, row, value
            fresh = min(used, default=None)
            yield "fresh", view, row, fresh
            none = Status.OUTSIDE_MAX_AGE if old else Status.NOT_FOUND
            yield "status", view, row, Status.PRESENT if fresh else none


def test_answers_are_those_of_every_value_by_itself(reader: OnlineReader, tmp_path: Path) -> None:
    chance = random.Random(11)
    seen: set[Any] = set()
    for _ in range(25):
        cells = random_cells(chance)
        kept(cells, tmp_path / "online.db")
        for rows in (0, 1, 1, 1, 1, 1, 2, 8, 30):
            columns: dict[str, list[Any]] = {
                "user": [chance.choice([*range(10), None]) for _ in range(rows)],
                "town": [chance.choice([*"abcde", None]) for _ in range(rows)],
            }
            if rows == 8 and chance.random() < 0.5:  # each key once, as they are kept
                columns["user"] = list(range(8))
            at = [START + timedelta(hours=chance.randrange(9)) for _ in range(rows)]
            looked = reader.read(columns, at)
            told = {("value", name, row): v for name, of in looked.values.items() for row, v in enumerate(of)}
            told |= {
                ("fresh", view, row): v for view, of in looked.fresh_as_of.items() for row, v in enumerate(of)
            }
            told |= {
                ("status", view, row): v for view, of in looked.status.items() for row, v in enumerate(of)
            }
            told |= {("null", which, row): True for which, of in looked.nulls.items() for row in of}
            assert told == {(what, which, row): v for what, which, row, v in expected(cells, columns, at)}
            seen |= {(what, v) for (what, _, _), v in told.items() if what in ("status", "null")}
    assert len(seen) == 4  # each status, and nulls
