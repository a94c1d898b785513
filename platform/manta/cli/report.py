"""What a CI system reads of a run that was waited for: a JUnit file, and a summary in Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from manta.client.display import made, seconds
from manta.ledger.runs import EndReason, Run, State

LOG_CHARACTERS = 20_000
# What XML 1.0 cannot hold, even escaped; and what a terminal reads as colours.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
FIGURES_LEFT_OUT = ("gates", "seconds", "online_parity", "spread")


def junit(run: Run, log: str) -> str:
    """The run as a JUnit test suite: one case for the run, and one for each gate of a training. A refused
    gate is a failure; whatever else kept the run from succeeding is an error of the run's own case."""
    suite = ElementTree.Element("testsuite", name=f"manta.{run.project}")
    own = _case(suite, run, run.job, run.seconds or 0.0)
    for gate in run.metrics.get("gates") or ():
        case = _case(suite, run, f"{run.job}: {gate['gate']}", 0.0)
        if not gate["passed"]:
            _trouble(case, "failure", "GATE_FAILED", _verdict(gate))
    if run.state is not State.SUCCEEDED:
        kind = "failure" if run.end_reason is EndReason.GATE_FAILED else "error"
        _trouble(own, kind, str(run.end_reason or run.state), run.message or f"run {run.id} {run.state}")
    ElementTree.SubElement(own, "system-out").text = _clean(log[-LOG_CHARACTERS:])
    cases = suite.findall("testcase")
    counts = {
        "tests": len(cases),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": 0,
    }
    suite.attrib |= {name: str(count) for name, count in counts.items()} | {"time": own.attrib["time"]}
    if run.started_at:
        suite.attrib["timestamp"] = run.started_at.strftime("%Y-%m-%dT%H:%M:%S")
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, run: Run, name: str, time: float) -> ElementTree.Element:
    classname = f"manta.{run.project}.{run.kind}"
    return ElementTree.SubElement(
        suite, "testcase", classname=classname, name=_clean(name), time=f"{time:.3f}"
    )


def _trouble(case: ElementTree.Element, kind: str, why: str, message: str) -> None:
    first = _clean(message.splitlines()[0] if message else "")
    ElementTree.SubElement(case, kind, type=why, message=first).text = _clean(message)


def _clean(text: str) -> str:
    return _NOT_XML.sub("", _ANSI.sub("", text))


def _verdict(gate: dict[str, Any]) -> str:
    value = f"{gate['metric']} is {_figure(gate['value'])}"
    bound = f", {_figure(gate['bound'])} was asked" if gate.get("bound") is not None else ""
    return f"{value}{bound}{': ' + gate['reason'] if gate.get('reason') else ''}"


def summary(run: Run, url: str) -> str:
    """The run in Markdown: outcome, time, what it read and made, figures, gates."""
    mark = {State.SUCCEEDED: "✅", State.STOPPED: "⏹️"}.get(run.state, "❌")
    lines = [f"## {mark} {run.job}: {run.state.lower()}", ""]
    if run.message and run.state is not State.SUCCEEDED:
        lines += [*(f"> {_text(line)}" for line in run.message.splitlines()[:10]), ""]
    facts = {
        "run": f"{run.id} ({url}/v1/runs/{run.id})",
        "project": run.project,
        "kind": run.kind,
        "ended as": f"{run.state} ({run.end_reason})" if run.end_reason else str(run.state),
        "took": f"{seconds(run.seconds)}, attempt {run.attempt}" if run.seconds is not None else "",
        "submitted by": run.submitted_by,
        "parameters": ", ".join(f"{name}={value}" for name, value in run.params.items()),
        "made": made(run),
    }
    lines += _table(("", ""), [(f"**{name}**", _text(value)) for name, value in facts.items() if value])
    gates = run.metrics.get("gates") or ()
    if gates:
        verdicts = [
            (
                "passed" if gate["passed"] else "**failed**",
                _text(gate["gate"]),
                _figure(gate["value"]),
                _text(gate.get("reason") or ""),
            )
            for gate in gates
        ]
        lines += ["### Gates", "", *_table(("", "gate", "value", ""), verdicts)]
    figures = {name: value for name, value in run.metrics.items() if name not in FIGURES_LEFT_OUT}
    if figures:
        rows = [(_text(name), _text(_figure(value))) for name, value in figures.items()]
        lines += ["### Figures", "", *_table(("name", "value"), rows)]
    versions = [("read", each) for each in run.inputs] + [("made", each) for each in run.outputs]
    if versions:
        held = [(how, each.kind, _text(each.name), f"`{each.version}`") for how, each in versions]
        lines += ["### Versions", "", *_table(("", "kind", "name", "version"), held)]
    lines += [f"`manta logs {run.id}` shows what it printed.", ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    written = [f"| {' | '.join(row)} |" for row in (heads, ("---",) * len(heads), *rows)]
    return [*written, ""]


def _text(value: str) -> str:
    """As it is, in a cell of a table: nothing of it is taken for Markdown or HTML."""
    text = re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", _ANSI.sub("", str(value)))
    return " ".join(text.split())


def _figure(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def append(path: Path, text: str) -> None:
    """Add to the file; $GITHUB_STEP_SUMMARY may hold what other steps have written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
