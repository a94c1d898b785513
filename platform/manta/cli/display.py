"""What the command line shows: plans, live progress of runs, lists."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from manta.answers import Applied, EndpointInfo
from manta.client.display import COLOURS, bar, said, seconds, took
from manta.ledger.runs import Run, State
from manta.plan import Action, Plan

console = Console()

SIGNS = {
    Action.RUN: "[yellow]+[/]",
    Action.FOLLOW: "[cyan]~[/]",
    Action.KEEP: "[green]=[/]",
    Action.DEPLOY: "[yellow]+[/]",
    Action.REMOVE: "[red]-[/]",
}


def age(at: datetime) -> str:
    passed = (datetime.now(UTC) - at).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if passed >= size:
            return f"{passed / size:.0f} {unit} ago"
    return f"{max(passed, 0):.0f} s ago"


def show_plan(plan: Plan) -> None:
    table = Table(box=None, show_header=False, padding=(0, 1))
    for step in plan.steps:
        touched = plan.touches.get(step.name, ())
        table.add_row(SIGNS[step.action], step.kind, f"[bold]{step.name}[/]", step.because)
        if step.action is Action.RUN and touched and not step.needs:
            table.add_row("", "", "", f"[dim]touches {', '.join(touched)}[/]")
        if step.kind == "feature-repo":
            for view, services in plan.changed_views.items():
                of = f" of {', '.join(services)}" if services else ", in no service"
                table.add_row("", "", "", f"[dim]view {view}{of}[/]")
    console.print(table, highlight=False)
    show_breaks([each.model_dump() for each in plan.breaks])
    if plan.asked:
        console.print(f"[dim]only when asked (manta run NAME): {', '.join(plan.asked)}[/]", highlight=False)
    changed = sum(step.action is not Action.KEEP for step in plan.steps)
    if changed:
        console.print(f"{changed} to do, {len(plan.steps) - changed} fresh. `manta apply` does it.")
    else:
        console.print(f"Nothing to do: all {len(plan.steps)} are fresh.")


def show_breaks(breaks: Iterable[Mapping[str, Any]]) -> None:
    """What an apply has to be told to do all the same."""
    for each in breaks:
        reads = ", ".join(each["serves"])
        console.print(f"[red]breaks[/] {each['service']}: {each['what']}; {reads} reads it", highlight=False)


def run_row(run: Run) -> list[Any]:
    state = Text(str(run.state).lower(), style=COLOURS[run.state])
    progress, told = bar(run), Text(said(run))
    return [str(run.id), run.job, state, seconds(took(run)), progress or told, told if progress else ""]


def runs_table(runs: Iterable[Run]) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name, width in (("run", 4), ("job", 16), ("state", 9), ("took", 7)):
        table.add_column(name, no_wrap=True, min_width=width)
    table.add_column("", no_wrap=True, overflow="ellipsis")
    table.add_column("", no_wrap=True, overflow="ellipsis")
    for run in runs:
        table.add_row(*run_row(run))
    return table


def gates_table(gates: Iterable[Mapping[str, Any]]) -> Table:
    """What each gate of a training said; of slices, those that failed."""
    table = Table(box=None, show_header=False, padding=(0, 1))
    for gate in gates:
        verdict = Text("passed", style="green") if gate["passed"] else Text("failed", style="red")
        bound = "" if gate["bound"] is None else f", {_figure(gate['bound'])} was asked"
        said = gate.get("reason") or f"{gate['metric']} is {_figure(gate['value'])}{bound}"
        table.add_row("gate", verdict, Text(f"{gate['gate']}: {said}"))
        for piece in gate.get("pieces") or ():
            if piece["passed"] is False:
                rows = "" if piece["rows"] is None else f" ({piece['rows']:,} rows)"
                table.add_row("", "", Text(f"  {piece['name']}: {_figure(piece['value'])}{rows}"))
    return table


def _figure(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4f}"


class LiveRuns:
    """Shows runs and endpoints while they work: a live table in a terminal, a line per change elsewhere."""

    def __init__(self) -> None:
        self._live = Live(console=console, refresh_per_second=8) if sys.stdout.isatty() else None
        self._told: dict[object, str] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def __call__(self, runs: list[Run], endpoints: list[EndpointInfo]) -> None:
        if self._live:
            lines = [
                Text(f" endpoint {each.name}: {each.state.lower()} {each.message.splitlines()[0][:80]}")
                if each.message
                else Text(f" endpoint {each.name}: {each.state.lower()}")
                for each in endpoints
            ]
            self._live.update(Group(runs_table(runs), *lines))
            return
        for run in runs:
            self._tell(run.id, str(run.state), _line(run))
        for each in endpoints:
            self._tell(each.name, each.state, f"endpoint {each.name}: {each.state}")

    def _tell(self, what: object, state: str, line: str) -> None:
        if self._told.get(what) != state:
            self._told[what] = state
            if state not in (State.QUEUED, State.STARTING, "WANTED"):
                print(line, flush=True)


def _line(run: Run) -> str:
    return f"run {run.id:>3} {run.job:<18} {run.state:<10} {seconds(run.seconds):>8}  {said(run)}".rstrip()


def show_applied(applied: Applied) -> None:
    kept = [step for step in applied.plan.steps if step.action is Action.KEEP]
    for step in kept:
        console.print(f"{SIGNS[step.action]} {step.kind} [bold]{step.name}[/] is fresh: {step.because}")
