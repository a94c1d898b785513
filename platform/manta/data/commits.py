"""What the log of a dataset tells of its versions."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from deltalake import DeltaTable
from pydantic import BaseModel, ConfigDict

from manta.errors import InvalidInput

When = datetime | date | str
NOBODYS = ("compact", "schema")  # modes of commits that no run has made, and that change no row


class Commit(BaseModel):
    """How a version came to be. What an old commit does not tell is None.

    Attributes:
        at: when it was committed, UTC.
        mode: replace, append, upsert, compact (the same rows in fewer files) or schema (columns added).
        by: the ingest that made it; "" where none did.
        run: the run that made it.
        rows, refused: of this commit alone.
        total: rows of the dataset after it.
    """

    model_config = ConfigDict(frozen=True)

    version: int
    at: datetime
    mode: str
    by: str
    run: int | None
    rows: int | None
    refused: int | None
    total: int | None


def commits_of(table: DeltaTable) -> list[Commit]:
    """Newest first."""
    return [commit_of(each) for each in table.history()]


def told_of(commit: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(commit.get("manta", "{}")))


def commit_of(commit: dict[str, Any]) -> Commit:
    told = told_of(commit)
    numbers = {name: int(told[name]) if name in told else None for name in ("rows", "refused", "total")}
    mode = str(told.get("mode", "replace"))
    if mode in NOBODYS:
        numbers |= {"rows": 0, "refused": 0}
    elif numbers["total"] is None and mode == "replace":
        numbers["total"] = numbers["rows"]
    return Commit(
        version=commit["version"],
        at=datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=commit["timestamp"]),
        mode=mode,
        by="" if mode in NOBODYS else str(told.get("ingest", "")),
        run=None if mode in NOBODYS else run_of(told),
        **numbers,
    )


def run_of(told: dict[str, Any]) -> int | None:
    """The id of the run that a commit's key names: it ends with it."""
    found = re.search(r"-(\d+)$", str(told.get("run_key", "")))
    return int(found[1]) if found else None


def moment(value: When) -> datetime:
    """The last moment that ``value`` means, UTC: of a date, the end of its day.

    Raises:
        InvalidInput: it is not ISO 8601.
    """
    if isinstance(value, str):
        try:
            value = date.fromisoformat(value) if len(value) <= 10 else datetime.fromisoformat(value)
        except ValueError:
            raise InvalidInput(
                f"{value!r} is no time", hint="2026-11-17, or 2026-11-17T09:30, or with an offset"
            ) from None
    if not isinstance(value, datetime):
        value = datetime.combine(value, time.max)
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
