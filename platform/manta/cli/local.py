"""`manta up`, `down`, `status`, `doctor`: the platform's parts on this machine."""

from __future__ import annotations

from dataclasses import asdict

import typer
from rich.console import Console
from rich.table import Table

from manta.cli.display import age
from manta.cli.door import AsJson, platform, print_json
from manta.errors import MantaError
from manta.settings import Settings

console = Console()
MARKS = {"up": "[green]●[/]", "attached": "[cyan]●[/]", "down": "[dim]○[/]", "starting": "[yellow]◌[/]"}


def tell(part: str, state: str, detail: str) -> None:
    console.print(f"{MARKS.get(state, '[dim]·[/]')} {part:<10} {state:<11} [dim]{detail}[/]", highlight=False)


def up() -> None:
    """Start Ray, MLflow and the manta server on this machine; what lives already is left as it is."""
    from manta.control.local import Local  # not what each command needs

    Local(Settings.load()).up(tell)


def down() -> None:
    """Stop what `manta up` started from this folder, and nothing else."""
    from manta.control.local import Local

    Local(Settings.load()).down(tell)


def status(as_json: AsJson = False) -> None:
    """Show which parts are up, what runs, and which endpoints answer. Exit status 1 when a part is down."""
    from manta.control.local import Local

    parts = Local(Settings.load()).status()
    healthy = all(part.state in ("up", "attached") for part in parts)
    if as_json:
        print_json([asdict(part) for part in parts])
        raise typer.Exit(0 if healthy else 1)
    for part in parts:
        tell(part.name, part.state, " ".join(filter(None, [part.address, part.detail])))
    try:
        with platform() as client:
            trouble = client.me()["trouble"]
            if trouble:
                healthy = False
                console.print(f"[yellow]![/] controller: {trouble}", highlight=False)
            for run in client.runs(active=True):
                console.print(f"  run {run.id} {run.job} [cyan]{run.state}[/] {age(run.created_at)}")
            for endpoint in client.endpoints():
                mark = "[green]●[/]" if endpoint.state == "READY" else "[yellow]◌[/]"
                version = endpoint.served.get("version", "-")
                console.print(
                    f"{mark} endpoint   {endpoint.name} → {endpoint.model}@{version}  {endpoint.url}",
                    highlight=False,
                )
    except MantaError as error:
        healthy = False
        console.print(f"[dim]{error.hint or error.message}[/]", highlight=False)
    raise typer.Exit(0 if healthy else 1)


def check(as_json: AsJson = False) -> None:
    """Check this machine and this project for what usually goes wrong. Exit status 1 when a check fails."""
    from manta.control.doctor import doctor

    checks = doctor(Settings.load())
    if as_json:
        print_json([asdict(each) for each in checks])
        raise typer.Exit(0 if all(each.ok for each in checks) else 1)
    table = Table(box=None, show_header=False, padding=(0, 1))
    for each in checks:
        table.add_row("[green]✓[/]" if each.ok else "[red]✗[/]", each.name, each.detail)
        if not each.ok and each.hint:
            table.add_row("", "", f"[bold]next:[/] {each.hint}")
    console.print(table, highlight=False)
    raise typer.Exit(0 if all(each.ok for each in checks) else 1)


def add_to(app: typer.Typer) -> None:
    app.command()(up)
    app.command()(down)
    app.command()(status)
    app.command("doctor")(check)
