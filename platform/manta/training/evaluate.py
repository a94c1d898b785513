"""How good a model's probabilities are, on rows it has never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from manta.definitions.metrics import METRICS as METRICS
from manta.definitions.metrics import SMALLER_IS_BETTER as SMALLER_IS_BETTER
from manta.errors import TrainingInvalid
from manta.models.package import Package

ECE_BINS = 15
THRESHOLD = 0.5


def predict(model: Package, rows: pl.DataFrame) -> np.ndarray:
    """The probability of each row, float32 [n]; ``rows`` has the model's features, raw.

    Raises:
        RequestInvalid: a feature is missing, or of another type than the model takes.
    """
    columns = {
        name: rows[name].to_numpy() if kind == "float32" else rows[name].to_list()
        for name, kind in model.inputs.items()
        if name in rows.columns
    }
    return model.predict(columns)


def score(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """All of :data:`METRICS`; accuracy is at a threshold of 0.5.

    Args:
        labels: 0 or 1, both present. probabilities: in [0, 1], same length.

    Raises:
        TrainingInvalid: a probability is NaN.
    """
    from sklearn import metrics

    broken = int(np.isnan(probabilities).sum())
    if broken:
        raise TrainingInvalid(
            f"the model answers NaN for {broken} of {len(probabilities)} held-out rows",
            hint="the training diverged: a lower learning rate, or look at the features' ranges",
        )
    return {
        "roc_auc": float(metrics.roc_auc_score(labels, probabilities)),
        "average_precision": float(metrics.average_precision_score(labels, probabilities)),
        "accuracy": float(np.mean((probabilities >= THRESHOLD) == (labels == 1))),
        "brier": float(np.mean((probabilities.astype(np.float64) - labels) ** 2)),
        "ece": expected_calibration_error(labels, probabilities),
        "log_loss": float(
            metrics.log_loss(labels, np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7))
        ),
    }


@dataclass(frozen=True)
class Bins:
    """Per bin of equal width that holds rows: how many, their mean probability, their share of positives."""

    count: np.ndarray
    predicted: np.ndarray
    observed: np.ndarray


def calibration_bins(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> Bins:
    """Bins [0, 1/b), [1/b, 2/b), …; the last one holds 1 as well. Empty ones are left out."""
    at = np.minimum((probabilities.astype(np.float64) * bins).astype(np.int64), bins - 1)
    count = np.bincount(at, minlength=bins)
    predicted = np.bincount(at, weights=probabilities, minlength=bins)
    observed = np.bincount(at, weights=labels, minlength=bins)
    held = count > 0
    return Bins(count[held], predicted[held] / count[held], observed[held] / count[held])


def expected_calibration_error(labels: np.ndarray, probabilities: np.ndarray, bins: int = ECE_BINS) -> float:
    """The mean distance between predicted and observed, over :func:`calibration_bins`, weighted by rows."""
    found = calibration_bins(labels, probabilities, bins)
    return float(np.sum(found.count * np.abs(found.predicted - found.observed)) / found.count.sum())


def baseline_scores(
    rows: int, train_labels: np.ndarray, train_values: np.ndarray | None, values: np.ndarray | None
) -> np.ndarray:
    """What held-out rows score without a model, float64 [rows]: the baseline feature alone (missing values
    count as the training rows' median), or, where there is none, the training rows' share of positives."""
    if train_values is None or values is None:
        return np.full(rows, float(train_labels.mean()))
    known = train_values[np.isfinite(train_values)]
    middle = float(np.median(known)) if len(known) else 0.0
    return np.where(np.isfinite(values), values, middle).astype(np.float64)


def score_baseline(labels: np.ndarray, scores: np.ndarray, train_labels: np.ndarray) -> dict[str, float]:
    """``baseline_roc_auc`` and ``baseline_average_precision`` of those scores; ``baseline_brier`` of the
    training rows' share of positives, answered for every row."""
    from sklearn import metrics

    return {
        "baseline_roc_auc": float(metrics.roc_auc_score(labels, scores)),
        "baseline_average_precision": float(metrics.average_precision_score(labels, scores)),
        "baseline_brier": float(np.mean((float(train_labels.mean()) - labels) ** 2)),
    }
