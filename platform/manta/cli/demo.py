"""`manta demo`: the whole life of the reference project, from raw files to a prediction, on one screen."""

from __future__ import annotations

import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.panel import Panel
from rich.table import Table

from manta.answers import Applied, EndpointInfo, ModelVersion
from manta.cli.display import LiveRuns, console, show_applied
from manta.cli.door import platform
from manta.cli.local import tell
from manta.cli.reference import copy_reference
from manta.client import Client
from manta.client.display import seconds
from manta.errors import NotFound, Unavailable
from manta.plan import Action
from manta.settings import Settings

STAGES = {
    "ingest": "ingest",
    "feature-table": "feature tables",
    "feature-repo": "feature registry",
    "materialize": "online features",
    "stream-features": "streams",
    "training": "training, gates, registration",
}


def demo(
    directory: Annotated[
        Path | None, typer.Argument(help="The project; a copy of the reference project is made if need be.")
    ] = None,
) -> None:
    """Start the platform, run the reference project, ask its endpoint. Run again, it reuses what is fresh."""
    began = time.monotonic()
    folder = directory or Path("manta-demo" if not Path("jobs").is_dir() else ".")
    if not (folder / "jobs").is_dir():
        copy_reference(folder)
        console.print(f"[dim]made a copy of the reference project in {folder}[/]")
    os.chdir(folder)
    settings = Settings.load()
    from manta.control.local import Local

    Local(settings).up(tell)
    started = time.monotonic()
    client = platform()
    applied = client.apply()
    show_applied(applied)
    with LiveRuns() as live:
        client.wait_applied(applied, live)
    answering = datetime.now(UTC)
    endpoints = [each for each in client.endpoints() if each.kind == "endpoint"]
    if not endpoints:
        raise NotFound("the project defines no endpoint to ask", hint="add one in serve/, like the reference")
    endpoint = endpoints[0]
    question, answer, took = _ask(client, endpoint)
    stages = _stages(client, applied, answering)
    console.print(_summary(settings, client, stages, endpoint, question, answer, took))
    # Outside the frame and on one line, to be copied.
    curl = f"curl -s {endpoint.url}/predict -H 'content-type: application/json' -d '{json.dumps(question)}'"
    console.print(curl, soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"[bold]{seconds(time.monotonic() - began)}[/] in all, {seconds(started - began)} of them to start "
        "the platform. It stays up: `manta status`, `manta down`.",
        highlight=False,
    )


def _ask(client: Client, endpoint: EndpointInfo) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Ask with the example that the endpoint itself gives; the body, the answer, and how long it took."""
    try:
        described = httpx.get(endpoint.url, timeout=10).raise_for_status().json()
    except httpx.HTTPError as error:
        raise Unavailable(f"endpoint {endpoint.url} does not answer: {error}") from error
    body: dict[str, Any] = described["example"]
    client.predict(endpoint.name, body)
    began = time.monotonic()
    answer = client.predict(endpoint.name, body)
    return body, answer, time.monotonic() - began


def _summary(
    settings: Settings,
    client: Client,
    stages: dict[str, str],
    endpoint: EndpointInfo,
    question: dict[str, Any],
    answer: dict[str, Any],
    took: float,
) -> Panel:
    champion = next(each for each in client.models() if "champion" in each.aliases)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_row("quality", _quality(champion))
    for stage, told in stages.items():
        table.add_row("" if table.row_count > 1 else "stages", f"{stage:<31} {told}")
    table.add_row("asked", ", ".join(f"{name} {value}" for name, value in question["keys"].items()))
    probability = answer["predictions"][0]["probability"]
    table.add_row(
        "answered",
        f"probability [bold]{probability:.3f}[/], by version {answer['version']}, in {took * 1000:.0f} ms",
    )
    table.add_row("endpoint", endpoint.url)
    table.add_row("MLflow", settings.mlflow_url)
    table.add_row("Ray", settings.ray_url)
    table.add_row(
        "API", f"{settings.server_url}/openapi.json, with the key in {settings.home.name}/owner.key"
    )
    return Panel(table, title=f"manta: {settings.project}", title_align="left", border_style="cyan")


def _quality(champion: ModelVersion) -> str:
    metrics = champion.run.metrics
    figures = [
        f"ROC AUC [bold green]{metrics['roc_auc']:.4f}[/] on the held-out rows",
        f"baseline {metrics['baseline_roc_auc']:.4f} ({metrics['baseline']} alone)",
        f"average precision {metrics['average_precision']:.3f}",
        f"calibration error {metrics['ece']:.3f}",
    ]
    return f"{champion.model}@{champion.version}: {', '.join(figures)}"


def _stages(client: Client, applied: Applied, answering: datetime) -> dict[str, str]:
    """Per stage, the time from its first run's start to its last run's end, or that it was fresh. Stages
    overlap: runs that do not need each other work side by side."""
    told: dict[str, str] = {}
    last: datetime | None = None
    for stage in dict.fromkeys(STAGES.values()):
        steps = [step for step in applied.plan.steps if STAGES.get(step.kind) == stage]
        worked = [step for step in steps if step.action in (Action.RUN, Action.FOLLOW)]
        runs = [client.run(applied.runs[step.name]) for step in worked]
        spans = [(run.started_at, run.ended_at) for run in runs if run.started_at and run.ended_at]
        if spans:
            length = (max(end for _, end in spans) - min(start for start, _ in spans)).total_seconds()
            told[stage] = f"{seconds(length):>8}  {len(worked)} of {len(steps)} runs"
            last = max(end for _, end in spans)
        else:
            told[stage] = f"   fresh  {len(steps)} reused"
    deployed = any(step.action is Action.DEPLOY for step in applied.plan.steps)
    if deployed and last is not None:
        told["endpoint"] = f"{seconds((answering - last).total_seconds()):>8}  after the last run"
    else:
        told["endpoint"] = "   fresh  serving already"
    return told


def add_to(app: typer.Typer) -> None:
    app.command()(demo)
