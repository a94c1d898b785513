"""The report that a reviewer reads: one HTML page per training, with all that it shows inside it.

No script, nothing from the network (a policy in its head forbids both), and whatever a user or a dataset has
given is escaped.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from manta.definitions import Training
from manta.ledger.manifest import Manifest
from manta.ledger.runs import Run
from manta.secrets import redactor
from manta.training import whole
from manta.training.evaluate import METRICS, SMALLER_IS_BETTER
from manta.training.gates import Champion, Piece, Result
from manta.training.plots import FIGURES
from manta.training.refits import Spread

NAME = "report.html"
SHORT = 24  # characters
MOST_CLASSES = 100  # that are named
MOST_PIECES = 100  # of a table of slices; the failed and the largest come first when there are more


@dataclass(frozen=True)
class Told:
    """All that a report says.

    Attributes:
        manifest: what the run is made from.
        metrics: on the held-out rows; those of the baseline are called ``baseline_…``.
        baseline: what that is.
        results: of the gates; None where none were judged, in a replay.
        rows: of each part. inputs: what the model takes. classes: what it tells apart, of several. digest: of
            its package.
        figures: the folder that holds the plots.
    """

    run: Run
    training: Training
    manifest: Manifest
    metrics: Mapping[str, float]
    baseline: str
    spread: Mapping[str, Spread]
    champion: Champion | None
    results: Sequence[Result] | None
    rows: Mapping[str, int]
    inputs: Mapping[str, str]
    digest: str
    figures: Path
    classes: Sequence[str] = ()


def write(folder: Path, told: Told) -> Path:
    """The report of a training in ``folder``, whole or not at all, over one that is there."""
    folder.mkdir(parents=True, exist_ok=True)
    whole.write(folder / NAME, page(told).encode())
    return folder / NAME


def page(told: Told) -> str:
    training = told.training
    sections = [
        ("Gates", _gates(told.results)),
        ("Slices", _slices(told.results)),
        ("Figures on the held-out rows", _metrics(told)),
        ("Plots", _plots(told.figures, FIGURES[training.task])),
        ("What it was made from", _sources(told)),
        ("Parameters", _facts(told.manifest.params)),
        ("What it takes", _inputs(told.inputs)),
        ("What it answers", _answers(told)),
        ("What it ran in", _facts(told.manifest.environment)),
    ]
    body = "".join(f"<section><h2>{escape(name)}</h2>{held}</section>" for name, held in sections if held)
    title = escape(f"{training.model}, run {told.run.id}")
    return redactor.text(
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{STYLE}</style>
</head>
<body>
<header>
<h1>{escape(training.model)} {_verdict(told.results)}</h1>
<p class="quiet">{_origin(told)}</p>
{_card(training.card)}
</header>
{body}
</body>
</html>
"""
    )


def _verdict(results: Sequence[Result] | None) -> str:
    if results is None:
        return '<span class="mark">replay: not judged</span>'
    failed = sum(not result.passed for result in results)
    if failed:
        return f'<span class="mark bad">refused: {failed} of {_counted(len(results), "gate")} failed</span>'
    return f'<span class="mark good">passed {_counted(len(results), "gate")}</span>'


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _origin(told: Told) -> str:
    run = told.run
    by = f" by {run.submitted_by}" if run.submitted_by else ""
    again = f", a replay of run {run.replay_of}" if run.replay_of is not None else ""
    when = run.created_at.strftime("%Y-%m-%d %H:%M UTC")
    return escape(f"Run {run.id} of {run.job} in {run.project}{again}, submitted{by} on {when}.")


def _card(text: str) -> str:
    """Paragraphs, and lists of the lines that begin with ``- ``."""
    parts = []
    for block in text.split("\n\n"):
        lines = [line.strip() for line in block.strip().splitlines()]
        items = [line.removeprefix("- ") for line in lines if line.startswith("- ")]
        words = " ".join(line for line in lines if not line.startswith("- "))
        parts += [f"<p>{escape(words)}</p>"] if words else []
        parts += ["<ul>", *(f"<li>{escape(item)}</li>" for item in items), "</ul>"] if items else []
    return f'<div class="card">{"".join(parts)}</div>' if text.strip() else ""


def _gates(results: Sequence[Result] | None) -> str:
    if not results:
        return '<p class="quiet">None were judged.</p>' if results is None else '<p class="quiet">None.</p>'
    rows = [
        (
            f"{_passed(result.passed)} {escape(result.gate)}"
            + (f'<br><span class="quiet">{escape(result.reason)}</span>' if result.reason else ""),
            _number(result.value),
            _number(result.bound),
            _signed(result.margin),
        )
        for result in results
    ]
    return _table(("gate", "value", "bound", "margin"), rows, numbers=(1, 2, 3))


def _slices(results: Sequence[Result] | None) -> str:
    held = []
    for result in results or ():
        if any(piece.rows is not None for piece in result.pieces):
            shown = result.pieces
            left = len(shown) - MOST_PIECES
            if left > 0:
                shown = tuple(sorted(shown, key=lambda each: (each.passed is not False, -(each.rows or 0))))
            table = _pieces(shown[:MOST_PIECES])
            more = f'<p class="quiet">and {left:,} more, which are smaller</p>' if left > 0 else ""
            held.append(f"<h3>{escape(result.gate)}</h3>{table}{more}")
    return "".join(held)


def _pieces(pieces: Sequence[Piece]) -> str:
    values = [piece.value for piece in pieces if piece.value is not None]
    bounds = [piece.bound for piece in pieces]
    least, most = min([*values, *bounds]), max([*values, *bounds])
    rows = [
        (
            _passed(piece.passed),
            _name(piece.name),
            f"{piece.rows:,}" if piece.rows is not None else "",
            _number(piece.value),
            _dot(piece, least, most) if piece.value is not None else escape(piece.reason),
        )
        for piece in pieces
    ]
    return _table(("", "slice", "rows", "value", "beside the bound"), rows, numbers=(2, 3))


def _name(name: str) -> str:
    """In one line, if it is short: a hyphen is no place to break it."""
    return f'<span class="name">{escape(name)}</span>' if len(name) <= SHORT else escape(name)


def _dot(piece: Piece, least: float, most: float) -> str:
    """Where the value lies, and, as a line, the bound."""
    assert piece.value is not None

    def at(value: float) -> str:
        return f"{6 + 148 * (value - least) / (most - least or 1):.1f}"

    colour = "#1a7f37" if piece.passed else "#b42318"
    return (
        '<svg width="160" height="14" viewBox="0 0 160 14" role="img" '
        f'aria-label="{_number(piece.value)}, bound {_number(piece.bound)}">'
        f'<line x1="{at(piece.bound)}" x2="{at(piece.bound)}" y1="0" y2="14" stroke="#777"/>'
        f'<line x1="{at(piece.bound)}" x2="{at(piece.value)}" y1="7" y2="7" stroke="{colour}"/>'
        f'<circle cx="{at(piece.value)}" cy="7" r="4" fill="{colour}"/></svg>'
    )


def _metrics(told: Told) -> str:
    champion = (told.champion and told.champion.metrics) or {}
    heads = ["", "model", f"baseline: {told.baseline}"]
    if told.champion:
        heads.append(f"champion: version {told.champion.version}")
    if told.spread:
        count = len(next(iter(told.spread.values())).values)
        heads.append(f"mean ± deviation of {count} seeds")
    rows = []
    for metric in METRICS[told.training.task]:
        row = [
            f"{escape(metric)}{' ↓' if metric in SMALLER_IS_BETTER else ' ↑'}",
            f"<b>{_number(told.metrics.get(metric))}</b>",
            _number(told.metrics.get(f"baseline_{metric}")),
        ]
        if told.champion:
            row.append(_number(champion.get(metric)))
        if told.spread:
            spread = told.spread[metric]
            row.append(f"{_number(spread.mean)} ± {_number(spread.deviation)}")
        rows.append(row)
    table = _table(heads, rows, numbers=range(1, len(heads)))
    why = told.champion.reason if told.champion and told.champion.metrics is None else ""
    note = f'<p class="quiet">The champion could not be scored: {escape(why)}</p>' if why else ""
    return f'{table}{note}<p class="quiet">↑ more is better, ↓ less is.</p>'


def _plots(figures: Path, names: Sequence[str]) -> str:
    found = [(name, figures / f"{name}.png") for name in names]
    images = "".join(
        f'<img alt="{escape(name.replace("_", " and "))}" '
        f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for name, path in found
        if path.exists()
    )
    return f'<div class="plots">{images}</div>' if images else ""


def _sources(told: Told) -> str:
    training = told.training
    examples = training.examples
    facts = {
        **told.manifest.reads,
        "examples": f"{examples.dataset}, labelled by {examples.label}, at {examples.time}",
        "held out": f"from {training.split.test_from:%Y-%m-%d %H:%M %Z}",
        **{name.replace("_", " "): f"{count:,}" for name, count in told.rows.items()},
        "trainer": ", ".join(f"{name}={value}" for name, value in training.trainer.model_dump().items()),
        "seeds": f"{training.seed}" + (f" … {training.seed + training.repeats - 1}" if told.spread else ""),
        **{f"code: {name}": value for name, value in told.manifest.code.items()},
        "manifest": told.manifest.id,
        "model package": told.digest,
    }
    return _facts(facts)


def _inputs(inputs: Mapping[str, str]) -> str:
    return f"<p>{escape(', '.join(f'{name} ({kind})' for name, kind in inputs.items()))}</p>"


def _answers(told: Told) -> str:
    training = told.training
    label = training.examples.label
    if training.task == "regression":
        said = f"A number: {label}."
    elif training.task == "multiclass":
        some = ", ".join(told.classes[:MOST_CLASSES])
        more = f" and {len(told.classes) - MOST_CLASSES:,} more" if len(told.classes) > MOST_CLASSES else ""
        said = f"A probability of each of {len(told.classes):,} classes of {label}: {some}{more}."
    else:
        said = f"The probability of {label}."
    return f"<p>{escape(said)}</p>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [(escape(name), escape(str(value))) for name, value in facts.items() if value not in ("", None)]
    return f'<div class="facts">{_table((), rows)}</div>' if rows else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = ()) -> str:
    """``rows`` are HTML; the columns ``numbers`` stand to the right."""

    def line(tag: str, cells: Sequence[str]) -> str:
        kinds = (' class="number"' if at in numbers else "" for at in range(len(cells)))
        marked = zip(kinds, cells, strict=True)
        return f"<tr>{''.join(f'<{tag}{kind}>{cell}</{tag}>' for kind, cell in marked)}</tr>"

    head = f"<thead>{line('th', [escape(name) for name in heads])}</thead>" if heads else ""
    body = "".join(line("td", row) for row in rows)
    return f'<div class="wide"><table>{head}<tbody>{body}</tbody></table></div>'


def _passed(passed: bool | None) -> str:
    if passed is None:
        return '<span class="mark">not judged</span>'
    return '<span class="mark good">passed</span>' if passed else '<span class="mark bad">failed</span>'


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "–"
    if 0 < abs(value) < 0.001:
        return f"{value:.2g}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def _signed(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return _number(value)
    return f"{'-' if value < 0 else '+'}{_number(abs(value))}"


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1e21; background: #fff; max-width: 1160px;
  margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; margin: 0; display: flex; flex-wrap: wrap; gap: 6px 14px; align-items: center; }
h2 { font-size: 18px; margin: 34px 0 8px; border-bottom: 1px solid #dfe3e8; padding-bottom: 4px; }
h3 { font-size: 15px; margin: 18px 0 6px; }
.quiet { color: #5c6570; margin: 4px 0; }
.card { background: #f5f7f9; border-left: 3px solid #8a97a6; padding: 6px 16px; margin: 14px 0;
  max-width: 75ch; }
.mark { font-size: 12px; line-height: 1; font-weight: 600; white-space: nowrap; border-radius: 4px;
  padding: 4px 7px; display: inline-block; background: #eceff2; color: #46505b; }
.good { background: #dcf3e2; color: #11602a; }
.bad { background: #fde4e1; color: #96190f; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { text-align: left; padding: 5px 14px 5px 0; vertical-align: top; border-bottom: 1px solid #eef0f3; }
th { color: #5c6570; font-weight: 600; font-size: 13px; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.number, .name { white-space: nowrap; }
td .quiet { font-size: 13px; }
.facts td:first-child { color: #5c6570; }
.facts td:last-child, header p, .card li { overflow-wrap: anywhere; }
svg { width: clamp(80px, 24vw, 160px); height: auto; vertical-align: middle; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 12px; }
.plots img { width: 100%; max-width: 520px; height: auto; }
@media (max-width: 600px) {
  body { font-size: 14px; padding: 16px 12px 40px; }
  th, td { padding-right: 9px; }
}
"""
