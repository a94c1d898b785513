"""The controller: observe the ledger and the engine, decide, act; again and again. One per ledger.

It keeps nothing in memory that it could not read again: killed at any point and started anew, it goes on
from the ledger and from what the engine remembers.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from manta.control import admission
from manta.control.endpoints import Deployer
from manta.control.engine import Engine, EngineJob, JobState
from manta.errors import Conflict, Unavailable
from manta.ledger.runs import EndReason, Run, State
from manta.ledger.store import Ledger
from manta.settings import Settings

log = logging.getLogger(__name__)

MOST_ATTEMPTS = 3
BUSY_SECONDS = 0.3
IDLE_SECONDS = 2.0
STOP_PATIENCE_SECONDS = 40.0
LOG_SECONDS = 2.0


class Controller:
    """Moves runs through their states, and brings the endpoints to what is wanted of them."""

    def __init__(self, settings: Settings, ledger: Ledger, engine: Engine) -> None:
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._deployer = Deployer(settings, ledger, engine)
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._asked_to_stop: dict[str, float] = {}
        self._logged: dict[str, float] = {}
        self._watched: dict[str, Run] = {}
        self.trouble = ""

    def wake(self) -> None:
        """Something has changed: look at once."""
        self._wake.set()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def run_forever(self) -> None:
        """Returns after :meth:`stop`. An engine or ledger that does not answer is waited for."""
        while not self._stop.is_set():
            try:
                busy = self.tick()
                self.trouble = ""
            except Unavailable as error:
                busy, self.trouble = False, error.message
                log.warning("%s", error.message)
            except Exception as error:
                # A fault in one round must not end all rounds; it is told in `manta status`.
                busy, self.trouble = False, f"{type(error).__name__}: {error}"
                log.exception("controller")
            self._wake.wait(BUSY_SECONDS if busy else IDLE_SECONDS)
            self._wake.clear()

    def tick(self) -> bool:
        """One round. True while there is work at hand."""
        # The engine is asked before the ledger: a worker writes its end to the ledger before its process
        # ends, so a run seen RUNNING here whose job had ended there has really died.
        active = self._ledger.active()
        jobs = self._engine.jobs() if any(run.submission for run in active) else {}
        active = self._ledger.active() if active else []
        self._keep_last_logs(active)
        for run in active:
            try:
                self._advance(run, jobs)
            except Conflict:
                continue  # the worker moved it meanwhile; the next round sees how
        self._admit()
        deploying = self._deployer.tick()
        return bool(active) or deploying

    def _advance(self, run: Run, jobs: Mapping[str, EngineJob]) -> None:
        job = jobs.get(run.submission) if run.submission else None
        if run.stop_requested:
            self._stop_run(run, job)
        elif run.state is State.STARTING and job is None:
            self._submit(run)
        elif run.state in (State.STARTING, State.RUNNING, State.PREEMPTING):
            if job is None or job.state.ended:
                self._lost(run, job)
            elif time.monotonic() - self._logged.get(run.submission, 0.0) > LOG_SECONDS:
                self._keep_logs(run)

    def _submit(self, run: Run) -> None:
        package = package_file(self._settings, run.package)
        if not package.exists():
            self._end(
                run, State.FAILED, EndReason.LOST, f"the package {run.package} is gone: submit it again"
            )
            return
        self._engine.submit(run.submission, run.id, run.package, package.read_bytes())

    def _stop_run(self, run: Run, job: EngineJob | None) -> None:
        if run.state is State.QUEUED or job is None or job.state.ended:
            self._end(run, State.STOPPED, EndReason.STOP_REQUESTED)
            return
        asked = self._asked_to_stop.setdefault(run.submission, time.monotonic())
        self._engine.stop(run.submission)
        # Ray says it has stopped a PENDING job and lets it start: the worker then finds that the run has
        # ended and leaves.
        if job.state is JobState.PENDING or time.monotonic() - asked > STOP_PATIENCE_SECONDS:
            self._end(run, State.STOPPED, EndReason.STOP_REQUESTED)

    def _lost(self, run: Run, job: EngineJob | None) -> None:
        # The ledger is read again: it may have been written between the two looks.
        if self._ledger.run(run.id).state is not run.state:
            return
        why = job.message if job else "the cluster no longer knows it"
        self._keep_logs(run)
        if run.attempt < MOST_ATTEMPTS:
            log.warning("run %s lost attempt %s: %s", run.id, run.attempt, why)
            self._ledger.move(run, State.QUEUED, message=f"attempt {run.attempt} was lost: {why}")
        else:
            self._end(run, State.FAILED, EndReason.LOST, f"lost {run.attempt} times; the last: {why}")

    def _end(self, run: Run, state: State, reason: EndReason, message: str = "") -> None:
        self._keep_logs(run)
        self._ledger.move(run, state, end_reason=reason, message=message)

    def _admit(self) -> None:
        active = tuple(self._ledger.active())
        known = {run.id: run.state for run in active}
        needed = {need for run in active for need in run.needs}
        states = {need: known.get(need) or self._ledger.run(need).state for need in needed}
        snapshot = admission.Snapshot(active, states, self._settings.concurrent_runs)
        for decision in admission.decide(snapshot):
            try:
                if isinstance(decision, admission.Refuse):
                    message = f"run {decision.need}, which it needs, did not succeed"
                    self._end(decision.run, State.FAILED, EndReason.NEED_FAILED, message)
                else:
                    run = decision.run
                    # Written before the act: whoever reads the ledger after a crash knows the name under
                    # which the engine may hold it.
                    self._submit(self._ledger.start(run, f"{self._namespace}-{run.id}-{run.attempt + 1}"))
            except Conflict:
                continue

    @property
    def _namespace(self) -> str:
        """Keeps apart the submissions of two ledgers on one cluster."""
        return f"manta-{self._ledger.identity()}"

    def _keep_last_logs(self, active: list[Run]) -> None:
        # A worker ends its run itself: what it printed last is copied in the round that no longer sees it.
        working = {run.submission: run for run in active if run.submission}
        for submission in set(self._watched) - set(working):
            self._keep_logs(self._watched.pop(submission))
            self._logged.pop(submission, None)
            self._asked_to_stop.pop(submission, None)
        self._watched |= working

    def _keep_logs(self, run: Run) -> None:
        if not run.submission:
            return
        self._logged[run.submission] = time.monotonic()
        text = self._engine.logs(run.submission)
        if text:
            path = log_file(self._settings, run)
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(text)
            partial.replace(path)


def package_file(settings: Settings, package: str) -> Path:
    return settings.home / "packages" / f"{package}.zip"


def log_file(settings: Settings, run: Run) -> Path:
    return settings.home / "logs" / "runs" / f"{run.id}-{run.attempt}.log"


def run_logs(settings: Settings, engine: Engine, run: Run) -> str:
    """What the run's last attempt has printed so far, from the engine or from what was kept."""
    kept = log_file(settings, run)
    try:
        text = engine.logs(run.submission) if run.submission else ""
    except Unavailable:
        text = ""  # the cluster is down: what was kept is all there is
    return text or (kept.read_text() if kept.exists() else "")
