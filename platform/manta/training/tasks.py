"""What a model's answers are by what it predicts: see :class:`manta.definitions.Training`."""

from __future__ import annotations

import numpy as np

from manta.definitions.metrics import Task

# What differences between answers are told in: see :func:`unit`.
UNIT: dict[Task, str] = {
    "binary": "in probability",
    "multiclass": "in probability",
    "regression": "of the labels' deviation",
}


def answers(task: Task, logits: np.ndarray) -> np.ndarray:
    """What the package makes of logits, float32 [n] or [n, k]: their sigmoid, their softmax, or the numbers
    that they are."""
    wide = logits.astype(np.float64)
    if task == "regression":
        return wide.astype(np.float32)
    if task == "multiclass":
        raised = np.exp(wide - wide.max(axis=1, keepdims=True))
        found: np.ndarray = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
        return found
    with np.errstate(over="ignore"):
        return (1 / (1 + np.exp(-wide))).astype(np.float32)


def answers_shape(rows: int, outputs: int) -> tuple[int, ...]:
    """Of logits and answers: of one output each row has a number, and no list of one."""
    return (rows,) if outputs == 1 else (rows, outputs)


def unit(task: Task, labels: np.ndarray) -> float:
    """What answers are compared in: 1 where they are probabilities. Of a regression the labels' deviation,
    or a tenth of the largest of them where they are far from 0: float32 is no finer."""
    if task != "regression":
        return 1.0
    known = labels.astype(np.float64)
    return float(max(known.std(), np.abs(known).max() / 10)) or 1.0
