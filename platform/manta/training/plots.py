"""The figures kept with each training: ROC, precision and recall, calibration, confusion. Drawn without a
display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from manta.training.evaluate import THRESHOLD, calibration_bins


def draw(
    folder: Path, labels: np.ndarray, probabilities: np.ndarray, baseline: np.ndarray, baseline_name: str
) -> list[Path]:
    """Write ``roc.png``, ``precision_recall.png``, ``calibration.png`` and ``confusion.png`` into ``folder``
    and name them.

    Args:
        baseline: the baseline's score of each row.
    """
    figures = {
        "roc": _roc(labels, {"model": probabilities, baseline_name: baseline}),
        "precision_recall": _precision(labels, {"model": probabilities, baseline_name: baseline}),
        "calibration": _calibration(labels, probabilities),
        "confusion": _confusion(labels, probabilities),
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        written.append(path)
    return written


def _figure() -> tuple[Any, Any]:
    # Without pyplot: no global state, no display, and a second less of importing.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _roc(labels: np.ndarray, curves: dict[str, np.ndarray]) -> Any:
    from sklearn import metrics

    figure, axes = _figure()
    for name, scores in curves.items():
        false, true, _ = metrics.roc_curve(labels, scores)
        axes.plot(false, true, label=f"{name}: {metrics.auc(false, true):.3f}")
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance: 0.500")
    axes.set(xlabel="false positives, share", ylabel="true positives, share", title="ROC, held-out rows")
    axes.legend(loc="lower right")
    return figure


def _precision(labels: np.ndarray, curves: dict[str, np.ndarray]) -> Any:
    from sklearn import metrics

    figure, axes = _figure()
    for name, scores in curves.items():
        precision, recall, _ = metrics.precision_recall_curve(labels, scores)
        area = metrics.average_precision_score(labels, scores)
        axes.plot(recall, precision, label=f"{name}: {area:.3f}", drawstyle="steps-post")
    share = float(np.mean(labels))
    axes.axhline(share, color="grey", linestyle=":", label=f"chance: {share:.3f}")
    axes.set(xlabel="recall", ylabel="precision", ylim=(0, 1.02), title="Precision and recall, held-out rows")
    axes.legend(loc="upper right")
    return figure


def _calibration(labels: np.ndarray, probabilities: np.ndarray) -> Any:
    bins = calibration_bins(labels, probabilities)
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(bins.predicted, bins.observed, marker="o")
    axes.set(xlabel="predicted probability", ylabel="observed share", title="Calibration, held-out rows")
    rows = axes.twinx()
    rows.bar(bins.predicted, bins.count, width=0.03, alpha=0.2)
    rows.set_ylabel("rows")
    return figure


def _confusion(labels: np.ndarray, probabilities: np.ndarray) -> Any:
    answered = probabilities >= THRESHOLD
    counts = np.array(
        [[np.sum((labels == truth) & (answered == said)) for said in (0, 1)] for truth in (0, 1)]
    )
    figure, axes = _figure()
    axes.imshow(counts, cmap="Blues")
    for (truth, said), count in np.ndenumerate(counts):
        dark = count > counts.max() / 2
        axes.text(said, truth, f"{count:,}", ha="center", va="center", color="white" if dark else "black")
    axes.set(
        xticks=(0, 1),
        yticks=(0, 1),
        xlabel=f"answered, at {THRESHOLD:g}",
        ylabel="truth",
        title="Confusion, held-out rows",
    )
    return figure
