"""The figures kept with each search: how it went, what it tried, and which parameters matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manta.definitions import Choice, LogUniform, Search
from manta.definitions.metrics import smaller_is_better
from manta.training.search_records import Tried

FEWEST = 2  # trials that are done, before anything can be said of importance
BEHIND = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.8}  # of texts that lines pass


def draw(folder: Path, search: Search, tried: Sequence[Tried]) -> list[Path]:
    """Write ``search_history.png``, ``search_parallel.png`` and, where there are trials enough,
    ``search_importance.png`` into ``folder`` and name them."""
    folder.mkdir(parents=True, exist_ok=True)
    done = [each for each in tried if each.state == "done"]
    figures = {"history": _history(search, tried), "parallel": _parallel(search, done)}
    weights = importance(search, done)
    if weights:
        figures["importance"] = _importance(search, weights)
    written = []
    for name, figure in figures.items():
        path = folder / f"search_{name}.png"
        figure.savefig(path, dpi=100)
        written.append(path)
    return written


def importance(search: Search, done: Sequence[Tried]) -> dict[str, float]:
    """Parameter → its share of what the metric varies by, by Optuna's fANOVA, the largest first; they sum to
    1. Empty when there are too few trials, or all came out the same."""
    values = [each.metrics[search.metric] for each in done]
    varied = [name for name in search.space if len({str(each.params[name]) for each in done}) > 1]
    if len(done) < FEWEST or np.ptp(values) == 0 or not varied:
        return {}
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    from manta.training.search_trials import study_of

    evaluator = FanovaImportanceEvaluator(seed=search.seed)
    found = get_param_importances(study_of(search, done), evaluator=evaluator)
    return {name: float(weight) for name, weight in found.items()}


def _figure(width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _history(search: Search, tried: Sequence[Tried]) -> Any:
    """Each trial's figure, and the best until then; those without one are marked below."""
    figure, axes = _figure(6, 4)
    better = np.minimum if smaller_is_better(search.metric) else np.maximum
    done = [each for each in tried if each.state == "done"]
    at, values = [each.number for each in done], [each.metrics[search.metric] for each in done]
    axes.scatter(at, values, label="trial")
    if done:
        axes.step(at, better.accumulate(values), where="post", label="best so far")
    low = axes.get_ylim()[0]
    for state, marker in (("ended early", "x"), ("failed", "v")):
        numbers = [each.number for each in tried if each.state == state]
        if numbers:
            axes.scatter(numbers, [low] * len(numbers), marker=marker, color="grey", label=state)
    axes.set(xlabel="trial", ylabel=f"{search.metric}, validation rows", title="History of the search")
    axes.legend()
    return figure


def _parallel(search: Search, done: Sequence[Tried]) -> Any:
    """A line for each trial over an axis for each parameter and one for the metric, each axis from its least
    to its most; the better, the darker."""
    figure, axes = _figure(2.2 * (len(search.space) + 1) + 1, 4.5)
    values = np.array([each.metrics[search.metric] for each in done], dtype=float)
    scales = [(name, *_scaled(search, name, done)) for name in search.space]
    scales.append((search.metric, *_between(values, "{:.4g}".format)))
    order = np.argsort(-values if smaller_is_better(search.metric) else values)
    shade = _shade(values, smaller_is_better(search.metric))
    for row in order:  # the best are drawn last, on top
        heights = [places[row] for _, places, _ in scales]
        axes.plot(heights, color=shade(row), linewidth=1.5)
    for x, (_, _, marks) in enumerate(scales):
        axes.axvline(x, color="black", linewidth=0.8)
        for height, text in marks:
            axes.text(x + 0.03, height, text, fontsize=8, va="center", bbox=BEHIND)
    axes.set(
        xticks=range(len(scales)),
        xticklabels=[name for name, *_ in scales],
        yticks=[],
        xlim=(-0.15, len(scales) - 0.6),
        title=f"{len(done)} trials, the best in the darkest blue",
    )
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def _scaled(search: Search, name: str, done: Sequence[Tried]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Where on the axis of a parameter each trial is, 0 to 1, and what is written at the axis."""
    domain = search.space[name]
    given = [each.params[name] for each in done]
    if isinstance(domain, Choice):
        among = list(domain.values)
        height = {index: index / max(1, len(among) - 1) for index in range(len(among))}
        places = np.array([height[among.index(value)] for value in given], dtype=float)
        return places, [(height[index], str(value)) for index, value in enumerate(among)]
    numbers = np.array(given, dtype=float)
    if isinstance(domain, LogUniform):
        return _between(np.log10(numbers), lambda value: f"{10**value:.3g}")
    return _between(numbers, "{:.4g}".format)


def _between(values: np.ndarray, text: Any) -> tuple[np.ndarray, list[tuple[float, str]]]:
    if not len(values):
        return values, []
    low, high = float(values.min()), float(values.max())
    if low == high:
        return np.full(len(values), 0.5), [(0.5, text(low))]
    return (values - low) / (high - low), [(0.0, text(low)), (1.0, text(high))]


def _shade(values: np.ndarray, smaller: bool) -> Any:
    from matplotlib import colormaps

    ranks = np.empty(len(values))
    ranks[np.argsort(-values if smaller else values)] = np.linspace(0.2, 1.0, len(values))
    return lambda row: colormaps["Blues"](ranks[row])


def _importance(search: Search, weights: dict[str, float]) -> Any:
    figure, axes = _figure(6, 1.2 + 0.4 * len(weights))
    names = list(weights)[::-1]
    axes.barh(names, [weights[name] for name in names])
    for at, name in enumerate(names):
        axes.text(weights[name] + 0.01, at, f"{weights[name]:.2f}", va="center", fontsize=8)
    axes.set(xlim=(0, 1.1), xlabel="share (fANOVA)", title=f"What {search.metric} varies with")
    return figure
