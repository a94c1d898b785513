"""`python -m manta.worker RUN`: load the project that the run was submitted with, and do its kind of work.
`python -m manta.worker NAME [--param k=v …]`, in a job submitted straight to Ray, makes the run first
(:mod:`manta.worker.adopt`).

The working directory is the project as packaged. Settings come from whoever started this process, in
MANTA_SETTINGS. Exit status 0 when the run SUCCEEDED; 1 when it FAILED; 3 when the run is not this
process's to execute (another attempt has it, or it has ended).
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from manta import output
from manta.definitions import from_json
from manta.errors import Conflict, MantaError, Unavailable
from manta.ledger import retries
from manta.ledger.context import RunContext
from manta.ledger.database import now
from manta.ledger.patience import patient
from manta.ledger.runs import EndReason, Run, State
from manta.ledger.store import Ledger
from manta.secrets import remember
from manta.settings import Settings
from manta.worker import environment
from manta.worker.reasons import end_reason, in_words

# Which module of the data wing does a kind's work, and whether it needs Ray to be connected first.
EXECUTORS = {
    "ingest": ("manta.data.ingest", True),
    "feature-table": ("manta.data.tables", True),
    "feature-repo": ("manta.features.apply", False),
    "materialize": ("manta.features.materialize", False),
    "stream-features": ("manta.features.stream", True),
    "training": ("manta.training.run", True),
    "search": ("manta.training.search", True),
    "job": ("manta.worker.job", False),
}
BEAT_SECONDS = 2.5
# An attempt that is over may have a successor soon: what it still does ends before (see ALIVE_SECONDS in
# manta.ledger.retries).
LOST_GRACE_SECONDS = 4.0
# A driver whose raylet dies while it connects waits for it for ever, and beats all the while. On a machine
# under load, connecting has taken a minute.
CONNECT_SECONDS = 300.0
GIVEN_UP = 75


def main(run_id: int, submission: str) -> int:
    root = Path.cwd()
    sys.path.insert(0, str(root))
    settings = Settings.load(root)
    plain = Ledger(settings.ledger_url)
    ledger = patient(plain)
    run = ledger.run(run_id)
    settings = settings.for_project(run.project)  # a server and its settings serve several
    mine = run.state is State.STARTING and (not submission or run.submission == submission)
    claimed = _claim(ledger, run) if mine else None
    if claimed is None:
        print(f"manta: run {run_id} is {run.state} as {run.submission}; nothing to do for {submission}")
        return 3
    remember([run.definition, run.params, settings.model_dump(mode="json")])
    output.guard()  # before there are threads: it forks
    print(f"manta: run {run.id} ({run.kind} {run.job}), attempt {claimed.attempt}", flush=True)
    attempt = Attempt(plain, claimed)
    attempt.beat()
    ledger.ran_in(claimed, environment.describe(root))
    context: RunContext | None = None
    try:
        context = RunContext(settings, ledger, claimed, from_json(run.definition), root)
        _execute(context, attempt)
        attempt.check()
    except (_Stopped, KeyboardInterrupt):
        return _stopped(ledger, attempt)
    except SystemExit as left:
        if attempt.stopping.is_set() or ledger.run(run_id).stop_requested:
            return _stopped(ledger, attempt)  # Ray's own handler of SIGTERM exits
        if left.code not in (0, None):
            return _failed(ledger, attempt, EndReason.USER_ERROR, f"it left with exit status {left.code}")
    except Exception as error:
        attempt.deaf()
        traceback.print_exc()
        if attempt.stopping.is_set():
            return _stopped(ledger, attempt)
        reason = end_reason(error)
        # Of a model that was refused, what was measured is what there is to know.
        measured = context.metrics if context and reason is EndReason.GATE_FAILED else None
        return _failed(ledger, attempt, reason, in_words(error), measured)
    attempt.deaf()
    done = {"outputs": context.outputs, "metrics": context.metrics} if context else {}
    return _ended(ledger, attempt, State.SUCCEEDED, EndReason.DONE, "", **done)


def _claim(ledger: Ledger, run: Run) -> Run | None:
    """STARTING → RUNNING; None when somebody else was first, or the attempt is over."""
    mark = now()
    try:
        return ledger.move(run, State.RUNNING, heartbeat_at=mark)
    except Conflict:
        # It may have been this very process: the ledger went away before it could answer.
        found = ledger.run(run.id)
        ours = (found.state, found.attempt, found.heartbeat_at) == (State.RUNNING, run.attempt, mark)
        return found if ours else None


def _execute(context: RunContext, attempt: Attempt) -> None:
    module, on_ray = EXECUTORS[context.run.kind]
    if on_ray:
        import ray

        with within(CONNECT_SECONDS, "connecting to Ray"):
            ray.init(log_to_driver=False, logging_level=logging.WARNING)
    # Ray installs its own handlers; ours must come after them.
    signal.signal(signal.SIGTERM, attempt.stop)
    execute = importlib.import_module(module).execute
    if context.run.replay_of is not None:
        execute = partial(importlib.import_module("manta.worker.replay").repeat, execute)
    execute(context)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Ends this process, with status 75, when the block takes longer. The attempt is then a lost one."""

    def over() -> None:
        print(f"manta: {what} took more than {seconds:.0f} s; the attempt is given up", flush=True)
        os._exit(GIVEN_UP)

    timer = threading.Timer(seconds, over)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Stopped(BaseException):
    """SIGTERM came; not an Exception, so that no user code swallows it by accident."""


class Attempt:
    """The attempt that this process executes: its signs of life, and its being told to stop.

    Attributes:
        stopping: SIGTERM came, from whomever.
        lost: the ledger says that the attempt is over; nothing may be written any more.
    """

    def __init__(self, ledger: Ledger, run: Run) -> None:
        self.run = run
        self.stopping = threading.Event()
        self.lost = threading.Event()
        self._ledger = ledger

    def beat(self) -> None:
        """Give signs of life from now on; end this process when the attempt is over."""
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            try:
                lives = self._ledger.beat(self.run.id, self.run.attempt)
            except Unavailable:
                continue  # it comes back, or the controller gives the attempt up
            if not lives:
                break
        self.lost.set()
        print(
            f"manta: attempt {self.run.attempt} of run {self.run.id} is over by the ledger", file=sys.stderr
        )
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LOST_GRACE_SECONDS)
        os._exit(3)

    def stop(self, _signal: int, _frame: FrameType | None) -> None:
        self.deaf()
        self.stopping.set()
        raise _Stopped

    def deaf(self) -> None:
        """No further SIGTERM is heard: there is an outcome, or it is being stopped already."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def check(self) -> None:
        """Raises:
        _Stopped: user code has swallowed the one that was raised in it.
        """
        if self.stopping.is_set():
            raise _Stopped


def _stopped(ledger: Ledger, attempt: Attempt) -> int:
    attempt.deaf()
    if not attempt.lost.is_set() and ledger.run(attempt.run.id).stop_requested:
        return _ended(ledger, attempt, State.STOPPED, EndReason.STOP_REQUESTED, "")
    # Nobody asked for the run to end: its node goes away, or its resources are taken back. The controller
    # knows which, and whether there is another attempt.
    print(f"manta: run {attempt.run.id} leaves attempt {attempt.run.attempt}", flush=True)
    return 3


def _failed(
    ledger: Ledger,
    attempt: Attempt,
    reason: EndReason,
    message: str,
    metrics: Mapping[str, Any] | None = None,
) -> int:
    run = ledger.run(attempt.run.id)
    if run.attempt == attempt.run.attempt:
        decision = retries.decide(run, ledger.attempts(run.id), reason, now())
        if isinstance(decision, retries.Again):
            return _ended(ledger, attempt, State.QUEUED, reason, message, not_before=decision.at) or 1
    return _ended(ledger, attempt, State.FAILED, reason, message, metrics=metrics) or 1


def _ended(
    ledger: Ledger, attempt: Attempt, state: State, reason: EndReason, message: str, **fields: Any
) -> int:
    # Whoever reads that it has ended finds all of its log.
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        _write_end(ledger, attempt, state, reason, message, **fields)
    except Conflict as conflict:
        # The controller gave this attempt up, or somebody stopped it: its word stands.
        print(f"manta: {conflict}", file=sys.stderr)
        return 3
    print(f"manta: run {attempt.run.id} {state} {message}", flush=True)
    return 0


def _write_end(
    ledger: Ledger, attempt: Attempt, state: State, reason: EndReason, message: str, **fields: Any
) -> None:
    """Raises:
    Conflict: the attempt is over.
    """
    run = attempt.run
    try:
        ledger.move(run, state, end_reason=reason, message=message, **fields)
    except Conflict:
        found = ledger.run(run.id)
        if (found.attempt, found.state) == (run.attempt, State.PREEMPTING):
            ledger.move(found, state, end_reason=reason, message=message, **fields)
        elif (found.attempt, found.state, found.message) != (run.attempt, state, message):
            raise
        # Else it is written: the ledger went away before it could say so.


def adopted(words: list[str]) -> int:
    """Exit status: as of :func:`main`; 1 also when the platform does not take the run, and nothing is run."""
    from manta.worker.adopt import adopt

    try:
        run = adopt(words)
    except MantaError as error:
        print(f"manta: {error.message}\n  {error.hint}", file=sys.stderr)
        return 1
    if run.state.ended:
        # A submission is one run, once and for all: also on another cluster, where Ray takes it again.
        print(f"manta: run {run.id} has ended: {run.state}. To run it again, submit under another name")
        return 0 if run.state is State.SUCCEEDED else 1
    return main(run.id, run.submission)


if __name__ == "__main__":
    if sys.argv[1].isdecimal():
        code = main(int(sys.argv[1]), os.environ.get("MANTA_SUBMISSION", ""))
    else:
        code = adopted(sys.argv[1:])
    output.finish()
    # Engines leave threads behind that can hold up a normal exit for seconds; everything is written by now.
    os._exit(code)
