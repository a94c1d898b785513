"""Why an exception ended a run: told from the classes that the engines really raise."""

from __future__ import annotations

import pytest
import ray.exceptions as ray

from manta.errors import GateFailed, NotFound
from manta.ledger.runs import EndReason
from manta.worker.reasons import end_reason, in_words


def raised(outer: BaseException, inner: BaseException) -> BaseException:
    """``outer``, raised from ``inner``."""
    try:
        raise outer from inner
    except BaseException as error:
        return error


class TrainingFailed(Exception):
    def __init__(self, failures: dict[int, Exception]) -> None:
        super().__init__("some worker failed")
        self.worker_failures = failures


TASK = ray.RayTaskError("f", "traceback", MemoryError("far away"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("x"), EndReason.USER_ERROR),
        (NotFound("x"), EndReason.USER_ERROR),
        (GateFailed("x"), EndReason.GATE_FAILED),
        (raised(GateFailed("x"), MemoryError()), EndReason.GATE_FAILED),
        (MemoryError(), EndReason.OUT_OF_MEMORY),
        (raised(RuntimeError("x"), MemoryError()), EndReason.OUT_OF_MEMORY),
        (ray.OutOfMemoryError("killed by the memory monitor"), EndReason.OUT_OF_MEMORY),
        (TASK, EndReason.OUT_OF_MEMORY),
        (TASK.as_instanceof_cause(), EndReason.OUT_OF_MEMORY),
        (TrainingFailed({0: ValueError(), 1: MemoryError()}), EndReason.OUT_OF_MEMORY),
        (ExceptionGroup("several", [ValueError(), MemoryError()]), EndReason.OUT_OF_MEMORY),
        (ray.WorkerCrashedError(), EndReason.LOST),
        (ray.NodeDiedError("gone"), EndReason.LOST),
        (raised(RuntimeError("x"), ray.RaySystemError("broken pipe")), EndReason.LOST),
        (ray.RayTaskError("f", "traceback", ValueError("mine")), EndReason.USER_ERROR),
        (ray.ActorDiedError(), EndReason.LOST),
        (ray.RaySystemError("worker exit type: NODE_OUT_OF_MEMORY"), EndReason.OUT_OF_MEMORY),
        (ray.ActorDiedError(ray.RayTaskError("f", "traceback", ValueError("mine"))), EndReason.USER_ERROR),
    ],
)
def test_the_reason(error: BaseException, reason: EndReason) -> None:
    assert end_reason(error) == reason


def test_a_chain_that_leads_back_to_itself_ends() -> None:
    one, other = ValueError("a"), ValueError("b")
    one.__context__, other.__context__ = other, one
    assert end_reason(one) is EndReason.USER_ERROR


def test_the_message_has_the_next_step_where_there_is_one() -> None:
    assert in_words(ValueError("x")) == "ValueError: x"
    assert in_words(NotFound("no flights", hint="ingest them")) == "no flights\n  ingest them"
