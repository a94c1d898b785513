"""`manta models`, `endpoints` and `predict`."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.table import Table

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json
from manta.errors import InvalidInput


def models(as_json: AsJson = False) -> None:
    """List the registered model versions, with their figures."""
    found = platform().models()
    if as_json:
        print_json(found)
        return
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


def endpoints(as_json: AsJson = False) -> None:
    """List the endpoints, and what they serve."""
    found = platform().endpoints()
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no endpoint yet: `manta apply` puts the project's up")
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("endpoint", "state", "serves", "address", ""):
        table.add_column(name)
    for each in found:
        serves = f"{each.model}@{each.served.get('version', '-')}"
        table.add_row(each.name, each.state.lower(), serves, each.url, each.message)
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
    print(json.dumps(platform().predict(model, parsed, features=features), indent=2))


def add_to(app: typer.Typer) -> None:
    app.command()(models)
    app.command()(endpoints)
    app.command()(predict)
