"""The `manta` command and its verbs."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import manta
from manta.cli import (
    audit,
    data,
    demo,
    features,
    keys,
    leaderboard,
    lineage,
    local,
    models,
    project,
    replay,
    runs,
)
from manta.cli.errors import EXPLAINED, INTERRUPTED, show, status_of
from manta.errors import MantaError

app = typer.Typer(
    name="manta",
    help="An ML platform on Ray: definitions → plan → runs.",
    epilog=EXPLAINED,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for module in (local, project, runs, data, features, models, leaderboard, lineage, replay, demo, keys, audit):
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
    """Errors are told on standard error, each with its next step. Exit statuses: `manta.cli.errors`."""
    try:
        app()
    except MantaError as error:
        show(error)
        sys.exit(status_of(error))
    except KeyboardInterrupt:
        print("\ninterrupted; what was set going goes on (`manta runs`)", file=sys.stderr)
        sys.exit(INTERRUPTED)
