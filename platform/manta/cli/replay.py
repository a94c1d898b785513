"""`manta replay`: run a run again, and say whether it made the same."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from manta.cli.display import console
from manta.cli.door import AsJson, platform, print_json
from manta.ledger.manifest import differences


def replay(
    run_id: Annotated[int, typer.Argument(metavar="ID", help="A run that has succeeded.")],
    as_json: AsJson = False,
) -> None:
    """Run a run again from the versions that it read, and say whether it made the same (exit 1 if not)."""
    with platform() as client:
        again = client.replay(run_id).id
        if not as_json:
            console.print(f"run {again} repeats run {run_id}", highlight=False)
        client.wait(again)
        found = client.comparison(again)
        apart = differences(client.manifest(run_id), client.manifest(again))
    if as_json:
        print_json(found.model_dump(mode="json") | {"made_from": apart})
    else:
        for line in apart:
            console.print(f"[yellow]not as then:[/] {escape(line)}", highlight=False)
        if not apart:
            console.print("made from the same: the manifests are equal", highlight=False)
        for each in found.outputs:
            sign = "[green]=[/]" if each.equal else "[red]≠[/]"
            detail = f": {escape(each.detail)}" if each.detail else ""
            made = f"{each.output}@{each.version}"
            console.print(f"{sign} {escape(made)} by {each.by}{detail}", highlight=False)
        console.print("all outputs are equal" if found.equal else "[bold red]the outputs differ[/]")
    if not found.equal:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    app.command()(replay)
