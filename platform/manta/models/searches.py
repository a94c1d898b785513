"""MLflow: the trials of a search, as runs nested in the run of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from manta.models.registry import KEY_TAG, Registry, _log

PARENT_TAG = "mlflow.parentRunId"
STATUS = {"done": "FINISHED", "ended early": "KILLED", "failed": "FAILED"}


class Trial(Protocol):
    """What is logged of one."""

    @property
    def number(self) -> int: ...
    @property
    def params(self) -> dict[str, Any]: ...
    @property
    def state(self) -> str: ...
    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def message(self) -> str: ...


class Searches(Registry):
    """A registry that knows searches too."""

    def trials(
        self,
        run_key: str,
        job: str,
        tried: Sequence[Trial],
        reports: Sequence[Sequence[Mapping[str, Any]]],
        metric: str,
    ) -> str:
        """Log each trial under the run of the search, which is made if need be; return the id of that.
        Executed again, it writes over what it wrote.

        Args:
            reports: of each trial, what its loop reported. metric: what they were judged by.
        """
        with self._answering() as client:
            parent = self._run(client, run_key, job)
            client.set_tag(parent, "manta.search.metric", metric)
            for trial, reported in zip(tried, reports, strict=True):
                own = self._run(client, f"{run_key}-trial-{trial.number}", f"{job} trial {trial.number}")
                tags = {
                    PARENT_TAG: parent,
                    "manta.trial": str(trial.number),
                    "manta.trial.state": trial.state,
                }
                said = {"manta.trial.message": trial.message} if trial.message else {}
                figures = {f"validation_{name}": value for name, value in trial.metrics.items()}
                _log(client, own, trial.params, figures, reported, tags | said)
                client.set_terminated(own, STATUS[trial.state])
        return parent


__all__ = ["KEY_TAG", "PARENT_TAG", "Searches"]
