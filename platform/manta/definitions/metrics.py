"""The names of the metrics that are measured of every model, and which way each of them is better."""

from __future__ import annotations

LARGER_IS_BETTER = ("roc_auc", "average_precision", "accuracy")
SMALLER_IS_BETTER = ("brier", "ece", "log_loss")
METRICS = LARGER_IS_BETTER + SMALLER_IS_BETTER

# Whose figure it is: the baseline's, the champion's on the same rows.
_OF = ("baseline_", "champion_")


def smaller_is_better(metric: str) -> bool:
    """Of a metric, or of a baseline's or a champion's; of a name that is none of them, larger is better."""
    for prefix in _OF:
        metric = metric.removeprefix(prefix)
    return metric in SMALLER_IS_BETTER
