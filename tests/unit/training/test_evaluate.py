"""Metrics against oracles: by hand, and scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from manta.errors import TrainingInvalid
from manta.training import evaluate


def test_expected_calibration_error_by_hand() -> None:
    # Two bins. Below 0.5: predicted 0.2 on average, 1 of 2 positive → 0.3 off, 2 rows.
    # Above: predicted 0.9, 2 of 2 positive → 0.1 off, 2 rows.
    labels = np.array([0, 1, 1, 1])
    probabilities = np.array([0.1, 0.3, 0.8, 1.0])
    found = evaluate.expected_calibration_error(labels, probabilities, bins=2)
    assert found == pytest.approx((2 * 0.3 + 2 * 0.1) / 4)


def test_calibration_bins_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(1)
    probabilities = random.random(5_000)
    labels = (random.random(5_000) < probabilities**2).astype(np.float32)
    observed, predicted = calibration_curve(labels, probabilities, n_bins=15, strategy="uniform")
    bins = evaluate.calibration_bins(labels, probabilities)
    assert bins.observed == pytest.approx(observed)
    assert bins.predicted == pytest.approx(predicted)
    weights = np.histogram(probabilities, bins=15, range=(0, 1))[0]
    error = np.average(np.abs(observed - predicted), weights=weights)
    assert evaluate.expected_calibration_error(labels, probabilities) == pytest.approx(error)


def test_certain_answers_fall_into_the_outer_bins() -> None:
    bins = evaluate.calibration_bins(np.array([0.0, 1.0]), np.array([0.0, 1.0], dtype=np.float32))
    assert bins.count.tolist() == [1, 1]
    assert bins.predicted.tolist() == bins.observed.tolist() == [0, 1]
    assert evaluate.calibration_bins(np.array([1.0, 1.0]), np.array([0.99, 1.0])).count.tolist() == [2]


def test_every_metric_is_measured_and_perfect_answers_are() -> None:
    labels = np.array([0, 0, 1, 1], dtype=np.float32)
    found = evaluate.score(labels, labels)
    assert set(found) == set(evaluate.METRICS["binary"])
    assert found["roc_auc"] == found["average_precision"] == found["accuracy"] == 1
    assert found["brier"] == found["ece"] == 0


def test_brier_by_hand() -> None:
    found = evaluate.score(np.array([0, 1], dtype=np.float32), np.array([0.2, 0.6]))
    assert found["brier"] == pytest.approx((0.04 + 0.16) / 2)


def test_nan_is_refused() -> None:
    with pytest.raises(TrainingInvalid, match="NaN for 1 of 2"):
        evaluate.score(np.array([0, 1]), np.array([0.5, np.nan]))


def test_baseline_without_a_feature_is_a_constant() -> None:
    train, labels = np.array([0, 0, 0, 1.0]), np.array([0, 1.0])
    scores = evaluate.baseline_answers(2, train, None, None)
    found = evaluate.score_baseline(labels, scores, train)
    assert found["baseline_roc_auc"] == 0.5
    assert found["baseline_average_precision"] == 0.5
    assert found["baseline_brier"] == pytest.approx((0.25**2 + 0.75**2) / 2)


def test_baseline_of_a_feature_takes_the_training_rows_median_where_it_is_missing() -> None:
    train, labels = np.array([0, 0, 1.0]), np.array([0, 1.0, 1.0])
    scores = evaluate.baseline_answers(3, train, np.array([1.0, 2.0, np.nan]), np.array([0.5, np.nan, 9.0]))
    assert scores.tolist() == [0.5, 1.5, 9.0]
    assert evaluate.score_baseline(labels, scores, train)["baseline_roc_auc"] == 1
