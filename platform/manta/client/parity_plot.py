"""Draws a parity report: a bar for each feature, the share of its values that differ, by cause."""

from __future__ import annotations

import io

from manta.ledger.parity import Cause, ParityReport

COLOUR = {
    Cause.TTL: "#d9a441",
    Cause.LATE: "#3f9fb5",
    Cause.TRANSFORM: "#c44e52",
    Cause.TYPE: "#8a5fa8",
    Cause.JOIN: "#4878a8",
    Cause.STALE: "#777777",
}


def draw(found: ParityReport) -> bytes:
    """A PNG; features that differ most come first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    skewed: dict[str, dict[Cause, int]] = {}
    for each in found.found:
        by = skewed.setdefault(f"{each.view}.{each.feature}", {})
        by[each.cause] = by.get(each.cause, 0) + each.values
    names = sorted(found.compared, key=lambda name: -sum(skewed.get(name, {}).values()))
    figure = Figure(figsize=(9, 1.6 + 0.24 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panel = figure.subplots()
    for place, name in enumerate(names):
        left = 0.0
        for cause, count in skewed.get(name, {}).items():
            share = 100 * count / max(found.compared[name], 1)
            panel.barh(place, share, left=left, color=COLOUR[cause], height=0.7)
            left += share
        panel.text(left + 0.8, place, f"{left:.3g} %", va="center", fontsize=7.5, color="#555555")
    for cause in found.causes:
        panel.barh(0, 0, color=COLOUR[cause], label=str(cause))
    if found.causes:
        panel.legend(loc="lower right", fontsize=8, frameon=False)
    panel.set_yticks(range(len(names)), names, fontsize=8)
    panel.set_ylim(len(names) - 0.4, -0.6)
    panel.set_xlim(0, 108)
    panel.set_xlabel("values that differ online, %", fontsize=8)
    panel.tick_params(labelsize=8, length=2)
    panel.spines[["top", "right"]].set_visible(False)
    verdict = "all the same" if found.clean else f"{found.skewed:,} differ"
    panel.set_title(
        f"{found.service}: {found.values:,} values of {found.rows:,} rows as of "
        f"{found.watermark:%Y-%m-%d %H:%M} UTC, {verdict}",
        fontsize=10,
        loc="left",
    )
    held = io.BytesIO()
    figure.savefig(held, dpi=120, format="png")
    return held.getvalue()
