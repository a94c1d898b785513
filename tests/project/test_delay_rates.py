"""The trailing rates, recomputed one by one in plain Python from the source's own texts."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from jobs import delay_rates

Frames = dict[str, pl.DataFrame]
# Five weeks around the end of summer time.
FIRST, LAST = "2013-10-14", "2013-11-18"
NEW_YORK = ZoneInfo("America/New_York")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
CHANGE = datetime(2013, 11, 3, 6, tzinfo=UTC)
WINDOWS = {"3h": 3 * HOUR, "24h": DAY, "7d": 7 * DAY, "28d": 28 * DAY}
KEYS = {"carrier": ["carrier"], "origin": ["origin"], "dest": ["dest"], "route": ["origin", "dest"]}


def clock(hhmm: str) -> timedelta:
    return timedelta(hours=int(hhmm) // 100, minutes=int(hhmm) % 100)


def facts_of(flight: dict, zone: ZoneInfo) -> list[tuple[datetime, dict]]:
    """What becomes known of a flight, and when: read off the texts of one line."""
    midnight = datetime(int(flight["year"]), int(flight["month"]), int(flight["day"]))
    scheduled = (midnight + clock(flight["sched_dep_time"])).replace(tzinfo=NEW_YORK).astimezone(UTC)
    wall = scheduled.astimezone(zone).replace(tzinfo=None)
    due = wall.replace(hour=0, minute=0) + clock(flight["sched_arr_time"])
    due = (due if due > wall else due + DAY).replace(tzinfo=zone).astimezone(UTC)

    minutes = None if flight["dep_delay"] is None else int(flight["dep_delay"])
    held = minutes is None or minutes > 15
    facts = [(scheduled + 15 * timedelta(minutes=1), {"held": held})]
    if minutes is None:
        facts.append((scheduled + DAY, {"cancelled": True}))
    elif flight["arr_delay"] is None:
        facts.append((due + DAY, {"cancelled": False}))
    else:
        delay = int(flight["arr_delay"])
        told = {"cancelled": False, "late": delay > 15, "arrival_delay": min(delay, 180)}
        facts.append((due + timedelta(minutes=delay), told))
    return facts


@pytest.fixture(scope="module")
def tables(days: Callable[[str, str], Frames], compute: Callable[[Frames], Frames]) -> Frames:
    return compute(days(FIRST, LAST))


@pytest.fixture(scope="module")
def facts(sources: Frames) -> list[tuple[dict, datetime, dict]]:
    """(flight, known at, what) of all flights of those weeks."""
    zones = dict(sources["airports"].select("faa", "tzone").iter_rows())
    puerto_rico = dict.fromkeys(["BQN", "PSE", "SJU", "STT"], "America/Puerto_Rico")
    zone_of = {faa: ZoneInfo(zone) for faa, zone in (zones | puerto_rico).items() if zone}
    day = pl.date(pl.col("year").cast(int), pl.col("month").cast(int), pl.col("day").cast(int))
    bounds = [datetime.fromisoformat(text).date() for text in (FIRST, LAST)]
    flights = sources["flights"].filter(day.is_between(*bounds, closed="left"))
    return [
        (flight, known_at, what)
        for flight in flights.iter_rows(named=True)
        for known_at, what in facts_of(flight, zone_of[flight["dest"]])
    ]


@pytest.mark.parametrize("table", KEYS)
def test_rates_are_what_counting_gives(table: str, tables: Frames, facts: list) -> None:
    keys = KEYS[table]
    of_key = defaultdict(list)
    for flight, known_at, what in facts:
        of_key[tuple(flight[key] for key in keys)].append((known_at, what))
    for known in of_key.values():
        known.sort(key=_when)
    rows = tables[f"{table}_delays"]
    rates = [name for name in rows.columns if name.rsplit("_", 1)[-1] in WINDOWS]
    assert len(rates) >= 4
    some = pl.concat([rows.sample(60, seed=5), rows.filter(pl.col("event_time") > CHANGE).head(10)])
    for row in some.iter_rows(named=True):
        now = row["event_time"]
        known = of_key[tuple(row[key] for key in keys)]
        for rate in rates:
            measure, window = rate.removeprefix(f"{table}_").rsplit("_", 1)
            first = bisect_right(known, now - WINDOWS[window], key=_when)
            last = bisect_right(known, now, key=_when)
            told = [what[measure] for _, what in known[first:last] if measure in what]
            expected = np.float32(sum(told) / len(told)) if told else None
            assert row[rate] == expected, (rate, row)


def _when(fact: tuple[datetime, dict]) -> datetime:
    return fact[0]


@pytest.mark.parametrize("table", KEYS)
def test_there_is_a_row_whenever_something_becomes_known(table: str, tables: Frames, facts: list) -> None:
    keys = KEYS[table]
    # Of a route only the outcomes count.
    told = [fact for fact in facts if "held" not in fact[2] or table != "route"]
    expected = {(*(flight[key] for key in keys), known_at) for flight, known_at, _ in told}
    assert set(tables[f"{table}_delays"].select(*keys, "event_time").iter_rows()) == expected


def test_windows_are_open_at_their_start_and_hold_their_end() -> None:
    start = datetime(2013, 5, 1, tzinfo=UTC)
    facts = pl.DataFrame(
        {
            "carrier": ["AA"] * 4 + [None],
            "event_time": [start, start + HOUR, start + 3 * HOUR, start + 3 * HOUR, start],
            "late": [True, None, False, True, True],
        }
    ).with_columns(pl.col("event_time").dt.cast_time_unit("us"))
    rates = delay_rates.trailing(facts, ["carrier"], {"late": ["1h", "3h", "4h"]}, prefix="x")
    assert rates["event_time"].to_list() == [start, start + HOUR, start + 3 * HOUR]
    assert rates["x_late_1h"].to_list() == [1.0, None, 0.5]
    assert rates["x_late_3h"].to_list() == [1.0, 1.0, 0.5]  # at three o'clock, midnight is just outside
    assert rates["x_late_4h"].to_list() == [1.0, 1.0, pytest.approx(2 / 3)]


def test_cancelled_flights_are_held_at_once_and_cancelled_a_day_later() -> None:
    scheduled = datetime(2013, 5, 1, 12, tzinfo=UTC)
    flight = {"carrier": "AA", "origin": "JFK", "dest": "LAX", "arrival_delay": None, "late": None}
    departures = pl.DataFrame(
        [
            flight
            | {
                "scheduled_departure": scheduled,
                "departed_at": None,
                "cancelled": True,
                "outcome_known_at": scheduled + DAY,
            }
        ],
        schema_overrides={
            "departed_at": pl.Datetime("us", "UTC"),
            "late": pl.Boolean,
            "arrival_delay": pl.Int64,
        },
    )
    rows = delay_rates.of_carrier({"departures": departures})
    assert rows["event_time"].to_list() == [scheduled + timedelta(minutes=15), scheduled + DAY]
    assert rows["carrier_held_3h"].to_list() == [1.0, None]
    assert rows["carrier_cancelled_7d"].to_list() == [None, 1.0]
    assert rows["carrier_late_24h"].to_list() == [None, None]
