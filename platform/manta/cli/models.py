"""`manta models`, `promote`, `rollback`, `history`, `endpoints` and `predict`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json
from manta.cli.errors import STOPPED, show
from manta.cli.runs import follow, told_of
from manta.client.models import CHAMPION, SHOWN
from manta.client.verbs import failure
from manta.errors import InvalidInput
from manta.ledger.records import Promotion
from manta.ledger.runs import State

Model = Annotated[str, typer.Argument(help="A model: see `manta models`.")]
Alias = Annotated[str, typer.Option(help="The alias to move.")]
Why = Annotated[str, typer.Option(help="Kept with the move, for whoever asks later.")]
Expect = Annotated[
    str | None,
    typer.Option(
        metavar="VERSION",
        help="Only if the alias still points there (none: it has not been set); as it is now, unless given.",
    ),
]


models = typer.Typer(invoke_without_command=True, help="Registered model versions; models made elsewhere.")


@models.callback()
def list_models(context: typer.Context, as_json: AsJson = False) -> None:
    """List the registered model versions, with their figures."""
    if context.invoked_subcommand is not None:
        return
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


@models.command("import")
def import_model(
    path: Annotated[Path, typer.Argument(help="ONNX, XGBoost JSON or UBJ, safetensors, an MLflow folder.")],
    training: Annotated[
        str, typer.Option("--as", metavar="TRAINING", help="Whose examples and gates it is held to.")
    ],
    wait: Annotated[bool, typer.Option("--wait", help="Stream its log; exit with its outcome.")] = False,
    key: Annotated[str | None, typer.Option(help="The same key again is the same run.")] = None,
    as_json: AsJson = False,
) -> None:
    """Take in a model that was made elsewhere, as a version of what a training trains.

    It is evaluated on the training's held-out rows, and promoted if it passes the training's gates. Formats
    that run code when they are loaded are refused.
    """
    client = platform()
    submitted = client.import_model(path, training, key=key)
    if not wait:
        told_of(submitted.data, as_json)
        return
    follow(client, submitted)
    if submitted.data.state is not State.SUCCEEDED:
        show(failure([submitted.data]))
        raise typer.Exit(STOPPED if submitted.data.state is State.STOPPED else 1)


def promote(
    model: Model,
    version: Annotated[str, typer.Argument(help="A registered version.")],
    why: Why,
    alias: Alias = CHAMPION,
    expect: Expect = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a registered version that has passed its gates. Endpoints that serve it follow.

    Needs the role operator. Of two who promote at once one wins, and the other is told who did.
    """
    _show_move(platform().promote(model, version, why=why, alias=alias, expect=_expected(expect)), as_json)


def rollback(
    model: Model, why: Why, alias: Alias = CHAMPION, expect: Expect = None, as_json: AsJson = False
) -> None:
    """Point an alias back at the version that held it before. Needs the role operator."""
    _show_move(platform().rollback(model, why=why, alias=alias, expect=_expected(expect)), as_json)


def _expected(given: str | None) -> str | None:
    if given is None:
        return SHOWN  # type: ignore[no-any-return]
    return None if given == "none" else given


def _show_move(move: Promotion, as_json: bool) -> None:
    if as_json:
        print_json(move)
        return
    gates = f"; {len(move.gates)} gates passed in run {move.run_id}" if move.gates else ""
    console.print(
        f"{move.alias} of {move.model}: version {move.version}, before {move.previous or 'none'}"
        f" (by {move.by}, {age(move.at)}: {move.why}){gates}",
        highlight=False,
        markup=False,
    )


def history(
    model: Model,
    alias: Annotated[str | None, typer.Option(help="Only this alias's moves.")] = None,
    before: Annotated[int | None, typer.Option(help="Only those before this move: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List where a model's aliases have pointed, newest first: who moved them, when and why."""
    found = platform().history(model, alias=alias, before=before, limit=limit)
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no alias of that model has been set")
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("move", "alias", "version", "before", "when", "who", "gates", "why"):
        table.add_column(name)
    for move in found:
        passed = sum(bool(gate.get("passed")) for gate in move.gates)
        table.add_row(
            *(str(move.id), move.alias, move.version, move.previous or "", age(move.at)),
            *(escape(move.by), f"{passed}/{len(move.gates)}" if move.gates else ""),
            escape(f"rollback: {move.why}" if move.kind == "rollback" else move.why),
        )
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
    app.add_typer(models, name="models")
    app.command()(promote)
    app.command()(rollback)
    app.command()(history)
    app.command()(endpoints)
    app.command()(predict)
