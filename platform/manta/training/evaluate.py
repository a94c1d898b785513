"""How good a model's answers are, on rows it has never seen.

Labels and answers are arrays of one length. Of a binary training, labels are 0 or 1, and answers
probabilities [n]; of a multiclass one, labels are class indices, and answers probabilities [n, k], each row's
sum 1; of a regression both are numbers [n].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from manta.definitions.metrics import METRICS as METRICS
from manta.definitions.metrics import SMALLER_IS_BETTER as SMALLER_IS_BETTER
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.models.encoding import vector_length
from manta.models.package import Package
from manta.training.encoder import vectors_of

ECE_BINS = 15
THRESHOLD = 0.5
LEAST = 1e-7  # a probability, where its logarithm is taken
# What has no value where all labels are the same.
NEEDS_VARIETY = ("roc_auc", "average_precision", "r2")


def predict(model: Package, rows: pl.DataFrame) -> np.ndarray:
    """The answer to each row, float32 [n] or [n, k]; ``rows`` has the model's features, raw.

    Raises:
        RequestInvalid: a feature is missing, or of another type than the model takes.
    """
    columns = {name: _column(rows[name], kind) for name, kind in model.inputs.items() if name in rows.columns}
    return model.predict(columns)


def _column(values: pl.Series, kind: str) -> Any:
    length = vector_length(kind)
    if length is not None:
        return vectors_of(values, length)
    return values.to_numpy() if kind == "float32" else values.to_list()


def score(labels: np.ndarray, answers: np.ndarray, task: Task = "binary") -> dict[str, float]:
    """All of the task's :data:`METRICS`; a binary accuracy is at a threshold of 0.5.

    Raises:
        TrainingInvalid: an answer is NaN or infinite.
    """
    rows = np.isfinite(answers.reshape(len(answers), -1)).all(axis=1)
    broken = int((~rows).sum())
    if broken:
        raise TrainingInvalid(
            f"the model answers NaN for {broken} of {len(answers)} held-out rows",
            hint="the training diverged: a lower learning rate, or look at the features' ranges",
        )
    return {metric: measure(metric, labels, answers) for metric in METRICS[task]}


def measure(metric: str, labels: np.ndarray, answers: np.ndarray) -> float:
    """One of :data:`METRICS`, of whatever task these are of; of several classes ``roc_auc`` is the mean, over
    the classes that there are, of one against the rest, and ``macro_f1`` that over classes that are a label
    or are answered. NaN where there is no value, see :data:`NEEDS_VARIETY`."""
    if metric in METRICS["regression"]:
        return _of_numbers(metric, labels.astype(np.float64), answers.astype(np.float64))
    if answers.ndim == 2:
        return _of_classes(metric, labels, answers)
    return _of_one(metric, labels, answers)


def _of_one(metric: str, labels: np.ndarray, probabilities: np.ndarray) -> float:
    from sklearn import metrics

    if metric == "roc_auc":
        return float(metrics.roc_auc_score(labels, probabilities))
    if metric == "average_precision":
        return float(metrics.average_precision_score(labels, probabilities))
    if metric == "accuracy":
        return float(np.mean((probabilities >= THRESHOLD) == (labels == 1)))
    if metric == "brier":
        return float(np.mean((probabilities.astype(np.float64) - labels) ** 2))
    if metric == "ece":
        return expected_calibration_error(labels, probabilities)
    if metric == "log_loss":
        return float(metrics.log_loss(labels, np.clip(probabilities.astype(np.float64), LEAST, 1 - LEAST)))
    raise ValueError(metric)


def _of_classes(metric: str, labels: np.ndarray, probabilities: np.ndarray) -> float:
    from sklearn import metrics

    answered = probabilities.argmax(axis=1)
    if metric == "accuracy":
        return float(np.mean(answered == labels))
    if metric == "macro_f1":
        return float(metrics.f1_score(labels, answered, average="macro", zero_division=0.0))
    if metric == "log_loss":
        held = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        return float(-np.log(np.clip(held, LEAST, 1)).mean())
    if metric == "ece":
        return expected_calibration_error((answered == labels).astype(float), probabilities.max(axis=1))
    if metric == "roc_auc":
        present = np.unique(labels)
        if len(present) < 2:
            return float("nan")
        found = [metrics.roc_auc_score(labels == each, probabilities[:, each]) for each in present]
        return float(np.mean(found))
    raise ValueError(metric)


def _of_numbers(metric: str, labels: np.ndarray, answers: np.ndarray) -> float:
    wrong = answers - labels
    if metric == "rmse":
        return float(np.sqrt(np.mean(wrong**2)))
    if metric == "mae":
        return float(np.mean(np.abs(wrong)))
    varied = float(np.mean((labels - labels.mean()) ** 2))
    return float(1 - np.mean(wrong**2) / varied) if varied else float("nan")


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


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities are what they say.

    Attributes:
        slope: of the labels' logistic regression on the predictions' log-odds; 1 is right, below the answers
            are too sure. NaN when the labels are told apart without error, or all answers are the same.
        offset: mean prediction less share of positives.
    """

    ece: float
    slope: float
    offset: float


def calibration(labels: np.ndarray, probabilities: np.ndarray) -> Calibration:
    """Args:
    labels: 0 or 1. probabilities: in [0, 1], same length.
    """
    p = np.clip(probabilities.astype(np.float64), LEAST, 1 - LEAST)
    ece = expected_calibration_error(labels, probabilities)
    return Calibration(
        ece, _slope(labels.astype(np.float64), np.log(p / (1 - p))), float(p.mean() - labels.mean())
    )


def _slope(y: np.ndarray, log_odds: np.ndarray, steps: int = 50) -> float:
    """By Newton's method, from where a perfect model would be."""
    terms = np.stack([np.ones_like(log_odds), log_odds], axis=1)
    found = np.array([0.0, 1.0])
    for _ in range(steps):
        told = 1 / (1 + np.exp(-np.clip(terms @ found, -700, 700)))
        curvature = terms.T @ (terms * (told * (1 - told))[:, None])
        if not np.isfinite(curvature).all() or np.linalg.cond(curvature) > 1e12:
            return float("nan")
        step = np.linalg.solve(curvature, terms.T @ (y - told))
        found += step / max(1.0, np.abs(step).max())  # not farther at once: it could overshoot for ever
        if np.abs(step).max() < 1e-10:
            return float(found[1])
    return float("nan")


def baseline_answers(
    rows: int,
    train_labels: np.ndarray,
    train_values: np.ndarray | None,
    values: np.ndarray | None,
    classes: int = 0,
) -> np.ndarray:
    """What held-out rows are answered without a model, float64 [rows]: by the baseline feature alone (missing
    values count as the training rows' median), or, where there is none, by the training labels' mean; of
    several ``classes`` by their shares, [rows, classes]."""
    if classes:
        shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
        return np.tile(shares, (rows, 1))
    if train_values is None or values is None:
        return np.full(rows, float(train_labels.astype(np.float64).mean()))
    known = train_values[np.isfinite(train_values)]
    middle = float(np.median(known)) if len(known) else 0.0
    return np.where(np.isfinite(values), values, middle).astype(np.float64)


def score_baseline(
    labels: np.ndarray, answers: np.ndarray, train_labels: np.ndarray, task: Task = "binary"
) -> dict[str, float]:
    """The task's metrics of those answers, named ``baseline_…``. Of a binary training, where they are a score
    and no probability, ``baseline_roc_auc`` and ``baseline_average_precision`` of it, and ``baseline_brier``
    of the training rows' share of positives, answered for every row."""
    if task != "binary":
        return {f"baseline_{metric}": measure(metric, labels, answers) for metric in METRICS[task]}
    return {
        "baseline_roc_auc": measure("roc_auc", labels, answers),
        "baseline_average_precision": measure("average_precision", labels, answers),
        "baseline_brier": float(np.mean((float(train_labels.mean()) - labels) ** 2)),
    }
