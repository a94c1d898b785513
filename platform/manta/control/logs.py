"""What runs print, copied out of the engine as it comes, one file per attempt, so that it outlives the
cluster.

Beside the file of an attempt lies a marker, `.open`, from before the engine is asked to start it until all
that it printed has been copied: after any crash, the markers say what is left to do. Bytes go where they
came from: two that copy the same attempt at once write the same.
"""

from __future__ import annotations

import codecs
import contextlib
import logging
import os
import threading
import time
from pathlib import Path

from manta.control.engine import Engine
from manta.errors import Unavailable
from manta.ledger.runs import Run, State
from manta.ledger.store import Ledger
from manta.settings import Settings

log = logging.getLogger(__name__)

EVERY_SECONDS = 1.0
AT_MOST_A = 20  # th part of the time is spent on copying one log
READ_BYTES = 4 * 2**20
LOOK_BACK = 200


def log_file(settings: Settings, run: Run, attempt: int | None = None) -> Path:
    return settings.home / "logs" / "runs" / f"{run.id}-{attempt or run.attempt}.log"


def run_logs(
    settings: Settings, engine: Engine, run: Run, attempt: int | None = None, offset: int = 0
) -> tuple[bytes, int]:
    """What an attempt of the run, the last unless given, has printed so far, from byte ``offset`` on, and
    the offset to go on from. At most 4 MiB, whole characters: ask again until nothing comes.

    Once a run has ended, all that its attempt printed before its end is there.
    """
    path = log_file(settings, run, attempt)
    marker = path.with_suffix(".open")
    if marker.exists():
        # The cluster may be down, or all has been copied meanwhile: what was kept is all there is.
        with contextlib.suppress(Unavailable, FileNotFoundError):
            copy(engine, marker.read_text(), path)
    if not path.exists():
        return b"", offset
    with path.open("rb") as kept:
        kept.seek(offset)
        content = kept.read(READ_BYTES)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(content)
    whole = len(content) - len(decoder.getstate()[0])
    return content[:whole], offset + whole


def copy(engine: Engine, submission: str, path: Path) -> None:
    """Append to the file what the engine has beyond it.

    Raises:
        Unavailable: the engine does not answer.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        offset = os.fstat(held).st_size
        for chunk in engine.logs(submission, offset):
            os.pwrite(held, chunk, offset)
            offset += len(chunk)
    finally:
        os.close(held)


class LogKeeper:
    """Copies the logs of all attempts that have a marker."""

    def __init__(self, settings: Settings, ledger: Ledger, engine: Engine) -> None:
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._folder = settings.home / "logs" / "runs"
        self._due: dict[Path, float] = {}

    def open(self, run: Run) -> None:
        """From now on the log of the run's present attempt is kept. The same again changes nothing."""
        marker = log_file(self._settings, run).with_suffix(".open")
        if not marker.exists():
            marker.parent.mkdir(parents=True, exist_ok=True)
            partial = marker.with_suffix(f".opening-{os.getpid()}")
            partial.write_text(run.submission)
            partial.replace(marker)

    def look_back(self) -> None:
        """Open what ran while nobody kept its log, of the last runs."""
        for run in self._ledger.runs(limit=LOOK_BACK):
            if run.submission and not log_file(self._settings, run).exists():
                self.open(run)

    def keep(self, stop: threading.Event, leads: threading.Event) -> None:
        """Copies until ``stop``, while this controller ``leads``."""
        while not stop.wait(EVERY_SECONDS):
            try:
                if leads.is_set():
                    self.turn()
            except Unavailable:
                continue  # the controller tells of it
            except Exception:
                log.exception("logs")

    def turn(self) -> None:
        """One round over what is open and due.

        Raises:
            Unavailable: the engine or the ledger does not answer.
        """
        due = [m for m in sorted(self._folder.glob("*.open")) if self._due.get(m, 0.0) <= time.monotonic()]
        if not due:
            return
        open_now = {marker: marker.read_text() for marker in due}
        # Asked before the copying: what had ended then is copied whole.
        over = self._over(open_now)
        for marker, submission in open_now.items():
            began = time.monotonic()
            copy(self._engine, submission, marker.with_suffix(".log"))
            now = time.monotonic()
            self._due[marker] = now + max(EVERY_SECONDS / 2, AT_MOST_A * (now - began))
            if marker in over:
                self._due.pop(marker)
                marker.unlink(missing_ok=True)

    def _over(self, markers: dict[Path, str]) -> set[Path]:
        attempts = {marker: tuple(int(part) for part in marker.stem.split("-")) for marker in markers}
        runs = {run.id: run for run in self._ledger.runs(ids={a[0] for a in attempts.values()}, limit=10_000)}
        jobs = self._engine.jobs(set(markers.values()))
        over = set()
        for marker, submission in markers.items():
            run_id, attempt = attempts[marker]
            job = jobs.get(submission)
            if job is not None:
                done = job.state.ended
            else:
                # The engine has not been asked yet, or it has forgotten.
                run = runs.get(run_id)
                present = run is not None and run.attempt == attempt
                done = not present or run.state.ended or run.state is State.QUEUED  # type: ignore[union-attr]
            if done:
                over.add(marker)
        return over
