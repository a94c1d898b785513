"""Whether a replay made the same as the run that it repeats: what its worker found, and how it is told."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from manta.ledger.runs import Run, State

METRIC = "comparison"  # the name under which it is kept with the replay's metrics


class Compared(BaseModel):
    """One output. ``version`` is the first run's, ``repeated`` the replay's, None when it made none.

    ``by`` says what was compared: the ``content`` of datasets, whatever the order of their rows; the
    ``digest`` of models; or, when those differ, their ``metrics``, within a tolerance; the ``version`` of
    anything else. ``detail`` says how they differ, or by how much.
    """

    model_config = ConfigDict(frozen=True)

    output: str
    version: str
    repeated: str | None
    equal: bool
    by: Literal["content", "digest", "metrics", "version"]
    detail: str = ""


class Comparison(BaseModel):
    """``equal`` is None until the replay has succeeded."""

    model_config = ConfigDict(frozen=True)

    run: int
    replay_of: int
    state: State
    equal: bool | None
    outputs: tuple[Compared, ...] = ()
    message: str = ""


def comparison_of(replay: Run) -> Comparison:
    """What is known of it now; ``replay`` has a ``replay_of``."""
    assert replay.replay_of is not None
    outputs = tuple(Compared(**each) for each in replay.metrics.get(METRIC, ()))
    done = replay.state is State.SUCCEEDED
    return Comparison(
        run=replay.id,
        replay_of=replay.replay_of,
        state=replay.state,
        equal=all(each.equal for each in outputs) if done else None,
        outputs=outputs,
        message=replay.message,
    )
