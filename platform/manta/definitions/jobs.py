"""What all jobs share, how a run that does not succeed is treated, and the plainest job: a function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from manta.definitions.base import Definition, Frozen, FunctionPath, Name, Ref


class Retry(Frozen):
    """How many times a run is tried again after an attempt that ended for that reason.

    Attributes:
        lost: its node, process or cluster went away.
        out_of_memory: it was killed for memory.
        preempted: its resources were taken back.
        timed_out: an attempt took longer than the job's ``timeout``.
        user_error: its code raised.
        backoff: seconds before the first retry; doubled for each further one, up to ``backoff_most``. A
            preempted run does not wait.
    """

    lost: int = Field(default=2, ge=0)
    out_of_memory: int = Field(default=1, ge=0)
    preempted: int = Field(default=1000, ge=0)
    timed_out: int = Field(default=0, ge=0)
    user_error: int = Field(default=0, ge=0)
    backoff: float = Field(default=2.0, ge=0)
    backoff_most: float = Field(default=300.0, ge=0)


class Policy(Frozen):
    """How a run is treated, not what it computes: a change of it makes nothing stale.

    Attributes:
        needs: names of jobs of the project that must have succeeded before, beyond those whose outputs it
            reads. What is fresh is not run again.
        retry: which ends of an attempt are tried again, and how often.
        timeout: the most seconds one attempt may take; None for no bound.
        deadline: the most seconds from submission until the run must have ended, its waiting and its
            retries included; None for no bound.
        stop_grace: seconds between being asked to stop (SIGTERM) and being killed.
        priority: of the runs that wait, the higher goes first.
        on_apply: False leaves it to whoever asks: `manta run NAME`. `manta apply` then runs it only when what
            it does run needs it.
    """

    needs: tuple[Name, ...] = ()
    retry: Retry = Retry()
    timeout: float | None = Field(default=None, gt=0)
    deadline: float | None = Field(default=None, gt=0)
    stop_grace: float = Field(default=20.0, gt=0)
    priority: int = 0
    on_apply: bool = True

    @staticmethod
    def of(definition: Mapping[str, Any]) -> Policy:
        """That of a definition's JSON form, whatever its kind."""
        return Policy(**{name: definition[name] for name in Policy.model_fields if name in definition})


class Runnable(Definition, Policy):
    """A definition that ends: what a run executes."""

    def fingerprinted(self) -> dict[str, Any]:
        return {name: value for name, value in self.to_json().items() if name not in Policy.model_fields}


class Job(Runnable):
    """Runs a function of the project: ``fn(context: manta.RunContext)``.

    The context has ``params``, ``dataset`` for the rows of a dataset, ``read`` and ``produced`` for versions,
    ``progress`` and ``measured``; what the function prints is the run's log. It may call ``ray.init()`` and
    use the whole cluster.

    Attributes:
        params: what ``context.params`` holds; ``manta run NAME --param k=v`` overrides.
        inputs_from: names of the datasets it reads; a new version of one makes the last run stale.
    """

    kind: ClassVar[str] = "job"
    fn: FunctionPath
    params: dict[str, Any] = Field(default={})
    inputs_from: tuple[Name, ...] = ()

    def inputs(self) -> tuple[Ref, ...]:
        return tuple(Ref("dataset", name) for name in self.inputs_from)

    def code(self) -> tuple[str, ...]:
        return (self.fn,)
