"""What a model may predict, the metrics that are measured of each, and which way each of them is better."""

from __future__ import annotations

from typing import Literal

Task = Literal["binary", "multiclass", "regression"]

# By what a model predicts; the first is what trainings are ranked by where nothing is said.
METRICS: dict[Task, tuple[str, ...]] = {
    "binary": ("roc_auc", "average_precision", "accuracy", "brier", "ece", "log_loss"),
    "multiclass": ("roc_auc", "accuracy", "macro_f1", "ece", "log_loss"),
    "regression": ("rmse", "mae", "r2"),
}
SMALLER_IS_BETTER = ("brier", "ece", "log_loss", "rmse", "mae")

# Whose figure it is: the baseline's, the champion's on the same rows.
_OF = ("baseline_", "champion_")


def smaller_is_better(metric: str) -> bool:
    """Of a metric, or of a baseline's or a champion's; of a name that is none of them, larger is better."""
    for prefix in _OF:
        metric = metric.removeprefix(prefix)
    return metric in SMALLER_IS_BETTER


def check_metric(metric: str, task: Task) -> None:
    """Raises:
    ValueError: it is not measured of models that predict this.
    """
    if metric not in METRICS[task]:
        raise ValueError(
            f"{metric!r} is not measured of a {task} training: one of {', '.join(METRICS[task])}"
        )
