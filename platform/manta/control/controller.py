"""The controller: observe the ledger and the engine, decide, act; again and again. Of those of one ledger,
the one that holds the lease.

It keeps nothing in memory that it could not read again: killed at any point and started anew, it goes on
from the ledger and from what the engine remembers. Each act is written to the ledger before the engine is
asked, and every move in the ledger is compare-and-set: what has changed since it was seen is left alone.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manta.control import admission, verdicts
from manta.control.endpoints import Deployer
from manta.control.engine import Engine, EngineJob, JobState
from manta.control.leader import LEASE_SECONDS, Leader
from manta.control.logs import LogKeeper, log_file, run_logs
from manta.control.nudge import Nudge
from manta.control.verdicts import Sight
from manta.definitions import Policy
from manta.errors import Conflict, Unavailable
from manta.ledger import retries
from manta.ledger.database import now
from manta.ledger.runs import WORKING, EndReason, Run, State
from manta.ledger.store import Ledger
from manta.settings import Settings

log = logging.getLogger(__name__)

BUSY_SECONDS = 0.3
IDLE_SECONDS = 1.0
# How long the engine may refuse a submission while it answers otherwise.
REFUSED_SECONDS = 120.0
# What the engine has and the ledger does not want is looked for now and then, and given time to end by
# itself: a worker has written its end a moment before its process ends.
SWEEP_SECONDS = 15.0
LINGER_SECONDS = 15.0


@dataclass
class Lingering:
    """An attempt that is over by the ledger, and whose process lives; from ``stop_at`` on it is stopped."""

    run: Run
    stop_at: float
    since: float


class Controller:
    """Moves runs through their states, and brings the endpoints to what is wanted of them.

    Attributes:
        trouble: what it last stumbled over; empty when nothing.
        logs: what keeps the logs of runs.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, engine: Engine, lease_seconds: float = LEASE_SECONDS
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._engine = engine
        self._deployer = Deployer(settings, ledger, engine)
        self.leader = Leader(ledger, lease_seconds)
        self.logs = LogKeeper(settings, ledger, engine)
        self._nudge = Nudge(settings.home / "controller.wake")
        self._stop = threading.Event()
        self._leads = threading.Event()
        self._asked_to_stop: dict[str, float] = {}
        self._beats: dict[str, tuple[object, float]] = {}
        self._accepted: set[str] = set()
        self._lingering: dict[str, Lingering] = {}
        self._given_up: set[str] = set()
        self._swept = float("-inf")
        self._unavailable: Unavailable | None = None
        self.trouble = ""

    @property
    def leading(self) -> bool:
        """Whether this controller is the one that acts."""
        return self.leader.leading

    def wake(self) -> None:
        """Something has changed: the controller that leads looks at once, be it this one or another's."""
        self._nudge.here() if self.leading else self._nudge.everywhere()

    def stop(self) -> None:
        self._stop.set()
        self._nudge.here()

    def run_forever(self) -> None:
        """Returns after :meth:`stop`. An engine or ledger that does not answer is waited for."""
        beside = [
            threading.Thread(target=self.leader.keep, args=(self._stop,), name="lease", daemon=True),
            threading.Thread(target=self.logs.keep, args=(self._stop, self._leads), name="logs", daemon=True),
        ]
        for thread in beside:
            thread.start()
        while not self._stop.is_set():
            busy = self._round()
            self._nudge.wait(BUSY_SECONDS if busy else IDLE_SECONDS)
        for thread in beside:
            thread.join(timeout=5)
        self.leader.resign()

    def _round(self) -> bool:
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
        return busy

    def tick(self) -> bool:
        """One round. True while there is work at hand; at once False when another controller leads.

        Raises:
            Unavailable: the ledger or the engine does not answer; what can be done without is done.
        """
        if not self.leader.take():
            self._leads.clear()
            self._forget()
            return False
        if not self._leads.is_set():
            self.logs.look_back()
            self._leads.set()
        self._unavailable = None
        sights = self._look()
        for sight in sights:
            if not self.leading:
                return True
            try:
                self._act(sight, verdicts.judge(sight))
            except Conflict:
                continue  # the worker moved it meanwhile; the next round sees how
            except Unavailable as error:
                self._unavailable = error  # it must not hold up the others
        deploying = False
        if all(sight.answers for sight in sights):
            self._admit()
            deploying = self._deployer.tick()
        if self._unavailable is not None:
            raise self._unavailable
        return bool(sights) or deploying

    # --- observe --------------------------------------------------------------------------------------

    def _look(self) -> list[Sight]:
        """Every run that has not ended. The ledger is read before the engine is asked: what is in it by then
        and unknown to the engine has gone."""
        try:
            active = self._ledger.active()
            working = [run for run in active if run.state in WORKING]
            accepted = {run.id: self._is_accepted(run) for run in working}
        except Unavailable:
            self._beats.clear()  # nobody could beat
            raise
        jobs = self._jobs(active)
        at, clock = now(), time.monotonic()
        stopping = [run for run in working if run.stop_requested or run.state is State.PREEMPTING]
        self._asked_to_stop = {
            run.submission: self._asked_to_stop.get(run.submission, clock) for run in stopping
        }
        beats = {}
        for run in working:
            self.logs.open(run)
            seen = self._beats.get(run.submission)
            beats[run.submission] = (
                seen if seen and seen[0] == run.heartbeat_at else (run.heartbeat_at, clock)
            )
        self._beats = beats
        return [
            Sight(
                run,
                at,
                job=(jobs or {}).get(run.submission) if run.state in WORKING else None,
                answers=jobs is not None,
                accepted=accepted.get(run.id, False),
                silent=clock - beats[run.submission][1] if run.submission in beats else 0.0,
                asked=clock - self._asked_to_stop.get(run.submission, clock),
            )
            for run in active
        ]

    def _is_accepted(self, run: Run) -> bool:
        if run.state is not State.STARTING or run.submission in self._accepted:
            return True
        attempt = next((a for a in self._ledger.attempts(run.id) if a.number == run.attempt), None)
        return attempt is not None and attempt.accepted_at is not None

    def _jobs(self, active: list[Run]) -> Mapping[str, EngineJob] | None:
        """What the engine says of their last attempts; None when it does not answer."""
        try:
            if time.monotonic() - self._swept > SWEEP_SECONDS:
                self._sweep(active)
            asked = {run.submission for run in active if run.submission} | set(self._lingering)
            jobs = self._engine.jobs(asked) if asked else {}
            # One that waits for its next attempt: the last one's process may not have ended yet.
            for run in active:
                job = jobs.get(run.submission)
                if run.state is State.QUEUED and job is not None and job.state is JobState.RUNNING:
                    self._linger(run, LINGER_SECONDS)
            self._see_off(jobs)
        except Unavailable as error:
            self._unavailable = error
            return None
        return jobs

    def _linger(self, run: Run, patience: float) -> None:
        clock = time.monotonic()
        if run.submission not in self._lingering and run.submission not in self._given_up:
            self._lingering[run.submission] = Lingering(run, stop_at=clock + patience, since=clock)

    # --- act ------------------------------------------------------------------------------------------

    def _act(self, sight: Sight, verdict: verdicts.Verdict) -> None:
        run = sight.run
        match verdict:
            case verdicts.Submit():
                self._submit(run)
            case verdicts.AskToStop():
                if sight.answers:
                    self._engine.stop(run.submission)
            case verdicts.AttemptOver(reason, message):
                self._attempt_over(run, reason, message, out_of_sight=sight.job is None)
                self._let_go(sight)
            case verdicts.Finish(state, reason, message):
                self._ledger.move(run, state, end_reason=reason, message=message)
                self._let_go(sight)
            case verdicts.Wait():
                if run.state is State.STARTING and sight.job is not None and not sight.accepted:
                    # It was killed before it could write this down.
                    self._ledger.accepted(run)
                    self._accepted.add(run.submission)

    def _attempt_over(self, run: Run, reason: EndReason, message: str, out_of_sight: bool = False) -> None:
        attempts = self._ledger.attempts(run.id)
        match retries.decide(run, attempts, reason, now(), out_of_sight=out_of_sight):
            case retries.Again(at):
                log.warning("run %s: attempt %s %s: %s", run.id, run.attempt, reason, message)
                self._ledger.move(run, State.QUEUED, end_reason=reason, message=message, not_before=at)
            case retries.End(tries):
                if tries > 1:
                    message = f"{reason} {tries} times; the last: {message}"
                self._ledger.move(run, State.FAILED, end_reason=reason, message=message)

    def _let_go(self, sight: Sight) -> None:
        """The ledger no longer wants the attempt: end its process."""
        submission = sight.run.submission
        ended = sight.job is not None and sight.job.state.ended
        if submission and sight.run.state in WORKING and not ended:
            self._linger(sight.run, 0.0)
            if sight.job is not None:
                self._engine.stop(submission)

    def _submit(self, run: Run) -> None:
        package = package_file(self._settings, run.package)
        if not package.exists():
            message = f"the package {run.package} is gone: submit it again"
            self._ledger.move(run, State.FAILED, end_reason=EndReason.LOST, message=message)
            return
        self.logs.open(run)
        grace = Policy.of(run.definition).stop_grace
        try:
            self._engine.submit(run.submission, run.id, run.package, package.read_bytes(), grace=grace)
        except Unavailable as error:
            if run.started_at is None or (now() - run.started_at).total_seconds() < REFUSED_SECONDS:
                raise
            self._attempt_over(run, EndReason.LOST, error.message)
            return
        self._ledger.accepted(run)
        self._accepted.add(run.submission)

    def _admit(self) -> None:
        active = tuple(self._ledger.active())
        known = {run.id: run.state for run in active}
        needed = {need for run in active for need in run.needs}
        states = {need: known.get(need) or self._ledger.run(need).state for need in needed}
        snapshot = admission.Snapshot(
            active,
            states,
            self._settings.concurrent_runs,
            at=now(),
            lingering=tuple(each.run for each in self._lingering.values()),
        )
        for decision in admission.decide(snapshot):
            if not self.leading:
                return
            try:
                if isinstance(decision, admission.Refuse):
                    message = f"run {decision.need}, which it needs, did not succeed"
                    self._ledger.move(
                        decision.run, State.FAILED, end_reason=EndReason.NEED_FAILED, message=message
                    )
                else:
                    run = decision.run
                    # Written before the act: whoever reads the ledger after a crash knows the name under
                    # which the engine may hold it.
                    self._submit(self._ledger.start(run, f"{self._namespace}-{run.id}-{run.attempt + 1}"))
            except Conflict:
                continue
            except Unavailable as error:
                self._unavailable = error
                return

    @property
    def _namespace(self) -> str:
        """Keeps apart the submissions of two ledgers on one cluster."""
        return f"manta-{self._ledger.identity()}"

    # --- what the engine has and the ledger does not want -----------------------------------------------

    def _sweep(self, active: list[Run]) -> None:
        """Find the processes of attempts that are over: of a controller that died before it could stop
        them, or of a node that was thought lost."""
        current = {run.submission for run in active}
        prefix = f"{self._namespace}-"
        found = {
            submission: int(submission.removeprefix(prefix).split("-")[0])
            for submission, job in self._engine.jobs().items()
            if submission.startswith(prefix)
            and job.state is JobState.RUNNING
            and submission not in current
            and submission not in self._lingering
            and submission not in self._given_up
        }
        runs = {run.id: run for run in self._ledger.runs(ids=set(found.values()), limit=len(found) or 1)}
        clock = time.monotonic()
        for submission, run_id in found.items():
            run = runs.get(run_id)
            # The ledger is read again: it may have been started since.
            if run is not None and (run.submission != submission or run.state not in WORKING):
                self._lingering[submission] = Lingering(run, stop_at=clock + LINGER_SECONDS, since=clock)
        self._swept = clock

    def _see_off(self, jobs: Mapping[str, EngineJob]) -> None:
        clock = time.monotonic()
        for submission, each in list(self._lingering.items()):
            job = jobs.get(submission)
            if job is None or job.state.ended:
                del self._lingering[submission]
            elif clock - each.since > verdicts.patience(each.run) + LINGER_SECONDS:
                log.warning("%s does not end: it no longer holds up its job", submission)
                self._given_up.add(submission)
                del self._lingering[submission]
            elif clock >= each.stop_at:
                self._engine.stop(submission)

    def _forget(self) -> None:
        self._asked_to_stop.clear()
        self._beats.clear()
        self._accepted.clear()
        self._lingering.clear()
        self._swept = float("-inf")


def package_file(settings: Settings, package: str) -> Path:
    return settings.home / "packages" / f"{package}.zip"


__all__ = ["Controller", "log_file", "package_file", "run_logs"]
