"""Metrics of several classes and of numbers, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics

from manta.errors import TrainingInvalid
from manta.training import evaluate, tasks


def classes(count: int, seed: int, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Labels, the last of them rare, and probabilities that are right more often than not."""
    random = np.random.default_rng(seed)
    labels = random.choice(k, count, p=[*([0.96 / (k - 1)] * (k - 1)), 0.04])
    logits = random.normal(0, 1, (count, k))
    logits[np.arange(count), labels] += 1.2
    return labels, tasks.answers("multiclass", logits)


def test_metrics_of_classes_are_scikit_learns() -> None:
    labels, p = classes(3_000, 1)
    found = evaluate.score(labels, p, "multiclass")
    assert tuple(found) == evaluate.METRICS["multiclass"]
    wide = p.astype(np.float64) / p.astype(np.float64).sum(axis=1, keepdims=True)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, p.argmax(axis=1)))
    assert found["macro_f1"] == pytest.approx(metrics.f1_score(labels, p.argmax(axis=1), average="macro"))
    assert found["log_loss"] == pytest.approx(metrics.log_loss(labels, wide), rel=1e-5)
    expected = metrics.roc_auc_score(labels, wide, multi_class="ovr", average="macro")
    assert found["roc_auc"] == pytest.approx(expected, rel=1e-6)


def test_top_label_calibration_by_hand() -> None:
    # Of 15 bins: two rows of 0.8 in one, one right, 0.3 off; two of 0.55 in another, both right, 0.45 off.
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.55, 0.45, 0.0], [0.25, 0.2, 0.55]])
    found = evaluate.measure("ece", np.array([0, 0, 0, 2]), p)
    assert found == pytest.approx((2 * 0.3 + 2 * 0.45) / 4)


def test_a_class_that_no_row_has_is_left_out_of_the_mean() -> None:
    labels, p = classes(500, 2)
    kept = labels != 3
    present = [metrics.roc_auc_score(labels[kept] == each, p[kept, each]) for each in range(3)]
    assert evaluate.measure("roc_auc", labels[kept], p[kept]) == pytest.approx(np.mean(present))
    one = labels == 2
    assert np.isnan(evaluate.measure("roc_auc", labels[one], p[one]))
    assert np.isfinite(evaluate.measure("accuracy", labels[one], p[one]))
    assert np.isfinite(evaluate.measure("log_loss", np.array([0]), np.array([[0.0, 1.0]])))


def test_metrics_of_numbers_are_scikit_learns() -> None:
    random = np.random.default_rng(3)
    labels = random.normal(1_000, 30, 2_000).astype(np.float32)
    answers = (labels + random.normal(2, 10, 2_000)).astype(np.float32)
    found = evaluate.score(labels, answers, "regression")
    y, told = labels.astype(np.float64), answers.astype(np.float64)
    assert found == {
        "rmse": pytest.approx(metrics.root_mean_squared_error(y, told)),
        "mae": pytest.approx(metrics.mean_absolute_error(y, told)),
        "r2": pytest.approx(metrics.r2_score(y, told)),
    }
    assert np.isnan(evaluate.measure("r2", np.ones(3), np.ones(3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_answers_that_are_no_numbers_are_refused(bad: float) -> None:
    labels, p = classes(10, 4)
    p[3, 2] = bad
    with pytest.raises(TrainingInvalid, match="NaN for 1 of 10"):
        evaluate.score(labels, p, "multiclass")
    with pytest.raises(TrainingInvalid, match="NaN for 1 of 2"):
        evaluate.score(np.array([1.0, 2.0]), np.array([1.0, bad]), "regression")


def test_without_a_model_classes_are_answered_by_their_shares() -> None:
    train, labels = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 1, 2, 0])
    without = evaluate.baseline_answers(4, train, None, None, 3)
    assert without.tolist() == [[pytest.approx(3 / 6), pytest.approx(1 / 6), pytest.approx(2 / 6)]] * 4
    found = evaluate.score_baseline(labels, without, train, "multiclass")
    assert found["baseline_accuracy"] == 0.5
    assert found["baseline_roc_auc"] == 0.5
    assert found["baseline_log_loss"] == pytest.approx(-np.log([3 / 6, 1 / 6, 2 / 6, 3 / 6]).mean())


def test_without_a_model_numbers_are_answered_by_their_mean_or_by_a_feature() -> None:
    train, labels = np.array([1.0, 2.0, 6.0]), np.array([2.0, 4.0])
    mean = evaluate.baseline_answers(2, train, None, None)
    found = evaluate.score_baseline(labels, mean, train, "regression")
    assert found == {
        "baseline_rmse": 1.0,
        "baseline_mae": 1.0,
        "baseline_r2": 0.0,
    }
    assert mean.tolist() == [3.0, 3.0]
    before = evaluate.baseline_answers(2, train, np.array([1.0, 2.0, 6.0]), np.array([2.5, np.nan]))
    assert before.tolist() == [2.5, 2.0], "the training rows' median where it is missing"
    assert evaluate.score_baseline(labels, before, train, "regression")["baseline_mae"] == 1.25


def test_answers_of_logits() -> None:
    assert tasks.answers("regression", np.array([-3.5, 1e6])).tolist() == [-3.5, 1e6]
    p = tasks.answers("multiclass", np.array([[1e4, 0.0, -1e4], [1.0, 1.0, 1.0]]))
    assert p.dtype == np.float32
    assert p.tolist() == [[1, 0, 0], [pytest.approx(1 / 3)] * 3]
    assert tasks.answers("binary", np.array([0.0, -1e4, 1e4])).tolist() == [0.5, 0, 1]


def test_numbers_are_compared_in_what_they_vary_by() -> None:
    assert tasks.unit("binary", np.array([0, 1])) == tasks.unit("multiclass", np.array([0, 9])) == 1
    assert tasks.unit("regression", np.array([0, 200])) == 100
    assert tasks.unit("regression", np.array([10_000, 10_002])) == pytest.approx(1000.2)
    assert tasks.unit("regression", np.zeros(3)) == 1
