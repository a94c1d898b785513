"""The leaderboard: what is ranked, how, from both kinds of ledger, page by page."""

from __future__ import annotations

import math
from typing import Any

import pytest

from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.definitions.metrics import METRICS, SMALLER_IS_BETTER, smaller_is_better
from manta.errors import InvalidInput, NotFound
from manta.ledger.actor import Actor
from manta.ledger.leaderboard import Standing, after, leaderboard
from manta.ledger.runs import EndReason, Run, State, Version
from manta.ledger.store import Ledger
from manta.settings import Settings

ADA = Actor("user:ada", "http")
REFUSED = {"gate": "roc_auc >= 0.9", "passed": False}
PASSED = {"gate": "ece <= 0.1", "passed": True}


class Trainings:
    """Runs of one model, as their workers leave them."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def start(
        self, model: str = "delay", trainer: str = "torch", search: bool = False, task: str = "", **more: Any
    ) -> Run:
        training = {"kind": "training", "model": model, "features": "v1", "trainer": {"kind": trainer}}
        training |= {"task": task} if task else {}
        definition = {"kind": "search", "training": training} if search else training
        fields: dict[str, Any] = {"project": "p", "job": f"{model}-{trainer}", "kind": definition["kind"]}
        key = f"{len(self.ledger.runs(limit=1000))}"
        run = self.ledger.submit(
            key=key, definition=definition, fingerprint="f", package="z", by=ADA, **(fields | more)
        )
        return self.ledger.move(self.ledger.start(run, f"s-{run.id}"), State.RUNNING)

    def made(self, version: str, roc_auc: float, gates: tuple[Any, ...] = (PASSED,), **how: Any) -> int:
        run = self.start(**how)
        model = str(how.get("model", "delay"))
        made = Version(kind="model", name=model, version=version, detail={"metrics": {"roc_auc": roc_auc}})
        metrics = {"roc_auc": roc_auc, "brier": 1 - roc_auc, "gates": list(gates), "baseline": "wind"}
        self.ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE, outputs=[made], metrics=metrics)
        return run.id

    def failed(self, reason: EndReason, metrics: dict[str, Any] | None = None, **how: Any) -> int:
        run = self.start(**how)
        self.ledger.move(run, State.FAILED, end_reason=reason, message="no", metrics=metrics)
        return run.id

    def ranked(self, metric: str | None = "roc_auc", model: str = "delay", **how: Any) -> list[Standing]:
        ids = self.ledger.versions.trained("p", model)
        return leaderboard(self.ledger.runs(ids=ids, limit=1000), model, {"2": ["champion"]}, metric, **how)


@pytest.fixture
def trainings(ledger: Ledger) -> Trainings:
    return Trainings(ledger)


def test_the_best_is_first_the_refused_are_among_them_and_other_models_are_not(trainings: Trainings) -> None:
    first = trainings.made("1", 0.71)
    second = trainings.made("2", 0.83, trainer="xgboost")
    refused = trainings.failed(
        EndReason.GATE_FAILED, {"roc_auc": 0.77, "gates": [REFUSED, PASSED]}, trainer="lightgbm"
    )
    searched = trainings.made("3", 0.80, search=True, trainer="sklearn", job="delay-search")
    lost = trainings.failed(EndReason.GATE_FAILED, {"roc_auc": 0.6, "gates": [REFUSED]}, search=True)
    trainings.made("1", 0.99, model="other")
    trainings.made("1", 0.98, project="q")
    found = trainings.ranked()
    assert [each.run for each in found] == [second, searched, refused, first, lost]
    assert [each.rank for each in found] == [1, 2, 3, 4, 5]
    assert [each.version for each in found] == ["2", "3", None, "1", None]
    assert [each.aliases for each in found] == [("champion",), (), (), (), ()]
    assert [each.trainer for each in found] == ["xgboost", "sklearn", "lightgbm", "torch", "torch"]
    assert {each.features for each in found} == {"v1"}
    assert (found[2].gates, found[2].gates_passed, found[2].refused_by) == (2, 1, ("roc_auc >= 0.9",))
    assert (found[2].state, found[2].submitted_by) == (State.FAILED, "user:ada")
    assert found[1].kind == "search"
    assert found[0].metrics == {"roc_auc": 0.83, "brier": pytest.approx(0.17)}
    assert [each.run for each in trainings.ranked("brier")] == [second, searched, first, refused, lost]


def test_all_adds_what_was_never_measured_at_the_end(trainings: Trainings) -> None:
    good = trainings.made("1", 0.71)
    broken = trainings.failed(EndReason.USER_ERROR)
    working = trainings.start().id
    replay = trainings.start(replay_of=good)
    trainings.ledger.move(
        replay,
        State.SUCCEEDED,
        end_reason=EndReason.DONE,
        outputs=[Version(kind="model", name="delay", version="replay-4")],
        metrics={"roc_auc": 0.9},
    )
    assert [each.run for each in trainings.ranked()] == [good]
    found = trainings.ranked(everything=True)
    assert [(each.run, each.version) for each in found] == [
        (replay.id, None),
        (good, "1"),
        (broken, None),
        (working, None),
    ]
    assert found[3].seconds is None


def test_what_is_not_a_number_is_no_figure_and_equals_keep_the_order_of_their_runs() -> None:
    def run(number: int, **metrics: Any) -> Run:
        return Run(
            **{"id": number, "project": "p", "job": "t", "kind": "training", "definition": {}},
            **{"fingerprint": "f", "package": "z", "state": "SUCCEEDED", "metrics": metrics},
            created_at="2026-01-01T00:00:00Z",
        )

    runs = [run(3, auc=0.5), run(2, auc=math.nan), run(1, auc=0.5), run(4, auc=True), run(5, auc=7)]
    assert [each.run for each in leaderboard(runs, "m", {}, "auc")] == [5, 1, 3, 2, 4]


def test_a_figure_that_none_has_is_refused_and_names_those_there_are(trainings: Trainings) -> None:
    assert trainings.ranked() == []
    trainings.made("1", 0.71)
    with pytest.raises(InvalidInput, match="no training of delay has a figure 'auc'") as error:
        trainings.ranked("auc")
    assert error.value.hint == "they have: brier, roc_auc"


def test_which_way_is_better() -> None:
    of_all = {name for each in METRICS.values() for name in each}
    assert {name for name in of_all if smaller_is_better(name)} == set(SMALLER_IS_BETTER)
    assert smaller_is_better("baseline_brier")
    assert smaller_is_better("champion_log_loss")
    assert not smaller_is_better("baseline_roc_auc")


def test_pages_follow_one_another_also_when_a_better_one_comes_between(
    trainings: Trainings, settings: Settings
) -> None:
    runs = [trainings.made(str(number), 0.9 - number / 100) for number in range(1, 6)]
    settings = settings.model_copy(update={"ledger_url": trainings.ledger.url})
    platform = Platform(settings, InlineEngine(settings, settings.home / "inline"))
    first = platform.models.leaderboard("p", "delay", "roc_auc", limit=2)
    trainings.made("9", 0.99)
    rest = platform.models.leaderboard("p", "delay", "roc_auc", before=first[-1].run, limit=50)
    assert [each.run for each in [*first, *rest]] == runs
    with pytest.raises(NotFound, match="no run has trained a model 'late'") as error:
        platform.models.leaderboard("p", "late", "roc_auc")
    assert "delay" in error.value.hint
    platform.close()


def test_after_a_run_that_is_not_there_comes_all() -> None:
    assert after([], 3) == []


def test_without_a_figure_named_what_is_predicted_says_which(trainings: Trainings) -> None:
    only = trainings.made("1", 0.71)
    assert [(each.ranked_by, each.run) for each in trainings.ranked(metric=None)] == [("roc_auc", only)]

    def regression(rmse: float) -> int:
        run = trainings.start(model="minutes", task="regression")
        trainings.ledger.move(
            run, State.SUCCEEDED, end_reason=EndReason.DONE, metrics={"rmse": rmse, "r2": 0.5}
        )
        return run.id

    worse, better = regression(9.0), regression(7.0)
    found = trainings.ranked(metric=None, model="minutes")
    assert [(each.ranked_by, each.run) for each in found] == [("rmse", better), ("rmse", worse)]
    assert leaderboard([], "minutes", {}) == []
