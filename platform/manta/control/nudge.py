"""Wakes the controller that leads: that of this process, or of another that shares the state folder."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

LOOK_SECONDS = 0.05  # between two looks at the file: a look costs microseconds


class Nudge:
    """What one controller waits with; ``path`` is touched to wake those of other processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._here = threading.Event()
        self._seen = self._touched()

    def here(self) -> None:
        """Wake the controller of this process."""
        self._here.set()

    def everywhere(self) -> None:
        """Wake the others too. Where the folder cannot be written they are not told, and look by themselves
        a second later."""
        self._here.set()
        with contextlib.suppress(OSError):
            self._path.touch()

    def wait(self, seconds: float) -> None:
        """Returns when somebody has woken it since the last wait, or after ``seconds``."""
        until = time.monotonic() + seconds
        while self._touched() == self._seen and (left := until - time.monotonic()) > 0:
            if self._here.wait(min(left, LOOK_SECONDS)):
                break
        self._here.clear()
        self._seen = self._touched()

    def _touched(self) -> int:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return 0
