"""The gain of one model over another on the same rows, and how sure of it one can be.

Rows are drawn anew, with replacement, as often as there are rows; both models are measured on what was drawn.
A draw is written as how often each row is in it, so that a metric of many draws is arithmetic on a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from manta.definitions.metrics import METRICS, SMALLER_IS_BETTER
from manta.training.evaluate import ECE_BINS, LEAST, THRESHOLD

DRAWS, LEAST_DRAWS = 1000, 200
MOST_DRAWN = 200_000_000  # rows over all draws: with more than 200,000 rows there are fewer draws
BLOCK = 2_000_000  # numbers that are worked on at a time
SEED = 20_131

Measure = Callable[[np.ndarray], np.ndarray]
"""Times that each row was drawn, float64 [draws, n] → the metric of each draw, float64 [draws]."""


@dataclass(frozen=True)
class Gain:
    """Of one model over another: larger is better, whatever the metric.

    Attributes:
        value: on the rows as they are.
        least: with ``confidence``, it is not less; NaN when most draws have labels of one kind only.
        draws: that this was seen in.
    """

    value: float
    least: float
    draws: int


def gain(
    metric: str,
    labels: np.ndarray,
    ours: np.ndarray,
    theirs: np.ndarray,
    confidence: float,
    *,
    draws: int | None = None,
    seed: int = SEED,
) -> Gain:
    """The same arguments give the same answer.

    Args:
        metric: one of `evaluate.METRICS`. labels, ours, theirs: labels, and both models' answers to the
            same rows, as of :mod:`manta.training.evaluate`.
        draws: 1,000 unless given; of more than 200,000 rows fewer, but at least 200.
    """
    count = len(labels)
    draws = draws or draws_of(count)
    sign = -1.0 if metric in SMALLER_IS_BETTER else 1.0
    measures = [measure(metric, labels, answers) for answers in (ours, theirs)]

    def of(drawn: np.ndarray) -> np.ndarray:
        one, other = (each(drawn) for each in measures)
        return sign * (one - other)

    value = float(of(np.ones((1, count)))[0])
    found = np.concatenate([of(block) for block in _drawn(count, draws, seed)])
    known = found[np.isfinite(found)]
    if len(known) < draws / 2:
        return Gain(value, float("nan"), len(known))
    return Gain(value, float(np.quantile(known, 1 - confidence)), len(known))


def draws_of(rows: int) -> int:
    return int(np.clip(MOST_DRAWN // rows, LEAST_DRAWS, DRAWS))


def _drawn(count: int, draws: int, seed: int) -> Iterator[np.ndarray]:
    random = np.random.default_rng(seed)
    size = max(1, BLOCK // count)
    for start in range(0, draws, size):
        several = min(size, draws - start)
        taken = random.integers(0, count, (several, count)) + count * np.arange(several)[:, None]
        yield np.bincount(taken.ravel(), minlength=several * count).reshape(several, count).astype(float)


def measure(metric: str, labels: np.ndarray, answers: np.ndarray) -> Measure:
    """How a metric of many draws is computed; it is NaN of a draw that has no value of it."""
    if metric in METRICS["regression"]:
        return _of_numbers(metric, labels.astype(np.float64), answers.astype(np.float64))
    if answers.ndim == 2:
        return _of_classes(metric, labels, answers.astype(np.float64))
    return _of_one(metric, labels.astype(np.float64), answers.astype(np.float64))


def _of_one(metric: str, y: np.ndarray, p: np.ndarray) -> Measure:
    if metric == "roc_auc":
        return _ranked(y, p, _area)
    if metric == "average_precision":
        return _ranked(y, p, _precision)
    if metric == "ece":
        return _calibration(y, p)
    if metric == "accuracy":
        return _mean((p >= THRESHOLD) == (y == 1))
    if metric == "brier":
        return _mean((p - y) ** 2)
    if metric == "log_loss":
        p = np.clip(p, LEAST, 1 - LEAST)
        return _mean(-np.log(np.where(y == 1, p, 1 - p)))
    raise ValueError(metric)


def _of_classes(metric: str, labels: np.ndarray, p: np.ndarray) -> Measure:
    answered = p.argmax(axis=1)
    right = answered == labels
    if metric == "accuracy":
        return _mean(right)
    if metric == "macro_f1":
        return _f1(labels, answered, p.shape[1])
    if metric == "log_loss":
        return _mean(-np.log(np.clip(p[np.arange(len(labels)), labels], LEAST, 1)))
    if metric == "ece":
        return _calibration(right.astype(np.float64), p.max(axis=1))
    if metric == "roc_auc":
        return _one_against_the_rest(labels, p)
    raise ValueError(metric)


def _of_numbers(metric: str, y: np.ndarray, answers: np.ndarray) -> Measure:
    squares = (answers - y) ** 2
    if metric == "rmse":
        mean = _mean(squares)
        return lambda drawn: np.sqrt(mean(drawn))
    if metric == "mae":
        return _mean(np.abs(answers - y))
    apart = y - y.mean()

    def explained(drawn: np.ndarray) -> np.ndarray:
        varied = drawn @ apart**2 - (drawn @ apart) ** 2 / drawn.sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = np.where(varied > 0, 1 - drawn @ squares / varied, np.nan)
        return found

    return explained


def _f1(labels: np.ndarray, answered: np.ndarray, classes: int) -> Measure:
    """The mean over the classes that are a label or are answered in the draw."""
    from scipy import sparse

    def marked(rows: np.ndarray, of: np.ndarray) -> Any:
        ones = np.ones(len(rows))
        return sparse.csr_matrix((ones, (rows, of[rows])), shape=(len(of), classes))

    every = np.arange(len(labels))
    true, said = marked(every, labels), marked(every, answered)
    hit = marked(np.flatnonzero(labels == answered), labels)

    def measured(drawn: np.ndarray) -> np.ndarray:
        seen = drawn @ true + drawn @ said
        with np.errstate(invalid="ignore", divide="ignore"):
            found: np.ndarray = np.nanmean(2 * (drawn @ hit) / seen, axis=1)
        return found

    return measured


def _one_against_the_rest(labels: np.ndarray, p: np.ndarray) -> Measure:
    """The mean over the classes that are in the draw, where there are at least two."""

    def measured(drawn: np.ndarray) -> np.ndarray:
        total, count = np.zeros(len(drawn)), np.zeros(len(drawn))
        for each in np.unique(labels):
            # Ranked anew in each block: the ranks of all classes at once could be more than fits in memory.
            area = _ranked((labels == each).astype(np.float64), p[:, each], _area)(drawn)
            known = np.isfinite(area)
            total[known] += area[known]
            count += known
        with np.errstate(invalid="ignore", divide="ignore"):
            return total / count

    return measured


def _mean(of_rows: np.ndarray) -> Measure:
    return lambda drawn: drawn @ of_rows.astype(np.float64) / drawn.sum(axis=1)


def _calibration(y: np.ndarray, p: np.ndarray) -> Measure:
    at = np.minimum((p * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    apart = np.zeros((len(y), ECE_BINS))
    apart[np.arange(len(y)), at] = p - y
    return lambda drawn: np.abs(drawn @ apart).sum(axis=1) / drawn.sum(axis=1)


def _ranked(y: np.ndarray, p: np.ndarray, of: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Measure:
    """By how many positives and how many rows in all score at least as much as each value that there is."""
    order = np.argsort(-p, kind="stable")
    last = np.flatnonzero(np.append(np.diff(p[order]) != 0, True))  # of the rows that score the same
    positive = y[order]

    def measured(drawn: np.ndarray) -> np.ndarray:
        ordered = drawn[:, order]
        every = np.cumsum(ordered, axis=1)[:, last]
        ordered *= positive
        hit = np.cumsum(ordered, axis=1)[:, last]
        with np.errstate(invalid="ignore", divide="ignore"):
            return of(hit, every)

    return measured


def _area(hit: np.ndarray, every: np.ndarray) -> np.ndarray:
    missed = every - hit
    before = np.concatenate([np.zeros((len(hit), 1)), hit[:, :-1]], axis=1)
    width = np.diff(missed, axis=1, prepend=0)
    area = (width * (hit + before) / 2).sum(axis=1)
    answered: np.ndarray = area / (hit[:, -1] * missed[:, -1])
    return answered


def _precision(hit: np.ndarray, every: np.ndarray) -> np.ndarray:
    # A draw without the first rows has not seen anything up to there: 0 of 0 is not counted.
    share = np.divide(hit, every, out=np.zeros_like(hit), where=every > 0)
    gained = np.diff(hit, axis=1, prepend=0)
    answered: np.ndarray = (gained * share).sum(axis=1) / hit[:, -1]
    return answered
