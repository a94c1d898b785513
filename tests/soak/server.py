"""`python -m tests.soak.server`: the manta server, which kills itself where MANTA_SOAK_DIE says.

`POINT:N`: at the Nth time that it comes to that point. The points are the places where a process that dies
leaves the ledger and Ray with different stories:

    recorded   a submission is in the ledger, and its sender has no answer
    needed     a run that another needs is in the ledger, and the other is not
    applied    all runs of an apply are in the ledger, and its sender has no answer
    claimed    the attempt is in the ledger, and Ray has not been asked
    started    Ray has been asked, and nothing has been written since
    stopping   Ray has been asked to stop a run, and nothing has been written since
    looked     Ray has said how its jobs are, and nothing has been written since
    logs       a log has been read from Ray, and not been kept
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import manta.app
from manta.api.__main__ import main
from manta.app import Platform
from manta.control.engine import RayEngine

# With the most N that is worth asking for: some are come to ten times a second, and some once in a while.
POINTS = {
    **{"recorded": 2, "needed": 1, "applied": 1, "claimed": 1},
    **{"started": 1, "stopping": 1, "looked": 8, "logs": 8},
}


class Fuse:
    """Burns down by one each time that its point is passed."""

    def __init__(self, text: str) -> None:
        self.point, _, number = text.partition(":")
        self._left = int(number or 0)

    def at(self, point: str) -> None:
        if point == self.point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def dies_before(fuse: Fuse, point: str, act: Callable[..., Any]) -> Callable[..., Any]:
    def acting(*args: Any, **kwargs: Any) -> Any:
        fuse.at(point)
        return act(*args, **kwargs)

    return acting


def dies_after(fuse: Fuse, point: str, act: Callable[..., Any]) -> Callable[..., Any]:
    def acting(*args: Any, **kwargs: Any) -> Any:
        answer = act(*args, **kwargs)
        fuse.at(point)
        return answer

    return acting


def lay(fuse: Fuse) -> None:
    """Lay the fuse along the calls at whose ends the points are."""

    class MortalEngine(RayEngine):
        pass

    for name, point in (("submit", "started"), ("stop", "stopping"), ("jobs", "looked"), ("logs", "logs")):
        setattr(MortalEngine, name, dies_after(fuse, point, getattr(MortalEngine, name)))
    MortalEngine.submit = dies_before(fuse, "claimed", MortalEngine.submit)  # type: ignore[method-assign]
    manta.app.RayEngine = MortalEngine  # type: ignore[misc]
    for name, point in (("run", "recorded"), ("_submit_step", "needed"), ("apply", "applied")):
        setattr(Platform, name, dies_after(fuse, point, getattr(Platform, name)))


if __name__ == "__main__":
    lay(Fuse(os.environ.get("MANTA_SOAK_DIE", "")))
    main()
