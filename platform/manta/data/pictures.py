"""Draws the profile of a dataset: a panel for each column. Without a display, and without pyplot."""

from __future__ import annotations

import io
import math
import textwrap
from typing import Any

import numpy as np

from manta.data.shown import distinct, span
from manta.words import share, short

PER_ROW = 4
MOST = 80
BLUE, GREY, RED = "#4878a8", "#999999", "#c44e52"
TOP = 8


def draw(title: str, facts: str, rows: int, columns: dict[str, dict[str, Any]]) -> bytes:
    """A PNG. Of a table with more than 80 columns, the first 80."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    shown = dict(list(columns.items())[:MOST])
    across = min(PER_ROW, max(len(shown), 2))
    down = max(1, math.ceil(len(shown) / across))
    figure = Figure(
        figsize=(3.4 * across, 2.5 * down + 0.6), layout=ConstrainedLayoutEngine(h_pad=0.12, w_pad=0.08)
    )
    FigureCanvasAgg(figure)
    left_out = "" if len(shown) == len(columns) else f" (the first {MOST} columns)"
    figure.suptitle(f"{title}{left_out}\n", x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.text(0.011, 1 - 0.42 / figure.get_figheight(), facts, fontsize=9, color="#555555", va="top")
    figure.subplots(down, across)
    for panel, (name, figures) in zip(figure.axes, shown.items(), strict=False):
        _panel(panel, name, figures, rows)
    for panel in figure.axes[len(shown) :]:
        panel.axis("off")
    held = io.BytesIO()
    figure.savefig(held, dpi=110, format="png")
    return held.getvalue()


def _panel(panel: Any, name: str, figures: dict[str, Any], rows: int) -> None:
    panel.set_title(_plain(textwrap.shorten(name, 34, placeholder="…")), fontsize=10, loc="left", pad=14)
    said = [figures["type"], f"{distinct(figures)} distinct" if distinct(figures) else ""]
    panel.text(
        0, 1.025, _plain(", ".join(filter(None, said))), transform=panel.transAxes, fontsize=7.5, color=GREY
    )
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(labelsize=7, length=2)
    if figures.get("histogram") and sum(figures["histogram"]["counts"]):
        _spread(panel, figures)
    elif figures.get("top"):
        _frequent(panel, figures, rows)
    else:
        panel.set_xticks([])
        panel.set_yticks([])
        panel.spines[["bottom"]].set_visible(False)
        panel.text(
            0, 0.5, _plain(_why_empty(figures, rows)), transform=panel.transAxes, fontsize=8, color=GREY
        )
    _nulls(panel, figures["nulls"], rows)


def _spread(panel: Any, figures: dict[str, Any]) -> None:
    """A histogram; its edges may be times, so it is drawn over their positions."""
    histogram = figures["histogram"]
    counts, edges = histogram["counts"], histogram["edges"]
    panel.bar(np.arange(len(counts)) + 0.5, counts, width=0.92, color=BLUE)
    panel.set_xlim(0, len(counts))
    panel.set_yticks([])
    places = [0.0, len(counts) // 2, len(counts)] if len(counts) > 2 else [0.0, len(counts)]
    whole = figures["type"].startswith(("int", "uint"))
    labels = _edges([edges[int(place)] for place in places], figures["max"] if whole else None)
    if whole and len(counts) <= 12 and edges[1] - edges[0] == 1:
        places = [place + 0.5 for place in range(len(counts))]
        labels = [short(round(edge + 0.5)) for edge in edges[:-1]]
    panel.set_xticks(places, [_plain(each) for each in labels])
    if places[0] == 0:  # the labels of the ends stay within the panel
        panel.get_xticklabels()[0].set_horizontalalignment("left")
        panel.get_xticklabels()[-1].set_horizontalalignment("right")
    outside = [(0.0, "left", "below", "◂ {}"), (1.0, "right", "above", "{} ▸")]
    for place, side, which, form in outside:
        if histogram[which]:
            text = form.format(f"{histogram[which]:,}")
            panel.text(place, 0.92, text, transform=panel.transAxes, ha=side, fontsize=7, color=RED)


def _edges(edges: list[Any], greatest: int | None) -> list[str]:
    """Of whole numbers, the first and the last in the bins, up to the ``greatest`` there is; of times, the
    day, or on one day the clock."""
    if greatest is not None:
        last = min(round(edges[-1] - 0.5), greatest)
        return [short(round(edge + 0.5)) for edge in edges[:-1]] + [short(last)]
    if not isinstance(edges[0], str):
        return [short(edge, 16) for edge in edges]
    one_day = edges[0][:10] == edges[-1][:10]
    return [edge[11:19] if one_day and "T" in edge else edge.partition("T")[0] or edge for edge in edges]


def _frequent(panel: Any, figures: dict[str, Any], rows: int) -> None:
    top = figures["top"][:TOP][::-1]
    counts = [each["count"] for each in top]
    panel.barh(range(len(top)), counts, color=BLUE, height=0.72)
    panel.set_yticks(range(len(top)), [_plain(short(each["value"], 18)) for each in top])
    panel.tick_params(axis="y", length=0)
    panel.set_ylim(len(top) - TOP - 0.5, len(top) - 0.4)
    panel.set_xticks([])
    panel.spines[["bottom"]].set_visible(False)
    most = max(counts)
    panel.set_xlim(0, most * 1.22)
    for at, count in enumerate(counts):
        panel.text(count + most * 0.02, at, share(count, rows), va="center", fontsize=7, color=GREY)


def _why_empty(figures: dict[str, Any], rows: int) -> str:
    if not rows:
        return "no rows"
    if figures["nulls"] == rows:
        return "null in every row"
    return textwrap.fill(span(figures), 40) or "not drawn"


def _nulls(panel: Any, nulls: int, rows: int) -> None:
    """A line above the panel, red for the share that is null."""
    if not nulls:
        return
    part = nulls / max(rows, 1)
    panel.plot([1 - part, 1], [1.0, 1.0], transform=panel.transAxes, color=RED, linewidth=3, clip_on=False)
    panel.text(
        1, 1.025, f"{share(nulls, rows)} null", transform=panel.transAxes, ha="right", fontsize=7.5, color=RED
    )


def _plain(text: str) -> str:
    """As it is: matplotlib takes what stands between dollars for a formula."""
    return text.replace("$", r"\$")
