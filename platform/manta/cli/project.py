"""`manta plan`, `apply`, `init`: a project and what the platform holds of it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from manta.cli.display import LiveRuns, console, show_applied, show_breaks, show_plan
from manta.cli.door import AsJson, platform, print_json
from manta.cli.reference import copy_reference
from manta.errors import Unacknowledged


def plan(as_json: AsJson = False) -> None:
    """Show what `apply` would do, and why."""
    found = platform().plan()
    if as_json:
        print_json(found)
    else:
        show_plan(found)


def apply(
    wait: Annotated[bool, typer.Option(help="Wait for the runs and endpoints to be done.")] = True,
    acknowledge: Annotated[
        bool, typer.Option("--acknowledge", help="Also where it breaks features that are served now.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run what is missing or stale, and bring the endpoints to what the project defines."""
    client = platform()
    try:
        applied = client.apply(acknowledge=acknowledge)
    except Unacknowledged as refused:
        if as_json or not sys.stdin.isatty():
            raise
        show_breaks(refused.detail.get("breaks", []))
        if not typer.confirm("do it all the same?"):
            raise
        applied = client.apply(acknowledge=True)
    if as_json:
        if wait:
            client.wait_applied(applied)
        print_json(applied)
        return
    show_applied(applied)
    if wait:
        with LiveRuns() as live:
            client.wait_applied(applied, live)


def init(
    directory: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    name: Annotated[str, typer.Option(help="The project's name; the folder's, unless given.")] = "",
) -> None:
    """Copy the reference project (late flights) into a new folder, under a new name."""
    project = copy_reference(directory, name)
    console.print(f"project [bold]{project}[/] in {directory}", highlight=False)
    console.print(f"  cd {directory} && manta up && manta apply", highlight=False)


def add_to(app: typer.Typer) -> None:
    app.command()(plan)
    app.command()(apply)
    app.command()(init)
