"""What can only be said when somebody asks: where the scheduled departure lies in New York's day and week,
and whether the plane can be back by then.

Plain Python: the replicas that answer requests import this module, and must not import Feast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

NEW_YORK = ZoneInfo("America/New_York")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
# With two hours to spare or two hours too late, some more make no difference.
MOST_SPARE_MINUTES = 120.0


def request_time(inputs: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Columns in, columns out, row by row.

    From ``scheduled_departure`` alone: ``departure_hour`` and ``departure_weekday`` on New York's clock, as
    categories; ``day_sine`` and ``day_cosine``, the time of day as a point on a circle, on which 23:59 and
    00:01 are near. With ``plane_back_at``: ``plane_spare``, the minutes between the two, capped at two
    hours either way; None if nothing is known of the plane.

    An instant is an aware datetime, a naive one (UTC), ISO 8601 text (UTC, if it names no offset) or
    seconds since 1970. None, and what is none of these, gives None.
    """
    asked = [_instant(value) for value in inputs["scheduled_departure"]]
    back = [_instant(value) for value in inputs["plane_back_at"]]
    hours, weekdays, sines, cosines = (
        zip(*map(_on_the_clock, asked), strict=True) if asked else ((), (), (), ())
    )
    return {
        "departure_hour": list(hours),
        "departure_weekday": list(weekdays),
        "day_sine": list(sines),
        "day_cosine": list(cosines),
        "plane_spare": [_spare(*pair) for pair in zip(asked, back, strict=True)],
    }


def _instant(value: Any) -> datetime | None:
    try:
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            value = datetime.fromtimestamp(value, UTC)
    except (ValueError, OverflowError, OSError):  # not a date, or none that a calendar has
        return None
    # pandas' missing time is a datetime that is unlike itself. Years at the ends have no other time zones.
    if not isinstance(value, datetime) or value != value or not 1 < value.year < 9999:
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _on_the_clock(instant: datetime | None) -> tuple[str | None, str | None, float | None, float | None]:
    if instant is None:
        return None, None, None, None
    local = instant.astimezone(NEW_YORK)
    return _at_minute(local.weekday(), local.hour * 60 + local.minute)


@lru_cache(maxsize=7 * 24 * 60)
def _at_minute(weekday: int, minute: int) -> tuple[str, str, float, float]:
    angle = 2 * math.pi * minute / (24 * 60)
    return f"{minute // 60:02d}", WEEKDAYS[weekday], math.sin(angle), math.cos(angle)


def _spare(asked: datetime | None, back: datetime | None) -> float | None:
    if asked is None or back is None:
        return None
    minutes = (asked - back).total_seconds() / 60
    return max(-MOST_SPARE_MINUTES, min(MOST_SPARE_MINUTES, minutes))
