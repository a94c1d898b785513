"""`manta models` and `manta predict`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table

from manta.cli.display import age, console
from manta.client import connect
from manta.errors import InvalidInput


def models() -> None:
    """List the registered model versions, with their figures."""
    found = connect().models()
    if not found:
        console.print("no model yet: `manta apply` trains the project's")
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("model", "version", "alias", "run", "made", "figures"):
        table.add_column(name)
    for each in found:
        figures = ", ".join(
            f"{name} {value:.4f}" for name, value in each.run.metrics.items() if isinstance(value, float)
        )
        made = age(each.run.ended_at) if each.run.ended_at else ""
        table.add_row(each.model, each.version, ", ".join(each.aliases), str(each.run.id), made, figures)
    console.print(table, highlight=False)


def predict(
    model: Annotated[str, typer.Argument(help="A model, or an endpoint.")],
    body: Annotated[
        str, typer.Option("--json", help='{"keys": {…}} or {"rows": {…}}, or - for standard input.')
    ],
    features: Annotated[bool, typer.Option(help="Also show the feature values used.")] = False,
) -> None:
    """Ask an endpoint for a prediction, and print its answer as JSON."""
    text = sys.stdin.read() if body == "-" else body
    try:
        parsed = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"--json is not JSON: {error}", hint="""--json '{"keys": {…}}'""") from None
    if not isinstance(parsed, dict):
        raise InvalidInput("--json is not an object", hint="""--json '{"keys": {…}}'""")
    print(json.dumps(connect().predict(model, parsed, features=features), indent=2))


def add_to(app: typer.Typer) -> None:
    app.command()(models)
    app.command()(predict)
