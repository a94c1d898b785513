"""The soak's jobs. Each leaves a trace of what it did outside of manta, for the verdict to compare."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from manta import Job, Retry, RunContext

# Lost attempts are not what is counted here: a run is tried again as often as it is lost.
PATIENT = Retry(lost=50, user_error=0, backoff=0.2, backoff_most=1.0)


class Trace:
    """What one attempt tells: each line is one write, so that those of several processes never mix.

    The lock is let go when the process ends, however it ends: who cannot have it has met another attempt of
    the same run alive.
    """

    def __init__(self, context: RunContext) -> None:
        self._run = context.run
        self._folder = Path(context.params["trace"])
        self._lock = os.open(self._folder / f"{self._run.id}.lock", os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.note("overlap")
        self.note("begin")

    def note(self, what: str) -> None:
        line = f"{self._run.id} {self._run.attempt} {what}\n"
        file = os.open(self._folder / "trace", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(file, line.encode())
        os.close(file)

    def counted(self) -> int:
        """How often this run has come here, this time included."""
        path = self._folder / f"{self._run.id}.count"
        count = int(path.read_text()) + 1 if path.exists() else 1
        path.write_text(str(count))
        return count

    def speak(self, lines: int, seconds: float) -> None:
        for number in range(lines):
            print(f"line {number} of {lines}", flush=True)
            time.sleep(seconds / lines)
        print(f"last words of run {self._run.id} in attempt {self._run.attempt}", flush=True)


def quick(context: RunContext) -> None:
    Trace(context).speak(5, 0.05)


def slow(context: RunContext) -> None:
    Trace(context).speak(20, 3.0)


def long(context: RunContext) -> None:
    """As many lines as no single read of a log brings."""
    Trace(context).speak(5_000, 0.5)


def fails(context: RunContext) -> None:
    Trace(context).speak(5, 0.05)
    raise ValueError("as told")


def flaky(context: RunContext) -> None:
    trace = Trace(context)
    trace.speak(3, 0.05)
    if trace.counted() <= 2:
        raise ValueError("not yet")


def dies(context: RunContext) -> None:
    trace = Trace(context)
    if trace.counted() == 1:
        print("dying", flush=True)
        os._exit(9)
    trace.speak(3, 0.05)


def endless(context: RunContext) -> None:
    """Until it is stopped."""
    Trace(context)
    time.sleep(3600)


TRACE: dict[str, Any] = {"trace": ""}
quick_job = Job(name="quick", fn=quick, params=TRACE, retry=PATIENT)
slow_job = Job(name="slow", fn=slow, params=TRACE, retry=PATIENT, stop_grace=5)
long_job = Job(name="long", fn=long, params=TRACE, retry=PATIENT)
fails_job = Job(name="fails", fn=fails, params=TRACE, retry=PATIENT)
flaky_job = Job(name="flaky", fn=flaky, params=TRACE, retry=PATIENT.replace(user_error=2))
dies_job = Job(name="dies", fn=dies, params=TRACE, retry=PATIENT)
endless_job = Job(name="endless", fn=endless, params=TRACE, retry=PATIENT, stop_grace=5)
base_job = Job(name="base", fn=quick, params=TRACE, retry=PATIENT)
top_job = Job(name="top", fn=quick, params=TRACE, retry=PATIENT, needs=("base",))
