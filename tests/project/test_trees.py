"""The trees of jobs/delay_trees.py: the question of the network, and one of them learns from a sample."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from jobs import delay_trees
from jobs.delay import delay
from manta.definitions import Training, from_json
from manta.training import encoder, evaluate
from manta.training.trainers import Part, _task
from manta.training.trainers import sklearn as by_sklearn

TREES = [each for each in vars(delay_trees).values() if isinstance(each, Training) and each is not delay]
SAME = ("model", "examples", "features", "split", "gates", "baseline")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("trees", TREES, ids=lambda trees: trees.name)
def test_they_ask_what_the_network_asks_and_only_run_when_asked(trees: Training) -> None:
    assert {name: getattr(trees, name) for name in SAME} == {name: getattr(delay, name) for name in SAME}
    assert not trees.on_apply
    assert from_json(trees.to_json()) == trees


def test_the_search_tries_what_its_training_takes_and_runs_only_when_asked() -> None:
    search = delay_trees.search
    assert search.training is delay_trees.by_xgboost
    assert not set(search.space) & {"rounds", "early_stopping_rounds"}
    assert not search.on_apply
    assert from_json(search.to_json()) == search


def test_there_is_one_of_each() -> None:
    assert sorted(trees.trainer.kind for trees in TREES) == ["lightgbm", "sklearn", "xgboost"]
    assert len({trees.name for trees in [*TREES, delay]}) == 4


def test_one_learns_from_a_sample(departures: pl.DataFrame, tmp_path: Path) -> None:
    late = departures["late"]
    sample = departures.filter(late.is_not_null()).sample(12_000, seed=1).sort("scheduled_departure")
    features = sample.select(
        "carrier", "origin", hour=pl.col("scheduled_departure").dt.hour().cast(pl.Float32)
    )
    labels = sample["late"].cast(pl.Float32).to_numpy()
    earlier = sample["scheduled_departure"].dt.replace_time_zone(None) < datetime(2013, 10, 1)
    encoding = encoder.fit(features.filter(earlier))
    train, later = (
        Part(encoder.encode(encoding, features.filter(held)), labels[held.to_numpy()])
        for held in (earlier, ~earlier)
    )
    trees = delay_trees.by_sklearn
    work = _task.Work(trees, {"max_iter": 30}, tmp_path, str(ROOT), encoding.shape, train, later)
    content = by_sklearn.train(work)
    model = by_sklearn.SklearnModel(by_sklearn.pickle.loads(content), encoding.shape, [])
    found = evaluate.score(later.labels, model.probabilities(later.arrays).astype(np.float64))
    assert found["roc_auc"] > 0.6
