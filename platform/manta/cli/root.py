"""The `manta` command and its verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

import manta
from manta.cli import demo, lineage, local, models, project, runs
from manta.errors import MantaError

app = typer.Typer(
    name="manta",
    help="An ML platform on Ray: definitions → plan → runs.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (local, project, runs, models, lineage, demo):
    module.add_to(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"manta {manta.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """An ML platform on Ray: definitions → plan → runs."""


def run() -> None:
    """Exit status: 0 done; 1 an error, told on standard error with its next step; 130 interrupted."""
    try:
        app()
    except MantaError as error:
        console = Console(stderr=True)
        console.print(f"[bold red]error[/] [dim]{error.code}[/]  {escape(error.message)}", highlight=False)
        if error.hint:
            console.print(f"  [bold]next:[/] {escape(error.hint)}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted; what was set going goes on (`manta runs`)", file=sys.stderr)
        sys.exit(130)
