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
import traceback
from pathlib import Path
from types import FrameType

from manta.definitions import from_json
from manta.errors import Conflict, GateFailed, MantaError
from manta.ledger.context import RunContext
from manta.ledger.runs import EndReason, Run, State
from manta.ledger.store import Ledger
from manta.secrets import remember
from manta.settings import Settings
from manta.worker import environment, output

# Which module of the data wing does a kind's work, and whether it needs Ray to be connected first.
EXECUTORS = {
    "ingest": ("manta.data.ingest", True),
    "feature-table": ("manta.data.tables", True),
    "feature-repo": ("manta.features.apply", False),
    "materialize": ("manta.features.materialize", False),
    "training": ("manta.training.run", True),
    "job": ("manta.worker.job", False),
}
BEAT_SECONDS = 5.0


def main(run_id: int, submission: str) -> int:
    root = Path.cwd()
    sys.path.insert(0, str(root))
    settings = Settings.load(root)
    ledger = Ledger(settings.ledger_url)
    run = ledger.run(run_id)
    if run.state is not State.STARTING or (submission and run.submission != submission):
        print(f"manta: run {run_id} is {run.state} as {run.submission}; nothing to do for {submission}")
        return 3
    run = ledger.move(run, State.RUNNING)
    remember([run.definition, run.params, settings.model_dump(mode="json")])
    output.guard()  # before there are threads: it forks
    print(f"manta: run {run.id} ({run.kind} {run.job}), attempt {run.attempt}", flush=True)
    ledger.ran_in(run, environment.describe(root))
    _heartbeat(ledger, run)
    context = RunContext(settings, ledger, run, from_json(run.definition), root)
    try:
        _execute(context)
    except MantaError as error:
        hint = f"\n  {error.hint}" if error.hint else ""
        reason = EndReason.GATE_FAILED if isinstance(error, GateFailed) else EndReason.USER_ERROR
        traceback.print_exc()
        return _failed(context, reason, f"{error.message}{hint}")
    except _Stopped:
        return _ended(context, State.STOPPED, EndReason.STOP_REQUESTED, "")
    except Exception as error:
        traceback.print_exc()
        return _failed(context, EndReason.USER_ERROR, f"{type(error).__name__}: {error}")
    return _ended(context, State.SUCCEEDED, EndReason.DONE, "")


def _execute(context: RunContext) -> None:
    module, on_ray = EXECUTORS[context.run.kind]
    if on_ray:
        import ray

        ray.init(log_to_driver=False, logging_level=logging.WARNING)
    # Ray installs its own handlers; ours must come after them.
    signal.signal(signal.SIGTERM, _stop)
    importlib.import_module(module).execute(context)


class _Stopped(BaseException):
    """SIGTERM came; not an Exception, so that no user code swallows it."""


def _stop(_signal: int, _frame: FrameType | None) -> None:
    raise _Stopped


def _heartbeat(ledger: Ledger, run: Run) -> None:
    def beat() -> None:
        while not threading.Event().wait(BEAT_SECONDS):
            ledger.beat(run.id, run.attempt)

    threading.Thread(target=beat, name="heartbeat", daemon=True).start()


def _failed(context: RunContext, reason: EndReason, message: str) -> int:
    _ended(context, State.FAILED, reason, message)
    return 1


def _ended(context: RunContext, state: State, reason: EndReason, message: str) -> int:
    done = state is State.SUCCEEDED
    try:
        context.ledger.move(
            context.ledger.run(context.run.id),
            state,
            end_reason=reason,
            message=message,
            outputs=context.outputs if done else (),
            metrics=context.metrics,
        )
    except Conflict as conflict:
        # The controller gave this attempt up, or somebody stopped it: its word stands.
        print(f"manta: {conflict}", file=sys.stderr)
        return 3
    print(f"manta: run {context.run.id} {state} {message}", flush=True)
    return 0


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
