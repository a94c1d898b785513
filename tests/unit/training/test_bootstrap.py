"""The paired bootstrap: metrics of drawn rows as scikit-learn has them, and a bound that holds as often as
it says."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from manta.definitions.metrics import Task
from manta.training import evaluate, tasks
from manta.training.bootstrap import draws_of, gain, measure
from manta.training.evaluate import METRICS, SMALLER_IS_BETTER, expected_calibration_error, score


def answers(count: int, seed: int, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = (random.random(count) < 0.3).astype(np.float32)
    p = np.clip(0.3 + 0.25 * (labels - 0.3) + random.normal(0, 0.2, count), 0, 1)
    return labels, (np.round(p, 1) if ties else p).astype(np.float32)


def by_scikit_learn(metric: str, y: np.ndarray, p: np.ndarray, times: np.ndarray) -> float:
    """Of the rows as often as they were drawn, written out."""
    rows = np.repeat(np.arange(len(y)), times)
    y, p = y[rows], p[rows].astype(np.float64)
    if metric == "roc_auc":
        return float(metrics.roc_auc_score(y, p))
    if metric == "average_precision":
        return float(metrics.average_precision_score(y, p))
    if metric == "accuracy":
        return float(metrics.accuracy_score(y, p >= 0.5))
    if metric == "brier":
        return float(metrics.brier_score_loss(y, p))
    if metric == "log_loss":
        return float(metrics.log_loss(y, np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)))
    return expected_calibration_error(y, p)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("metric", METRICS["binary"])
def test_a_draw_is_measured_as_its_rows_would_be(metric: str, ties: bool) -> None:
    y, p = answers(400, 3, ties)
    drawn = np.random.default_rng(4).integers(0, 4, (5, 400))
    drawn[0, np.argsort(-p)[:30]] = 0  # the best are not in it
    expected = [by_scikit_learn(metric, y, p, times) for times in drawn]
    assert measure(metric, y, p)(drawn.astype(float)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("metric", METRICS["binary"])
def test_the_gain_is_the_difference_and_its_sign_says_which_is_better(metric: str) -> None:
    y, worse = answers(2_000, 5)
    better = np.clip(worse + 0.1 * (y - 0.3), 0, 1).astype(np.float32)
    for_better, for_worse = (
        gain(metric, y, *pair, 0.95, draws=200) for pair in ((better, worse), (worse, better))
    )
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    difference = score(y, better)[metric] - score(y, worse)[metric]
    assert for_better.value == pytest.approx(sign * difference, abs=1e-9)
    assert for_worse.value == pytest.approx(-for_better.value)
    assert for_better.least < for_better.value
    if metric != "ece":  # `better` is further out, and so need not be calibrated better
        assert for_worse.least < for_worse.value < 0 < for_better.least


def test_the_same_answers_gain_nothing_and_the_same_question_is_answered_the_same() -> None:
    y, p = answers(500, 6)
    assert gain("roc_auc", y, p, p, 0.99) == gain("roc_auc", y, p, p, 0.99)
    assert gain("roc_auc", y, p, p, 0.99).least == 0


def test_surer_is_less() -> None:
    y, p = answers(500, 6)
    q = answers(500, 6)[1] + np.random.default_rng(7).normal(0, 0.1, 500).astype(np.float32)
    bounds = [gain("roc_auc", y, p, q, confidence).least for confidence in (0.6, 0.9, 0.99)]
    assert bounds == sorted(bounds, reverse=True)


@pytest.mark.parametrize("metric", ["roc_auc", "brier"])
def test_the_bound_holds_as_often_as_it_says(metric: str) -> None:
    """Two models whose figures are known from very many rows, compared on few, again and again."""

    def both(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        random = np.random.default_rng(seed)
        signal = random.normal(0, 1, count)
        y = (random.random(count) < 1 / (1 + np.exp(-signal))).astype(np.float32)
        ours = 1 / (1 + np.exp(-signal - random.normal(0, 0.5, count)))
        theirs = 1 / (1 + np.exp(-signal - random.normal(0, 0.7, count)))
        return y, ours, theirs

    y, ours, theirs = both(1_000_000, 0)
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    true = sign * (score(y, ours)[metric] - score(y, theirs)[metric])
    held = [gain(metric, *both(300, seed), 0.9, draws=200, seed=seed).least <= true for seed in range(1, 301)]
    assert 0.84 < np.mean(held) < 0.96  # 0.9, give or take more than three of its own deviations (0.017)


def test_too_few_rows_to_draw_from_give_no_bound() -> None:
    y = np.array([0, 0, 0, 0, 0, 0, 1], dtype=np.float32)
    p = np.linspace(0, 1, 7)
    found = gain("roc_auc", y, p, p, 0.95)  # about a third of the draws miss the one positive
    assert 0.5 < found.draws / 1000 < 0.8
    assert np.isfinite(found.least)
    found = gain("roc_auc", np.zeros(7, dtype=np.float32), p, p, 0.95)
    assert np.isnan(found.least)
    assert found.draws == 0


@pytest.mark.parametrize(("rows", "draws"), [(10, 1000), (200_000, 1000), (400_000, 500), (10**7, 200)])
def test_many_rows_are_drawn_less_often(rows: int, draws: int) -> None:
    assert draws_of(rows) == draws


# --- other tasks ----------------------------------------------------------------------------------------


def of_task(task: Task, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    if task == "regression":
        labels = random.normal(500, 20, count).astype(np.float32)
        return labels, (labels + random.normal(3, 10, count)).astype(np.float32)
    labels = random.choice(4, count, p=[0.4, 0.3, 0.27, 0.03])
    logits = random.normal(0, 1, (count, 4))
    logits[np.arange(count), labels] += 1
    return labels, tasks.answers("multiclass", logits)


OTHERS: list[tuple[Task, str]] = [
    (task, metric) for task in ("multiclass", "regression") for metric in METRICS[task]
]


@pytest.mark.parametrize(("task", "metric"), OTHERS)
def test_a_draw_of_another_task_is_measured_as_its_rows_would_be(task: Task, metric: str) -> None:
    """What `evaluate` says of the rows written out, which its own tests hold to scikit-learn."""
    y, answers = of_task(task, 300, 3)
    drawn = np.random.default_rng(4).integers(0, 4, (6, 300))
    if task == "multiclass":
        drawn[0, y == 3] = 0  # a class is not in it
        drawn[1, y != 2] = 0  # nor any other here
    rows = [np.repeat(np.arange(300), times) for times in drawn]
    expected = [evaluate.measure(metric, y[each], answers[each]) for each in rows]
    found = measure(metric, y, answers)(drawn.astype(float))
    assert found == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.isnan(found[1]) == ((task, metric) == ("multiclass", "roc_auc"))


@pytest.mark.parametrize(("task", "metric"), OTHERS)
def test_the_gain_of_another_task_is_the_difference_in_the_better_direction(task: Task, metric: str) -> None:
    y, worse = of_task(task, 1_000, 5)
    if task == "regression":
        better = (worse + 0.3 * (y - worse)).astype(np.float32)
    else:
        better = (0.8 * worse + 0.2 * np.eye(4)[y]).astype(np.float32)
    found = gain(metric, y, better, worse, 0.95, draws=200)
    sign = -1 if metric in SMALLER_IS_BETTER else 1
    difference = evaluate.measure(metric, y, better) - evaluate.measure(metric, y, worse)
    assert found.value == pytest.approx(sign * difference, abs=1e-9)
    assert found.least < found.value
    if metric != "ece":
        assert found.least > 0
