"""The leaderboard of a model: every training of it that was measured, the best first. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from manta.definitions.metrics import METRICS, smaller_is_better
from manta.errors import InvalidInput
from manta.ledger.runs import EndReason, Run, State, Version


class Standing(BaseModel):
    """One run that trained the model.

    Attributes:
        rank: from 1, by the figure ``ranked_by``; those without it come last.
        version: what it is registered as; None when it was refused, failed, or has not ended.
        aliases: that point at the version now.
        trainer: ``torch``, ``xgboost`` …
        features: the feature service.
        metrics: on the held-out rows, and what else is a figure.
        gates: how many were asked, of which ``gates_passed`` let pass; ``refused_by`` names the others.
        at: when it ended, or was submitted.
        seconds: its last attempt took; None while it has not ended.
    """

    model_config = ConfigDict(frozen=True)

    rank: int
    ranked_by: str
    run: int
    job: str
    kind: str
    state: State
    end_reason: EndReason | None
    version: str | None
    aliases: tuple[str, ...]
    trainer: str
    features: str
    metrics: dict[str, float]
    gates: int
    gates_passed: int
    refused_by: tuple[str, ...]
    submitted_by: str
    at: datetime
    seconds: float | None


def leaderboard(
    runs: Iterable[Run],
    model: str,
    aliases: Mapping[str, Iterable[str]],
    metric: str | None = None,
    everything: bool = False,
) -> list[Standing]:
    """Rank the runs that trained ``model``.

    Args:
        runs: of whatever state.
        aliases: version → those that point at it.
        metric: ``roc_auc`` …; which way it is better is known of those that manta measures. None: the first
            of what the newest of the runs predicts, ``roc_auc``, or ``rmse`` of a regression.
        everything: also replays, and what has not ended, failed before it was measured, or was stopped.

    Raises:
        InvalidInput: none of them has a figure of that name, and one has others.
    """
    found = [(run, _version(run, model)) for run in runs]
    if not everything:
        found = [(run, version) for run, version in found if _counts(run)]
    metric = metric or _usual([run for run, _ in found])
    figures = {run.id: _figures(run, version) for run, version in found}
    known = {name for each in figures.values() for name in each}
    if known and metric not in known:
        raise InvalidInput(
            f"no training of {model} has a figure {metric!r}", hint=f"they have: {', '.join(sorted(known))}"
        )
    sign = 1 if smaller_is_better(metric) else -1

    def place(one: tuple[Run, Version | None]) -> tuple[bool, float, int]:
        value = figures[one[0].id].get(metric)
        return (value is None, 0.0 if value is None else sign * value, one[0].id)

    return [
        _standing(rank, metric, run, version, aliases, figures[run.id])
        for rank, (run, version) in enumerate(sorted(found, key=place), start=1)
    ]


def after(standings: list[Standing], run: int | None) -> list[Standing]:
    """What follows that run's place; all of it when it has none."""
    at = next((number for number, each in enumerate(standings) if each.run == run), -1)
    return standings[at + 1 :]


def _counts(run: Run) -> bool:
    measured = run.state is State.SUCCEEDED or run.end_reason is EndReason.GATE_FAILED
    return measured and run.replay_of is None


def _version(run: Run, model: str) -> Version | None:
    return next((each for each in run.outputs if (each.kind, each.name) == ("model", model)), None)


def _figures(run: Run, version: Version | None) -> dict[str, float]:
    """Numbers that can be ranked; a measurement that is not a number is none."""
    told: dict[str, Any] = {**(version.detail.get("metrics", {}) if version else {}), **run.metrics}
    return {
        name: float(value)
        for name, value in told.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value
    }


def _usual(runs: list[Run]) -> str:
    newest = max(runs, key=lambda run: run.id, default=None)
    definition = newest.definition if newest else {}
    return METRICS[definition.get("training", definition).get("task", "binary")][0]


def _standing(
    rank: int,
    metric: str,
    run: Run,
    version: Version | None,
    aliases: Mapping[str, Iterable[str]],
    figures: dict[str, float],
) -> Standing:
    # A search holds the training that its winner is trained by.
    training = run.definition.get("training", run.definition)
    gates = run.metrics.get("gates") or ()
    held = tuple(sorted(aliases.get(version.version, ()))) if version else ()
    # A replay makes nothing that is registered, whatever it calls it; a run that was killed after it had
    # moved the alias does.
    made = run.replay_of is None and (run.state is State.SUCCEEDED or bool(held))
    return Standing(
        rank=rank,
        ranked_by=metric,
        run=run.id,
        job=run.job,
        kind=run.kind,
        state=run.state,
        end_reason=run.end_reason,
        version=version.version if version and made else None,
        aliases=held if made else (),
        trainer=training.get("trainer", {}).get("kind", ""),
        features=training.get("features", ""),
        metrics=figures,
        gates=len(gates),
        gates_passed=sum(bool(gate["passed"]) for gate in gates),
        refused_by=tuple(gate["gate"] for gate in gates if not gate["passed"]),
        submitted_by=run.submitted_by,
        at=run.ended_at or run.created_at,
        seconds=run.seconds,
    )
