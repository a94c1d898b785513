"""How much one may ask, how often one may fail to log in, and what of refusals goes into the audit log.

All of it is counted in this process: each server of a team counts for itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from manta.errors import TooMany
from manta.ledger.actor import Actor
from manta.ledger.audit import Audit

TRUSTED_SECONDS = 900.0
MOST_TRUSTED = 10_000
DENIALS_PER_ACTOR = 20  # entries a minute
DENIALS_IN_ALL = 200
WINDOW_SECONDS = 60.0


class Limits:
    """Requests per principal; failed log-ins per address and per key. Thread-safe."""

    def __init__(self, requests_per_minute: int, failures_per_minute: int) -> None:
        self._counter = FixedWindowRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(requests_per_minute) if requests_per_minute else None
        self._failures = RateLimitItemPerMinute(failures_per_minute)
        # Where a key was shown and was right: there its holder goes on, whoever else is locked out.
        self._trusted: dict[tuple[str, str], float] = {}

    def request(self, principal: str) -> None:
        """Raises:
        TooMany: it asks too much.
        """
        if self._requests and not self._counter.hit(self._requests, "requests", principal):
            raise self._too_many(
                self._requests, "requests", principal, said=f"{principal} sends too many requests"
            )

    def check(self, address: str, prefix: str) -> None:
        """Asked before credentials are looked at.

        Raises:
            TooMany: too many were wrong, from this address or for this key.
        """
        until = self._trusted.get((address, prefix)) if prefix else None
        if until is not None and until > time.monotonic():
            return
        for kind, name in (("address", address), ("key", prefix)):
            if name and not self._counter.test(self._failures, kind, name):
                raise self._too_many(self._failures, kind, name, said="too many log-ins have failed")

    def right(self, address: str, prefix: str) -> None:
        """The credentials were right."""
        if prefix:
            if len(self._trusted) >= MOST_TRUSTED:
                self._trusted.clear()
            self._trusted[address, prefix] = time.monotonic() + TRUSTED_SECONDS

    def wrong(self, address: str, prefix: str) -> None:
        """They were wrong."""
        self._trusted.pop((address, prefix), None)
        self._counter.hit(self._failures, "address", address)
        if prefix:
            self._counter.hit(self._failures, "key", prefix)

    def _too_many(self, item: RateLimitItem, *of: str, said: str) -> TooMany:
        seconds = max(1, ceil(self._counter.get_window_stats(item, *of).reset_time - time.time()))
        return TooMany(said, hint=f"try again in {seconds} s", retry_after=seconds)


@dataclass
class _Window:
    ends: float
    told: int = 0
    untold: int = 0


class Denials:
    """Puts refusals into the audit log: each by itself while they are few, as a number when they are many, so
    that nobody can fill the log from outside."""

    def __init__(self, audit: Audit) -> None:
        self._audit = audit
        self._windows: dict[str, _Window] = {}
        self._all = _Window(0.0)
        self._lock = threading.Lock()

    def note(self, by: Actor, action: str, target: str, *, project: str = "", **detail: Any) -> None:
        with self._lock:
            now = time.monotonic()
            over = list(self._over(now))
            if self._all.ends <= now:
                self._all = _Window(now + WINDOW_SECONDS)
            # Addresses can be many: those that come late in a minute are counted as one.
            name = by.name if by.name in self._windows or len(self._windows) < DENIALS_IN_ALL else "others"
            window = self._windows.setdefault(name, _Window(now + WINDOW_SECONDS))
            tell = window.told < DENIALS_PER_ACTOR and self._all.told < DENIALS_IN_ALL
            if tell:
                window.told += 1
                self._all.told += 1
            else:
                window.untold += 1
        self._tell(over)
        if tell:
            self._audit.record(by, action, target, project=project, outcome="denied", **detail)

    def flush(self, *, all_of_them: bool = False) -> None:
        """Write down the numbers of the minutes that are over."""
        with self._lock:
            over = list(self._over(float("inf") if all_of_them else time.monotonic()))
        self._tell(over)

    def _over(self, now: float) -> Iterator[tuple[str, int]]:
        for name in [name for name, window in self._windows.items() if window.ends <= now]:
            window = self._windows.pop(name)
            if window.untold:
                yield name, window.untold

    def _tell(self, over: list[tuple[str, int]]) -> None:
        for name, number in over:
            self._audit.record(Actor(name, "http"), "more denials", outcome="denied", count=number)
