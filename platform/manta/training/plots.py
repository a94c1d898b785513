"""The figures kept with each training, by what it predicts. Drawn without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from manta.definitions.metrics import Task
from manta.training.evaluate import THRESHOLD, calibration_bins
from manta.training.slices import Held

FIGURES: dict[Task, tuple[str, ...]] = {
    "binary": ("roc", "precision_recall", "calibration", "confusion"),
    "multiclass": ("confusion", "by_class", "calibration"),
    "regression": ("predicted", "residuals", "residual_sizes"),
}
NAMED_CLASSES = 40  # as many have their names at the axes
COUNTED_CLASSES = 15  # as many have their counts in the squares
LONGEST_NAME = 16
MOST_POINTS = 5_000  # are drawn one by one
SEED = 3


def draw(
    folder: Path, held: Held, answers: np.ndarray, baseline: np.ndarray, baseline_name: str
) -> list[Path]:
    """Write the task's :data:`FIGURES`, each as ``<name>.png``, into ``folder`` and name them.

    Args:
        held: the held-out rows. answers: the model's to them. baseline: what they are answered without it.
    """
    if held.task == "multiclass":
        figures = _several(held, answers)
    elif held.task == "regression":
        figures = _numbers(held, answers, baseline, baseline_name)
    else:
        figures = _one(held, answers, baseline, baseline_name)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        path = folder / f"{name}.png"
        figure.savefig(path, dpi=100)
        written.append(path)
    return written


def _one(held: Held, probabilities: np.ndarray, baseline: np.ndarray, name: str) -> dict[str, Any]:
    labels, curves = held.labels, {"model": probabilities, name: baseline}
    answered = (probabilities >= THRESHOLD).astype(np.int64)
    return {
        "roc": _roc(labels, curves),
        "precision_recall": _precision(labels, curves),
        "calibration": _calibration(labels, probabilities, "predicted probability", "observed share"),
        "confusion": _confusion(labels.astype(np.int64), answered, ("0", "1"), f"answered, at {THRESHOLD:g}"),
    }


def _several(held: Held, probabilities: np.ndarray) -> dict[str, Any]:
    answered = probabilities.argmax(axis=1)
    right = (answered == held.labels).astype(float)
    sure = probabilities.max(axis=1)
    return {
        "confusion": _confusion(held.labels, answered, held.classes, "answered"),
        "by_class": _by_class(held.labels, answered, held.classes),
        "calibration": _calibration(
            right, sure, "probability of the answered class", "share of right answers"
        ),
    }


def _numbers(held: Held, answers: np.ndarray, baseline: np.ndarray, name: str) -> dict[str, Any]:
    labels = held.labels.astype(np.float64)
    wrong = answers.astype(np.float64) - labels
    return {
        "predicted": _predicted(labels, answers.astype(np.float64)),
        "residuals": _residuals(answers.astype(np.float64), wrong),
        "residual_sizes": _sizes({"model": np.abs(wrong), name: np.abs(baseline - labels)}),
    }


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


def _calibration(labels: np.ndarray, probabilities: np.ndarray, x: str, y: str) -> Any:
    bins = calibration_bins(labels, probabilities)
    figure, axes = _figure()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.plot(bins.predicted, bins.observed, marker="o")
    axes.set(xlabel=x, ylabel=y, title="Calibration, held-out rows")
    rows = axes.twinx()
    rows.bar(bins.predicted, bins.count, width=0.03, alpha=0.2)
    rows.set_ylabel("rows")
    return figure


def _confusion(labels: np.ndarray, answered: np.ndarray, classes: tuple[str, ...], said: str) -> Any:
    """How often each class was answered where each was the truth. Dark is the share of the truth's rows where
    there are several classes: a rare one is to be seen too."""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (labels, answered), 1)
    shade = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1) if len(classes) > 2 else counts
    figure, axes = _figure()
    axes.imshow(shade, cmap="Blues", vmin=0)
    if len(classes) <= COUNTED_CLASSES:
        for (truth, at), count in np.ndenumerate(counts):
            colour = "white" if shade[truth, at] > shade.max() / 2 else "black"
            size = 10 if len(classes) <= 5 else 7
            axes.text(at, truth, f"{count:,}", ha="center", va="center", color=colour, fontsize=size)
    axes.set(xlabel=said, ylabel="truth", title="Confusion, held-out rows")
    _name(axes.set_xticks, classes, rotation=0 if len(classes) <= 2 else 90)
    _name(axes.set_yticks, classes)
    return figure


def _name(ticks: Any, classes: tuple[str, ...], **how: Any) -> None:
    if len(classes) > NAMED_CLASSES:
        ticks([])
        return
    ticks(
        range(len(classes)),
        [_short(each) for each in classes],
        fontsize=10 if len(classes) <= 12 else 7,
        **how,
    )


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _by_class(labels: np.ndarray, answered: np.ndarray, classes: tuple[str, ...]) -> Any:
    """Precision and recall of each class that is a label, the most frequent first."""
    frequency = np.bincount(labels, minlength=len(classes))
    shown = np.argsort(-frequency, kind="stable")[: min(NAMED_CLASSES, int((frequency > 0).sum()))]
    hits = np.bincount(labels[labels == answered], minlength=len(classes))
    said = np.bincount(answered, minlength=len(classes))
    figure, axes = _figure()
    places = np.arange(len(shown))
    for offset, name, of in ((-0.2, "precision", said), (0.2, "recall", frequency)):
        axes.barh(places + offset, hits[shown] / np.maximum(of[shown], 1), height=0.38, label=name)
    axes.set_yticks(
        places,
        [f"{_short(classes[each])} ({frequency[each]:,})" for each in shown],
        fontsize=9 if len(shown) <= 15 else 6,
    )
    axes.invert_yaxis()
    left = int((frequency > 0).sum()) - len(shown)
    more = f", {left:,} rarer ones left out" if left else ""
    axes.set(xlim=(0, 1), xlabel="share", ylabel="class (rows)", title=f"Classes, held-out rows{more}")
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def _some(rows: int) -> np.ndarray:
    if rows <= MOST_POINTS:
        return np.arange(rows)
    return np.sort(np.random.default_rng(SEED).choice(rows, MOST_POINTS, replace=False))


def _points(axes: Any, x: np.ndarray, y: np.ndarray) -> None:
    few = len(x) < MOST_POINTS / 10
    axes.scatter(x, y, s=16 if few else 5, alpha=0.7 if few else 0.4, linewidths=0)


def _predicted(labels: np.ndarray, answers: np.ndarray) -> Any:
    figure, axes = _figure()
    shown = _some(len(labels))
    _points(axes, labels[shown], answers[shown])
    ends = [min(labels.min(), answers.min()), max(labels.max(), answers.max())]
    axes.plot(ends, ends, color="grey", linestyle=":")
    axes.set(
        xlabel="actual",
        ylabel="predicted",
        title=f"Predicted against actual, held-out rows{_of(shown, labels)}",
    )
    return figure


def _residuals(answers: np.ndarray, wrong: np.ndarray) -> Any:
    figure, axes = _figure()
    shown = _some(len(answers))
    axes.axhline(0, color="grey", linestyle=":")
    _points(axes, answers[shown], wrong[shown])
    title = f"Residuals, held-out rows{_of(shown, answers)}"
    axes.set(xlabel="predicted", ylabel="predicted less actual", title=title)
    return figure


def _of(shown: np.ndarray, rows: np.ndarray) -> str:
    return "" if len(shown) == len(rows) else f"\n({len(shown):,} of {len(rows):,})"


def _sizes(curves: dict[str, np.ndarray]) -> Any:
    """The share of the rows that are off by at most so much."""
    figure, axes = _figure()
    for name, sizes in curves.items():
        at = np.linspace(0, 1, 501)
        axes.plot(np.quantile(sizes, at), at, label=f"{name}: {sizes.mean():.4g} on average")
    most = max(float(np.quantile(sizes, 0.99)) for sizes in curves.values())
    axes.set(
        xlabel="off by at most",
        ylabel="share of the rows",
        xlim=(0, most or 1),
        ylim=(0, 1.02),
        title="Sizes of residuals, held-out rows",
    )
    axes.legend(loc="lower right")
    return figure
