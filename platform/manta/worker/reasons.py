"""Why an exception ended a run. By the names of classes, for none of the engines is to be loaded for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from manta.errors import GateFailed, MantaError, SkewFound
from manta.ledger.runs import EndReason

# Ray's and torch's classes have this name; numpy's is a MemoryError.
OUT_OF_MEMORY = {"MemoryError", "OutOfMemoryError"}
LOST = {
    *("NodeDiedError", "LocalRayletDiedError", "WorkerCrashedError", "ActorDiedError"),
    *("ActorUnavailableError", "ObjectLostError", "OwnerDiedError", "RaySystemError", "RpcError"),
}
FOR_MEMORY = "NODE_OUT_OF_MEMORY"  # Ray's words when its memory monitor killed an actor
BY_THE_USER = "creation task"  # Ray's words when an actor died of its own __init__


def end_reason(error: BaseException) -> EndReason:
    """OUT_OF_MEMORY or LOST when anything in the chain of exceptions says so; GATE_FAILED; USER_ERROR."""
    if isinstance(error, GateFailed | SkewFound):
        return EndReason.GATE_FAILED
    chain = list(_chain(error))
    if any(_names(each) & OUT_OF_MEMORY for each in chain):
        return EndReason.OUT_OF_MEMORY
    lost = [each for each in chain if _names(each) & LOST and BY_THE_USER not in str(each)]
    if any(FOR_MEMORY in str(each) for each in lost):
        return EndReason.OUT_OF_MEMORY
    if lost:
        return EndReason.LOST
    return EndReason.USER_ERROR


def in_words(error: BaseException) -> str:
    """What the run's message says of it: one line, and the next step where the error knows one."""
    if isinstance(error, MantaError):
        return f"{error.message}\n  {error.hint}" if error.hint else error.message
    return f"{type(error).__name__}: {error}"


def _names(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _chain(error: BaseException) -> Iterator[BaseException]:
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        here = todo.pop()
        if not isinstance(here, BaseException) or id(here) in seen:
            continue
        seen.add(id(here))
        yield here
        # What a remote task raised is Ray's `cause`; what workers of a training did, its `worker_failures`.
        todo += [here.__cause__, here.__context__, getattr(here, "cause", None)]
        failures = getattr(here, "worker_failures", None)
        todo += failures.values() if isinstance(failures, Mapping) else []
        todo += here.exceptions if isinstance(here, BaseExceptionGroup) else []
