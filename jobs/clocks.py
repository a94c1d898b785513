"""Wall clocks to instants: what an airport's clock shows, and when that was in UTC.

The flights' times are four digits of local time (``517`` is 05:17, ``2400`` the midnight that ends a day),
at New York for departures and at the destination for arrivals. Everything downstream is in UTC, so the two
clock changes are dealt with here and nowhere else:

- a time shown twice (01:30 on 3 November 2013) is the earlier of the two instants;
- a time never shown (02:30 on 10 March 2013) is read from a clock that was not put forward: 03:30 of the
  new time.
"""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

NEW_YORK = "America/New_York"

# The four destinations that the airports table does not have: Puerto Rico and the Virgin Islands keep
# Atlantic time all year, one hour ahead of New York in winter and level with it in summer.
ZONES_OF_MISSING_AIRPORTS = dict.fromkeys(["BQN", "PSE", "SJU", "STT"], "America/Puerto_Rico")


def minutes_of_day(hhmm: pl.Expr) -> pl.Expr:
    """``517`` → 317 minutes after midnight; ``2400`` → 1440, the midnight that ends the day."""
    return hhmm // 100 * 60 + hhmm % 100


def to_utc(wall: pl.Expr, zone: str) -> pl.Expr:
    """The instant at which clocks in ``zone`` show ``wall`` (a naive datetime)."""

    def read(expr: pl.Expr) -> pl.Expr:
        return expr.dt.replace_time_zone(
            zone, ambiguous="earliest", non_existent="null"
        ).dt.convert_time_zone("UTC")

    hour = pl.duration(hours=1)
    return read(wall).fill_null(read(wall - hour) + hour)


def to_wall(instant: pl.Expr, zone: str) -> pl.Expr:
    """What clocks in ``zone`` show at ``instant``, as a naive datetime."""
    return instant.dt.convert_time_zone(zone).dt.replace_time_zone(None)


def departure_instant(date: pl.Expr, hhmm: pl.Expr) -> pl.Expr:
    """The instant of a local time at New York on a date."""
    return to_utc(date.cast(pl.Datetime("us")) + pl.duration(minutes=minutes_of_day(hhmm)), NEW_YORK)


def next_showing(hhmm: pl.Expr, after: pl.Expr, zone: pl.Expr, zones: Iterable[str]) -> pl.Expr:
    """The first instant later than ``after`` at which clocks in ``zone`` show ``hhmm``.

    The arrival of a flight that takes less than a day, whatever zones and midnights lie between. ``zones``
    are the values that ``zone`` takes; for any other the result is null.
    """

    def in_zone(name: str) -> pl.Expr:
        leaving = to_wall(after, name)
        same_day = leaving.dt.truncate("1d") + pl.duration(minutes=minutes_of_day(hhmm))
        wall = pl.when(same_day > leaving).then(same_day).otherwise(same_day + pl.duration(days=1))
        return pl.when(zone == name).then(to_utc(wall, name))

    return pl.coalesce(in_zone(name) for name in zones)
