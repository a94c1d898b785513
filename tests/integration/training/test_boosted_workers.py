"""Boosted trees on several workers: the trees of one, rows shared and none twice, and kills."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from manta.definitions import LightGBM, XGBoost
from manta.errors import TrainingInvalid, Unavailable
from manta.training.encoder import Arrays
from manta.training.trainers import Job, Model, Part, _group, trainer
from tests.integration.training.conftest import Bench
from tests.integration.training.test_task_trainers import answered, job, killed_among_rounds, training

pytestmark = pytest.mark.ray

WORKERS: dict[str, Any] = {"xgboost": XGBoost, "lightgbm": LightGBM}
# LightGBM's workers estimate how many rows a leaf has: bounds on it are not those of one worker.
EXACT: dict[str, dict[str, Any]] = {
    "xgboost": {},
    "lightgbm": {"min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 4},
}


@pytest.fixture(autouse=True)
def _a_machine_each(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no two places were on one machine."""
    if "one_machine" not in request.keywords:
        monkeypatch.setattr(_group, "together", lambda machines: [[place] for place in range(len(machines))])


def asked(bench: Bench, kind: str, workers: int, run_key: str = "test-1", **params: Any) -> Job:
    found = job(bench, kind, training(kind, trainer=WORKERS[kind](workers=workers)), **params)
    return Job(**{**vars(found), "run_key": run_key})


def apart(one: Model, other: Model, part: Part) -> float:
    """The largest difference in probability."""
    return float(np.abs(one.probabilities(part.arrays) - other.probabilities(part.arrays)).max())


def log_loss(model: Model, part: Part) -> float:
    p = model.probabilities(part.arrays).astype(np.float64)
    return float(-np.mean(part.labels * np.log(p) + (1 - part.labels) * np.log(1 - p)))


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
def test_each_row_is_in_exactly_one_share(workers: int) -> None:
    rows = np.arange(100)
    whole = Part(Arrays(rows.reshape(-1, 1), rows.reshape(-1, 1).astype(np.float32)), rows.astype(np.float32))
    shares = [_group.share(whole, rank, workers) for rank in range(workers)]
    assert sorted(np.concatenate([share.labels for share in shares])) == list(rows)
    for share in shares:
        assert (share.arrays.categories[:, 0] == share.labels).all()
        assert (share.arrays.numbers[:, 0] == share.labels).all()
    assert max(len(share.labels) for share in shares) - min(len(share.labels) for share in shares) <= 1


@pytest.mark.one_machine
def test_places_on_one_machine_belong_together() -> None:
    assert _group.together(["a"]) == [[0]]
    assert _group.together(["b", "a", "b", "c", "a"]) == [[0, 2], [1, 4], [3]]


@pytest.mark.one_machine
@pytest.mark.parametrize("kind", WORKERS)
def test_on_one_machine_two_workers_are_one_with_the_threads_of_both(
    ray_cluster: None, bench: Bench, kind: str
) -> None:
    two = trainer(kind).fit(asked(bench, kind, 2, "two", rounds=30))
    wide = training(kind, trainer=WORKERS[kind](cpus=2))
    alone = Job(**{**vars(job(bench, kind, wide, rounds=30)), "run_key": "alone"})
    one = trainer(kind).fit(alone)
    assert apart(one, two, alone.validation) == 0, "to the last bit"
    assert two.reports == one.reports


@pytest.mark.parametrize("kind", WORKERS)
def test_two_workers_make_what_one_makes(ray_cluster: None, bench: Bench, kind: str) -> None:
    # Few distinct values: whatever the share, each is a bin of its own.
    jobs = [asked(bench, kind, workers, f"test-{workers}", rounds=60, **EXACT[kind]) for workers in (1, 2)]
    for each in jobs:
        for part in (each.train, each.validation):
            np.round(part.arrays.numbers, 1, out=part.arrays.numbers)
        trainer(kind).check(each)
    one, two = (trainer(kind).fit(each) for each in jobs)
    held = jobs[0].validation
    assert apart(one, two, held) < 2e-3
    assert log_loss(two, held) == pytest.approx(log_loss(one, held), abs=1e-4)
    assert np.abs(answered(two, held.arrays) - two.probabilities(held.arrays)).max() < 1e-5
    assert [report["round"] for report in two.reports] == list(range(1, 61)), "each round once"
    last = [model.reports[-1] for model in (one, two)]
    assert last[1]["validation_logloss"] == pytest.approx(last[0]["validation_logloss"], abs=1e-4)


@pytest.mark.parametrize("kind", WORKERS)
@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_so_they_do_for_each_task(ray_cluster: None, bench: Bench, kind: str, task: str) -> None:
    answers = []
    for workers in (1, 2):
        found = asked(bench, kind, workers, f"test-{workers}", rounds=15, **EXACT[kind])
        for part in (found.train, found.validation):
            np.round(part.arrays.numbers, 1, out=part.arrays.numbers)
            part.labels[:] = part.arrays.numbers[:, 0] * 3 + part.arrays.categories[:, 0] % 2
        parts = {"train": found.train, "validation": found.validation}
        if task == "multiclass":
            for name, part in parts.items():
                parts[name] = replace(part, labels=np.digitize(part.labels, [-2, 2]))
        shape = {**found.shape, "outputs": 3 if task == "multiclass" else 1}
        found = replace(found, **parts, shape=shape, training=found.training.replace(task=task))
        answers.append(trainer(kind).fit(found).probabilities(found.validation.arrays))
    assert answers[0].std() > 0.1
    assert np.abs(answers[0] - answers[1]).max() < 2e-3


@pytest.mark.parametrize("kind", WORKERS)
def test_of_many_values_the_bins_are_near_and_so_is_what_is_learnt(
    ray_cluster: None, bench: Bench, kind: str
) -> None:
    jobs = [asked(bench, kind, workers, f"test-{workers}", rounds=40) for workers in (1, 2)]
    one, two = (trainer(kind).fit(each) for each in jobs)
    held = jobs[0].validation
    assert log_loss(two, held) == pytest.approx(log_loss(one, held), rel=0.02)


@pytest.mark.parametrize(("kind", "rank"), [("xgboost", 0), ("xgboost", 1), ("lightgbm", 1)])
def test_a_worker_killed_they_go_on_from_the_checkpoint(
    ray_cluster: None, bench: Bench, kind: str, rank: int
) -> None:
    wanted = asked(bench, kind, 2, rounds=300)
    folder = wanted.folder / wanted.run_key
    with killed_among_rounds(folder, f"train delay {rank}") as killed:
        model = trainer(kind).fit(wanted)
    assert 60 < killed[0] < 300
    assert [report["round"] for report in model.reports] == list(range(1, 301)), "each round once"
    assert not list(folder.glob(".*.part")), "nothing half-written"
    again = trainer(kind).fit(asked(bench, kind, 2, rounds=300))
    assert again.reports == model.reports, "executed again, it is found, not made"
    other = trainer(kind).fit(asked(bench, kind, 2, "test-2", rounds=300))
    assert apart(model, other, wanted.validation) < 1e-4, "going on changes nothing"


@pytest.mark.parametrize("kind", WORKERS)
def test_all_workers_stop_at_the_same_round(ray_cluster: None, bench: Bench, kind: str) -> None:
    wanted = asked(bench, kind, 2, rounds=300, early_stopping_rounds=5)
    model = trainer(kind).fit(wanted)
    assert len(model.reports) < 300
    least = min(report["validation_logloss"] for report in model.reports)
    assert log_loss(model, wanted.validation) == pytest.approx(least, rel=1e-4)


def test_what_cannot_be_trained_by_several(ray_cluster: None, bench: Bench) -> None:
    with pytest.raises(TrainingInvalid, match=r"xgboost failed.*max_depth"):
        trainer("xgboost").fit(asked(bench, "xgboost", 2, max_depth="deep"))
    with pytest.raises(TrainingInvalid, match="99 workers with 1 CPUs each can never run here") as error:
        trainer("xgboost").fit(asked(bench, "xgboost", 99))
    assert error.value.hint
    few = asked(bench, "xgboost", 2)
    one = Part(few.validation.arrays.take(np.arange(1)), few.validation.labels[:1])
    with pytest.raises(TrainingInvalid, match="1 rows cannot be shared by 2 workers"):
        trainer("xgboost").fit(Job(**{**vars(few), "validation": one}))


def test_nobody_works_on_in_the_process_of_one_that_failed(ray_cluster: None, bench: Bench) -> None:
    """It still holds its connections to its peers, and another training would talk to them."""
    with pytest.raises(TrainingInvalid, match="max_depth"):
        trainer("xgboost").fit(asked(bench, "xgboost", 2, max_depth="deep"))
    for attempt in range(4):
        alone = trainer("xgboost").fit(asked(bench, "xgboost", 1, f"alone-{attempt}", rounds=5))
        assert len(alone.reports) == 5


def test_no_room_now_is_said_in_time(
    ray_cluster: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(_group, "START_SECONDS", 1.0)

    @ray.remote(num_cpus=3)
    class Greedy:
        def here(self) -> None: ...

    greedy = Greedy.remote()
    ray.get(greedy.here.remote())
    try:
        with pytest.raises(Unavailable, match="no room for 2 workers with 1 CPUs each"):
            trainer("xgboost").fit(asked(bench, "xgboost", 2))
    finally:
        ray.kill(greedy)
