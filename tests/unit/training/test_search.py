"""A search without a cluster: its definition, its records, what is proposed next, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from manta.definitions import (
    ASHA,
    Choice,
    Examples,
    Imported,
    Integers,
    LogUniform,
    Search,
    TimeSplit,
    Training,
    Uniform,
    XGBoost,
    from_json,
)
from manta.errors import DefinitionInvalid
from manta.training import search_plots, search_trials
from manta.training import search_records as records
from manta.training.search_records import Tried, at_once, best, rungs

TRAINING = Training(
    model="delay",
    trainer=XGBoost(),
    examples=Examples(dataset="flights", label="late", time="at"),
    features="weather_v1",
    split=TimeSplit(test_from=datetime(2013, 2, 20)),
    params={"rounds": 20},
    needs=("weather",),
)
SPACE: dict[str, Any] = {
    "learning_rate": LogUniform(1e-3, 1),
    "subsample": Uniform(0.5, 1.0),
    "max_depth": Integers(2, 8),
    "grow_policy": Choice("depthwise", "lossguide"),
}


def search(**fields: Any) -> Search:
    return Search(**{"training": TRAINING, "space": SPACE} | fields)


# --- its definition -------------------------------------------------------------------------------------


def test_it_reads_and_makes_what_its_training_does_and_runs_when_asked() -> None:
    made = search(scheduler=ASHA("validation_logloss", grace=4, most=64))
    assert from_json(made.to_json()) == made
    assert (made.name, made.needs, made.on_apply) == ("delay-search", ("weather",), False)
    assert (made.inputs(), made.outputs()) == (TRAINING.inputs(), TRAINING.outputs())
    later = made.replace(training=TRAINING.replace(priority=5), concurrent=1)
    assert later.fingerprinted() == made.fingerprinted()
    assert made.replace(training=TRAINING.replace(seed=8)).fingerprinted() != made.fingerprinted()


def test_of_a_regression_it_is_judged_by_its_error_unless_told() -> None:
    regression = TRAINING.replace(task="regression")
    assert search(training=regression).metric == "rmse"
    assert search(training=regression, metric="r2").metric == "r2"
    assert search().metric == "roc_auc"
    with pytest.raises(DefinitionInvalid, match="'roc_auc' is not measured of a regression training"):
        search(training=regression, metric="roc_auc")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"space": {}}, "space"),
        (
            {"metric": "validation_loss"},
            "'validation_loss' is not measured of a binary training: one of roc_auc",
        ),
        ({"trials": 0}, "trials"),
        ({"training": TRAINING.replace(trainer=Imported(sha256="0" * 64))}, "has no parameters to search"),
        ({"space": {"a": {"kind": "uniform", "low": 2, "high": 1}}}, "there is nothing to choose"),
        ({"space": {"a": {"kind": "log_uniform", "low": 0, "high": 1}}}, "begins above 0"),
        ({"space": {"a": {"kind": "integers", "low": 0.5, "high": 1}}}, "low"),
        ({"space": {"a": {"kind": "choice", "values": ["x", "x"]}}}, "named twice"),
        ({"space": {"a": {"kind": "choice", "values": []}}}, "values"),
        ({"space": {"a": {"kind": "uniform", "low": 0, "high": float("nan")}}}, "nothing to choose"),
        ({"scheduler": {"kind": "asha", "metric": "l", "grace": 9, "most": 3}}, "more than all 3"),
    ],
)
def test_what_is_no_search_is_refused_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionInvalid) as error:
        search(**fields)
    assert words in error.value.message


# --- its decisions --------------------------------------------------------------------------------------


def tried(number: int, value: float | None, metric: str = "roc_auc", **params: Any) -> Tried:
    if value is None:
        return Tried(number, params, "ended early")
    return Tried(number, params, "done", {metric: value})


def test_the_best_is_the_first_of_the_best_that_came_to_its_end() -> None:
    some = [tried(0, 0.7), tried(1, None), tried(2, 0.8), tried(3, 0.8), tried(4, float("nan"))]
    assert best(some, "roc_auc") == some[2]
    assert best([tried(0, 0.2, "brier"), tried(1, 0.1, "brier")], "brier").number == 1  # type: ignore[union-attr]
    assert best([tried(0, None)], "roc_auc") is None


def test_rungs_are_grace_times_powers_of_the_reduction() -> None:
    assert rungs(ASHA("x", grace=2, reduction=3, most=60)) == [2, 6, 18, 54]
    assert rungs(ASHA("x", grace=5, reduction=2, most=5)) == [5]


@pytest.mark.parametrize(
    ("asked", "workers", "machines", "free", "expected"),
    [
        (4, 1, [8], 8, 4),
        (4, 2, [2], 2, 1),  # two that hold one CPU each would wait for one another
        (4, 2, [4], 4, 2),
        (2, 3, [2, 2], 4, 1),
        (4, 1, [8], 3, 3),  # others hold five
        (4, 1, [8], 0, 1),  # it waits
        (2, 3, [2], 2, 1),  # can never run: the trainer says so
    ],
)
def test_no_more_trials_at_a_time_than_can_have_all_of_their_workers(
    asked: int, workers: int, machines: list[int], free: float, expected: int
) -> None:
    held = [{"CPU": float(each), "memory": 1e9} for each in machines]
    assert at_once(asked, workers, {"CPU": 1.0}, held, {"CPU": free}) == expected


def test_places_are_counted_machine_by_machine() -> None:
    assert at_once(9, 2, {"CPU": 3.0}, [{"CPU": 5.0}] * 3, {"CPU": 15.0}) == 1
    assert at_once(9, 1, {"CPU": 3.0}, [{"CPU": 4.0}, {"CPU": 5.0}], {"CPU": 9.0}) == 2
    assert at_once(9, 1, {"CPU": 1.0, "GPU": 1.0}, [{"CPU": 8.0, "GPU": 2.0}], {"CPU": 8.0, "GPU": 2.0}) == 2


# --- what is proposed -----------------------------------------------------------------------------------


def quality(params: dict[str, Any]) -> float:
    return 1 - abs(params["subsample"] - 0.8) - abs(params["max_depth"] - 4) / 50


class Loop:
    """Tune's part, without Tune: one trial at a time, whose outcome is known at once."""

    def __init__(self, folder: Path, of: Search | None = None) -> None:
        self.folder, self.of = folder, of or search()
        self.ran: list[int] = []

    def go(self, until: int, *, leave: int | None = None) -> list[Tried]:
        """Until so many have ended; the trial of number ``leave`` is begun and not ended."""
        before = records.read(self.folder)
        proposer = search_trials._Proposer(self.of, self.folder, before, lambda one, ended: None)
        for _ in range(until - sum(each.state != "started" for each in before)):
            asked = proposer.suggest("t")
            if asked["number"] == leave:
                break
            self.ran.append(asked["number"])
            self.outcome(asked["number"], asked["params"])
            proposer.on_trial_complete("t", {})
        return records.read(self.folder)

    def outcome(self, number: int, params: dict[str, Any]) -> None:
        if number % 5 == 4:
            return  # ended early
        failed = {"state": "failed", "message": "diverged"}
        done = {"state": "done", "metrics": {"roc_auc": quality(params)}}
        records.put(self.folder / f"{number:04d}" / "outcome.json", failed if number % 7 == 6 else done)


def test_the_same_search_tries_the_same_and_another_seed_something_else(tmp_path: Path) -> None:
    one, same = (Loop(tmp_path / name).go(25) for name in ("one", "same"))
    assert one == same
    assert len({str(each.params) for each in one}) == 25
    other = Loop(tmp_path / "other", search(seed=8)).go(25)
    assert all(a.params != b.params for a, b in zip(one, other, strict=True))
    assert [each.state for each in one[4:7]] == ["ended early", "done", "failed"]


def test_it_learns_what_is_good(tmp_path: Path) -> None:
    found = [quality(each.params) for each in Loop(tmp_path).go(60) if each.state == "done"]
    assert sum(found[-15:]) > sum(found[:15])


@pytest.mark.parametrize("at", [0, 1, 4, 11, 19])
def test_killed_after_any_trial_it_goes_on_as_if_it_had_not_been(tmp_path: Path, at: int) -> None:
    undisturbed = Loop(tmp_path / "undisturbed").go(20)
    loop = Loop(tmp_path / "killed")
    loop.go(20, leave=at)
    assert records.read(loop.folder)[-1].state == "started"
    assert loop.go(20) == undisturbed
    assert loop.ran == list(range(20)), "each was run once"


def test_those_that_ran_at_once_are_begun_again_with_their_own_parameters(tmp_path: Path) -> None:
    loop = Loop(tmp_path)
    first = search_trials._Proposer(loop.of, tmp_path, [], lambda one, ended: None)
    asked = [first.suggest(name) for name in "abc"]
    loop.outcome(1, asked[1]["params"])
    first.on_trial_complete("b", {})
    before = records.read(tmp_path)
    assert [each.state for each in before] == ["started", "done", "started"]
    again = search_trials._Proposer(loop.of, tmp_path, before, lambda one, ended: None)
    assert [again.suggest(name) for name in "xy"] == [asked[0], asked[2]]
    assert again.suggest("z")["number"] == 3
    known = [trial.params for trial in again._study.get_trials()]
    assert known[:3] == [asked[1]["params"], asked[0]["params"], asked[2]["params"]]


def test_a_process_that_died_is_no_trial_that_has_ended(tmp_path: Path) -> None:
    proposer = search_trials._Proposer(search(), tmp_path, [], lambda one, ended: None)
    proposer.suggest("a")
    proposer.on_trial_complete("a", None, error=True)
    assert len(proposer.lost) == 1
    assert records.read(tmp_path)[0].state == "started"


def test_all_that_is_proposed_lies_in_the_space(tmp_path: Path) -> None:
    for each in Loop(tmp_path).go(40):
        assert 1e-3 <= each.params["learning_rate"] <= 1
        assert each.params["max_depth"] in range(2, 9)
        assert each.params["grow_policy"] in ("depthwise", "lossguide")


def test_a_record_that_was_being_written_is_not_there(tmp_path: Path) -> None:
    Loop(tmp_path).go(3)
    (tmp_path / "0003.part").write_text('{"number": 3, "par')
    assert [each.number for each in records.read(tmp_path)] == [0, 1, 2]


def test_a_trial_that_lags_is_ended_also_when_the_others_ran_before_the_kill(tmp_path: Path) -> None:
    asha = ASHA("loss", grace=2, reduction=2, most=8)
    before = [Tried(number, {}, "done") for number in range(4)]
    for number in range(4):
        folder = tmp_path / f"{number:04d}"
        folder.mkdir()
        lines = [f'{{"loss": {1.0 - number / 10 - step / 100}}}\n' for step in range(8)]
        (folder / "reports.jsonl").write_text("".join(lines))
    reported = [{"loss": 0.99}, {"loss": 0.98}]
    (asked,) = search_trials._at_rungs(asha, reported, 0)
    assert asked == {"reports": 2, "loss": 0.98}
    for known, verdict in (((), "CONTINUE"), (before, "STOP")):
        scheduler = search_trials._halving(asha, tmp_path, known)
        newcomer = Newcomer("new")
        scheduler.on_trial_add(None, newcomer)
        assert scheduler.on_trial_result(None, newcomer, asked) == verdict


class Newcomer:
    """All that the scheduler asks of a trial."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


# --- its figures ----------------------------------------------------------------------------------------


def test_figures_and_importance(tmp_path: Path) -> None:
    of = search(trials=30)
    found = Loop(tmp_path / "loop", of).go(30)
    drawn = search_plots.draw(tmp_path / "figures", of, found)
    assert [path.name for path in drawn] == [
        "search_history.png",
        "search_parallel.png",
        "search_importance.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    weights = search_plots.importance(of, [each for each in found if each.state == "done"])
    assert sum(weights.values()) == pytest.approx(1)
    assert max(weights, key=lambda name: weights[name]) == "subsample", "by which the quality varies most"


@pytest.mark.parametrize("values", [[], [0.7], [0.7, 0.7, 0.7]])
def test_what_says_nothing_of_importance_is_drawn_without(tmp_path: Path, values: list[float]) -> None:
    params: Callable[[int], dict[str, Any]] = lambda at: {  # noqa: E731
        "learning_rate": 0.1 * (at + 1),
        "subsample": 0.7,
        "max_depth": 3,
        "grow_policy": "depthwise",
    }
    some = [Tried(at, params(at), "done", {"roc_auc": value}) for at, value in enumerate(values)]
    drawn = search_plots.draw(tmp_path, search(), [*some, Tried(9, params(9), "failed", message="x")])
    assert [path.name for path in drawn] == ["search_history.png", "search_parallel.png"]
