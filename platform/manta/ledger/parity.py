"""What a parity check found: how it is kept with a run, and how it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict

CELL = 30  # characters


class Cause(StrEnum):
    """Why a value online is not the one that the as-of join gives."""

    TTL = "ttl"
    LATE = "late data"
    TRANSFORM = "transform"
    TYPE = "type"
    JOIN = "join"
    STALE = "stale"


MEANING: Mapping[Cause, str] = {
    Cause.TTL: "one side takes the value for too old, the other does not",
    Cause.LATE: "a row that came after rows of later times is on one side only",
    Cause.TRANSFORM: "the same input gives another value online",
    Cause.TYPE: "the same value, in another type or precision",
    Cause.JOIN: "nothing, or another key's row, is held under the key",
    Cause.STALE: "online is the value of an older event time",
}
NEXT: Mapping[Cause, str] = {
    Cause.TTL: "`manta run features`, so that readers have the TTLs of now; then materialize again",
    Cause.LATE: "materialize again: `manta features materialize`",
    Cause.TRANSFORM: "let the function depend on nothing but the row: no other rows, no clock, no file",
    Cause.TYPE: "declare the Field as what the dataset holds; `manta run features`; materialize again",
    Cause.JOIN: "see how keys are mapped and typed; `manta run features`; materialize again",
    Cause.STALE: "materialize again: `manta features materialize`",
}


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True)


class Example(_Kept):
    """One value that differs. ``*_event``: the event time of the row behind it, where there is one."""

    keys: dict[str, Any]
    at: datetime
    offline: str
    online: str
    offline_event: datetime | None = None
    online_event: datetime | None = None


class Skewed(_Kept):
    """Values of one feature that differ, for one cause. ``through`` names the input of an on-demand feature
    that brought the difference in; ``note`` is what else is known of it."""

    view: str
    feature: str
    cause: Cause
    values: int
    of: int
    example: Example
    through: str = ""
    note: str = ""

    def __str__(self) -> str:
        through = f", through {self.through}" if self.through else ""
        return f"{self.cause} in {self.view}.{self.feature} ({self.values:,} of {self.of:,}{through})"


class ParityReport(_Kept):
    """A parity check of one service. ``watermark``: up to when the materialization went; ``compared``: values
    by `view.feature`; ``found`` has the most frequent first."""

    service: str
    watermark: datetime
    rows: int
    values: int
    skewed: int
    compared: dict[str, int]
    found: tuple[Skewed, ...] = ()
    seconds: float = 0.0

    @property
    def clean(self) -> bool:
        return self.skewed == 0

    @property
    def causes(self) -> tuple[Cause, ...]:
        return tuple(dict.fromkeys(each.cause for each in self.found))

    def summary(self) -> str:
        told = f"{self.values:,} values of {self.rows:,} rows of {self.service}"
        if self.clean:
            return f"{told} are the same online and offline"
        by_cause: dict[Cause, int] = {}
        for each in self.found:
            by_cause[each.cause] = by_cause.get(each.cause, 0) + each.values
        causes = ", ".join(f"{cause} {count:,}" for cause, count in by_cause.items())
        first = next((each for each in self.found if not each.through), self.found[0])
        return f"{self.skewed:,} of {told} differ online: {causes}; first {first}"

    def hint(self) -> str:
        return "; ".join(f"{cause}: {NEXT[cause]}" for cause in self.causes)

    def lines(self, most: int = 20) -> Iterator[str]:
        """The report as text: what differs, a line each; then for each cause an example and the next step."""
        yield f"parity of {self.service} at {self.watermark:%Y-%m-%d %H:%M:%S} UTC: {self.summary()}"
        if self.clean:
            return
        heads = ("cause", "feature", "differ", "offline", "online", "keys")
        rows = [heads, *(_cells(each) for each in self.found[:most])]
        widths = [max(len(row[at]) for row in rows) for at in range(len(heads))]
        for row in rows:
            yield (
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            )
        if len(self.found) > most:
            yield f"  … and {len(self.found) - most} more"
        for cause in self.causes:
            first = next((each for each in self.found if each.cause is cause and not each.through), None)
            yield f"  {cause}: {MEANING[cause]}"
            if first is not None:
                yield f"    {_told(first)}"
            yield f"    next: {NEXT[cause]}"


def short(value: str) -> str:
    return value if len(value) <= CELL else value[: CELL - 1] + "…"


def _cells(each: Skewed) -> tuple[str, ...]:
    keys = " ".join(f"{name}={value}" for name, value in each.example.keys.items())
    differ = f"{each.values:,} of {each.of:,}"
    cause = f"{each.cause} ← {each.through}" if each.through else str(each.cause)
    return (
        cause,
        f"{each.view}.{each.feature}",
        differ,
        short(each.example.offline),
        short(each.example.online),
        keys,
    )


def _told(each: Skewed) -> str:
    found = each.example
    offline = f" (of {found.offline_event:%Y-%m-%d %H:%M:%S})" if found.offline_event else ""
    online = f" (of {found.online_event:%Y-%m-%d %H:%M:%S})" if found.online_event else ""
    told = (
        f"e.g. {each.view}.{each.feature} at {found.at:%Y-%m-%d %H:%M:%S}: "
        f"offline {short(found.offline)}{offline}, online {short(found.online)}{online}"
    )
    return f"{told}; {each.note}" if each.note else told
