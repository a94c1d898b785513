"""Replays: which runs may be repeated, and why others may not. Pure."""

from __future__ import annotations

from manta.errors import InvalidInput
from manta.ledger.runs import Run, State

# What a run of these changes is what endpoints and trainings read, whatever its run is called.
NEVER = {
    "materialize": "it would put the values of then into the online store",
    "stream-features": "what it read is read, and it would put it online again",
    "feature-repo": "it would register the features of then",
}


def check(run: Run) -> None:
    """Raises:
    InvalidInput: the run did not succeed, is itself a replay, or would change what is served.
    """
    if run.kind in NEVER:
        raise InvalidInput(
            f"run {run.id} ({run.kind} {run.job}) cannot be repeated: {NEVER[run.kind]}",
            hint="a replay must change nothing; ingests, feature tables, trainings and jobs can be repeated",
        )
    if run.replay_of is not None:
        raise InvalidInput(
            f"run {run.id} is itself a replay, of run {run.replay_of}",
            hint=f"manta replay {run.replay_of}",
        )
    if run.state is not State.SUCCEEDED:
        raise InvalidInput(
            f"run {run.id} is {run.state}: there is nothing to compare a replay with",
            hint="only a run that has succeeded can be repeated",
        )
