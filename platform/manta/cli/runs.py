"""`manta run`, `runs`, `logs`, `stop`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from manta.cli.display import LiveRuns, console, runs_table
from manta.client import connect
from manta.errors import InvalidInput


def run(
    name: Annotated[str, typer.Argument(help="A job of the project: see `manta plan`.")],
    param: Annotated[list[str] | None, typer.Option(help="k=v; v is JSON, or else text.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit with its outcome.")] = False,
) -> None:
    """Submit one run of a job, whether or not what it made is fresh."""
    client = connect()
    submitted = client.submit(name, _params(param or []))
    console.print(f"run {submitted.id} ({submitted.job}) is {submitted.state}", highlight=False)
    if wait:
        with LiveRuns() as live:
            client.wait(submitted.id, lambda run: live([run], []))


def runs(
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    limit: Annotated[int, typer.Option(help="The most to list.")] = 20,
) -> None:
    """List runs, newest first."""
    found = connect().runs(job=job, limit=limit)
    console.print(runs_table(found) if found else "no runs yet: `manta apply` sets the first going")


def logs(run_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Print what a run's last attempt has printed."""
    print(connect().logs(run_id), end="")


def stop(run_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Stop a run, and wait until it has ended."""
    client = connect()
    stopped = client.stop(run_id)
    if stopped.state.ended:
        console.print(f"run {run_id} has already ended: {stopped.state}", highlight=False)
        return
    while not stopped.state.ended:
        stopped = client.run(run_id)
    console.print(f"run {run_id} {stopped.state}", highlight=False)


def _params(given: list[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise InvalidInput(f"--param {each!r} is not k=v", hint="for example --param epochs=3")
        try:
            params[name] = json.loads(text)
        except ValueError:
            params[name] = text
    return params


def add_to(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(runs)
    app.command()(logs)
    app.command()(stop)
