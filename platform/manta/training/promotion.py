"""From a trained model to the champion: gates, registration, and the move of the alias."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from manta.definitions import Ref, Training
from manta.errors import Conflict, GateFailed, ModelUnavailable, NotFound, RequestInvalid
from manta.ledger.actor import of_run
from manta.ledger.context import RunContext
from manta.ledger.parity import ParityReport
from manta.models import package
from manta.models.registry import Registry
from manta.training import gates
from manta.training.evaluate import predict, score
from manta.training.evidence import Evidence
from manta.training.slices import Held

ALIAS = "champion"
TRIES = 3
TAG_LIMIT = 8000  # characters that MLflow keeps of a tag

Report = Callable[[Sequence[gates.Result], gates.Champion | None], None]
"""Is told what the gates said, and the champion that the model was held against; before anything follows
from it, and again when the champion moved meanwhile."""


@dataclass(frozen=True)
class Candidate:
    """A trained model, recorded in MLflow as ``run``.

    Attributes:
        metrics: on the held-out rows.
        manifest: of the feature service that it was trained with.
    """

    run: str
    metrics: dict[str, float]
    location: Path
    digest: str
    manifest: str

    def detail(self, package: str) -> dict[str, Any]:
        """What the ledger keeps of it as a model version. The replicas run the on-demand functions of the
        code that it was trained with, which is the project's ``package``."""
        return {
            "location": str(self.location),
            "digest": self.digest,
            "manifest": self.manifest,
            "package": package,
            "metrics": self.metrics,
            "mlflow_run": self.run,
        }


def promote(
    context: RunContext,
    registry: Registry,
    candidate: Candidate,
    held: Held,
    parity: ParityReport | None = None,
    evidence: Evidence | None = None,
    report: Report = lambda results, champion: None,
) -> str:
    """Hold the candidate against the gates and the champion of now; register it and point the alias at it.
    If somebody else moves the champion meanwhile, do so again with that one.

    Args:
        held: the held-out rows.
        parity: what checking the features online found, where a gate asks for it.
        evidence: what else was measured for the gates.

    Returns:
        the version it is registered as.

    Raises:
        GateFailed: it is not registered, and the champion stays.
        Conflict: others kept moving the champion; it is not registered.
    """
    training: Training = context.definition
    for _ in range(TRIES):
        champion = _champion(context, registry, candidate, held, evidence)
        results = gates.judge(training.gates, candidate.metrics, champion, parity, evidence)
        report(results, champion)
        table = _conclude(context, registry, candidate, champion, parity, results)
        version = registry.register(
            training.model,
            candidate.run,
            {
                "manta.run": str(context.run.id),
                "manta.digest": candidate.digest,
                "manta.location": str(candidate.location),
            },
        )
        try:
            context.ledger.aliases.promote(
                context.run.project,
                training.model,
                ALIAS,
                version,
                expect=champion.version if champion else None,
                run_id=context.run.id,
                gates=table,
                by=of_run(context.run.id),
                why="it passed its gates" if table else "it has no gates",
                detail=candidate.detail(context.run.package),
            )
        except Conflict:
            continue
        _mirror(context, registry)
        return version
    registry.withdraw(training.model, candidate.run)
    raise Conflict(
        f"{ALIAS} of {training.model} was moved by others {TRIES} times during this promotion",
        hint="run the training again when they are done",
    )


def _mirror(context: RunContext, registry: Registry) -> None:
    """Show in MLflow where the alias points. It is looked up again after: what was written late, by whomever,
    is then not the last word (see `manta.control.mirror`, which does the same)."""
    model, shown = context.definition.model, None
    while (held := context.ledger.aliases.get(context.run.project, model, ALIAS)) not in (None, shown):
        assert held is not None
        registry.mirror(model, ALIAS, held)
        shown = held


def _conclude(
    context: RunContext,
    registry: Registry,
    candidate: Candidate,
    champion: gates.Champion | None,
    parity: ParityReport | None,
    results: Sequence[gates.Result],
) -> list[dict[str, Any]]:
    """What each gate said, recorded with the run and in MLflow.

    Raises:
        GateFailed: one of them did not let pass.
    """
    training: Training = context.definition
    table = [result.to_json() for result in results]
    passed = all(result.passed for result in results)
    compared = {f"champion_{name}": value for name, value in ((champion and champion.metrics) or {}).items()}
    holder = champion.version if champion else None
    context.measured(gates=table, champion=holder, **compared)
    registry.conclude(
        candidate.run,
        {
            "manta.gates": "passed" if passed else "failed",
            "manta.gates.detail": _shortened(table),
            "manta.champion": holder or "none",
        },
        compared,
    )
    if passed:
        return table
    # An attempt before this one may have got as far as registering, against a champion that is no more.
    registry.withdraw(training.model, candidate.run)
    raise GateFailed(
        f"{training.model} was refused promotion: "
        + "; ".join(str(result) for result in results if not result.passed),
        hint="; ".join(
            [
                f"{ALIAS} stays {f'version {holder}' if holder else 'unset'}",
                f"MLflow keeps the training as run {candidate.run}, with report.html",
                *([parity.hint()] if parity and not parity.clean else []),
            ]
        ),
        gates=table,
    )


def _shortened(table: list[dict[str, Any]]) -> str:
    """As a tag: without what the gates looked at one by one, which is in the report."""
    kept = [{name: value for name, value in each.items() if name != "pieces"} for each in table]
    return json.dumps(kept)[:TAG_LIMIT]


def _champion(
    context: RunContext,
    registry: Registry,
    candidate: Candidate,
    held: Held,
    evidence: Evidence | None,
) -> gates.Champion | None:
    """The version that holds the alias, scored on the same held-out rows."""
    model = context.definition.model
    version = context.ledger.aliases.get(context.run.project, model, ALIAS)
    if version is None:
        return None
    if version == registry.registered(model, candidate.run):
        # Promoted by an attempt that was killed after it.
        return gates.Champion(version, candidate.metrics, "", evidence.answers if evidence else None)
    try:
        detail = context.ledger.versions.get(context.run.project, Ref("model", model), version).detail
        champion = package.load(detail["location"], detail["digest"], threads=2)
        if why := incomparable(champion, held):
            return gates.Champion(version, None, why)
        answers = among(champion.classes, held.classes, predict(champion, held.features))
        return gates.Champion(version, score(held.labels, answers, held.task), "", answers)
    except (NotFound, ModelUnavailable, RequestInvalid) as error:
        return gates.Champion(version, None, error.message)


def incomparable(champion: package.Package, held: Held) -> str:
    """Why it cannot be scored on these rows; empty when it can."""
    gone = [name for name in champion.inputs if name not in held.features.columns]
    if gone:
        return f"it takes {', '.join(gone)}, which the training set does not have"
    if champion.task != held.task:
        return f"it is a {champion.task} model, and this one a {held.task} model"
    lost = [each for each in champion.classes if each not in held.classes]
    return f"it answers {', '.join(lost)}, which is no label any more" if lost else ""


def among(known: Sequence[str], classes: Sequence[str], answers: np.ndarray) -> np.ndarray:
    """Answers for the classes ``known``, as answers for all ``classes``: what is not known has a probability
    of 0."""
    if tuple(known) == tuple(classes):
        return answers
    found = np.zeros((len(answers), len(classes)), dtype=answers.dtype)
    found[:, [classes.index(each) for each in known]] = answers
    return found
