"""`manta audit`: who did what, and whether the log of it is whole."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json

audit = typer.Typer(no_args_is_help=True, help="Who did what, and what was refused to whom.")


@audit.command("list")
def list_entries(
    project: Annotated[str | None, typer.Option(help="Only what was done in it.")] = None,
    actor: Annotated[str | None, typer.Option(help="Only what this principal did.")] = None,
    before: Annotated[int | None, typer.Option(help="Go on from this entry.")] = None,
    limit: Annotated[int, typer.Option(help="The most to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List entries, newest first."""
    entries = platform().audit(project=project, actor=actor, before=before, limit=limit)
    if as_json:
        print_json(entries)
        return
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in ("entry", "when", "who", "did", "to", "project", ""):
        table.add_column(name)
    for entry in entries:
        denied = "[red]denied[/]" if entry.outcome == "denied" else ""
        told = json.dumps(entry.detail) if entry.outcome == "denied" and entry.detail else ""
        words = (entry.actor, entry.action, entry.target, entry.project)
        table.add_row(
            str(entry.seq),
            age(entry.at),
            *(escape(word) for word in words),
            f"{denied} {escape(told)}".strip(),
        )
    console.print(table, highlight=False)


@audit.command("verify")
def verify(
    expect: Annotated[str | None, typer.Option(help="A head seen earlier, that must lie in the log.")] = None,
) -> None:
    """Recompute the chain of hashes. Exit status 1 when an entry was changed, removed or added."""
    verdict = platform().verify_audit(expect)
    if verdict.broken is None:
        console.print(f"[green]✓[/] {verdict.entries} entries, whole; head {verdict.head}", highlight=False)
        return
    console.print(f"[red]✗[/] {escape(verdict.why)}", highlight=False)
    raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    app.add_typer(audit, name="audit")
