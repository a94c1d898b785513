"""A ledger for those that cannot do without: it is asked again while it does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from manta.errors import Unavailable
from manta.ledger.store import Ledger

T = TypeVar("T")

MOST_SECONDS = 600.0
FIRST_WAIT = 0.2
LONGEST_WAIT = 10.0


def patiently(ask: Callable[[], T], seconds: float = MOST_SECONDS) -> T:
    """``ask()``, again and again while it raises Unavailable, with growing pauses.

    What it writes may have been written by a try that raised: a connection that dies while the database
    commits does not say which.

    Raises:
        Unavailable: it still did after ``seconds``.
    """
    until = time.monotonic() + seconds
    wait = FIRST_WAIT
    while True:
        try:
            return ask()
        except Unavailable:
            if time.monotonic() + wait > until:
                raise
            time.sleep(wait)
            wait = min(wait * 2, LONGEST_WAIT)


def patient(ledger: Ledger, seconds: float = MOST_SECONDS) -> Ledger:
    """The same ledger, each of whose methods, and those of its parts, waits for it to come back."""
    return cast(Ledger, _Patient(ledger, seconds))


class _Patient:
    def __init__(self, part: Any, seconds: float) -> None:
        self._part = part
        self._seconds = seconds

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if callable(found):
            return lambda *args, **named: patiently(lambda: found(*args, **named), self._seconds)
        if type(found).__module__.startswith("manta.ledger."):
            return _Patient(found, self._seconds)
        return found
