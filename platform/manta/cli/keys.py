"""`manta keys` and `manta grants`: who may use the platform, and what for."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json

keys = typer.Typer(no_args_is_help=True, help="API keys: each belongs to a principal, and opens what it may.")
grants = typer.Typer(no_args_is_help=True, help="Roles: viewer, developer, operator, admin; per project.")

Principal = Annotated[str, typer.Argument(help="user:NAME, ci:NAME, team:NAME or service:NAME.")]
Project = Annotated[str, typer.Argument(help="A project, or * for all.")]


@keys.command("create")
def create_key(
    principal: Principal,
    label: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Annotated[int | None, typer.Option(help="Until it expires; never unless given.")] = None,
) -> None:
    """Make a key, and print it: it is not shown again. What it may do is set with `manta grants set`."""
    made = platform().create_key(principal, label=label, days=days)
    until = f", until {made.expires_at:%Y-%m-%d}" if made.expires_at else ""
    typer.echo(f"key {made.prefix} of {made.principal}{until}; keep it, for it is not shown again:", err=True)
    print(made.key)


@keys.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List keys, newest first."""
    held = platform().keys()
    if as_json:
        print_json(held)
        return
    table = _table("prefix", "principal", "label", "made", "by", "last used", "state")
    for key in held:
        state = "[red]revoked[/]" if key.revoked_at else "[green]valid[/]"
        if not key.revoked_at and key.expires_at:
            state = f"until {key.expires_at:%Y-%m-%d}"
        used = age(key.last_used_at) if key.last_used_at else "never"
        made = (age(key.created_at), key.created_by)
        table.add_row(key.prefix, key.principal, key.label, *made, used, state)
    console.print(table, highlight=False)


@keys.command("revoke")
def revoke_key(prefix: Annotated[str, typer.Argument(help="As `manta keys list` shows it.")]) -> None:
    """Revoke a key: the next request with it is refused."""
    platform().revoke_key(prefix)
    console.print(f"key {prefix} is revoked", highlight=False)


@grants.command("set")
def set_grant(
    principal: Principal,
    project: Project,
    role: Annotated[str, typer.Argument(help="viewer, developer, operator or admin.")],
) -> None:
    """Give a principal a role in a project, in place of the one it holds there."""
    given = platform().set_grant(principal, project, role)
    console.print(f"{given.principal} is {given.role} in {_where(given.project)}", highlight=False)


@grants.command("list")
def list_grants(as_json: AsJson = False) -> None:
    """List who holds which role where."""
    held = platform().grants()
    if as_json:
        print_json(held)
        return
    table = _table("principal", "project", "role")
    for each in held:
        table.add_row(each.principal, each.project, each.role)
    console.print(table, highlight=False)


@grants.command("remove")
def remove_grant(principal: Principal, project: Project) -> None:
    """Take a principal's role in a project away."""
    platform().remove_grant(principal, project)
    console.print(f"{principal} holds no role of its own in {_where(project)}", highlight=False)


def _where(project: str) -> str:
    return "every project" if project == "*" else project


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in columns:
        table.add_column(name)
    return table


def add_to(app: typer.Typer) -> None:
    app.add_typer(keys, name="keys")
    app.add_typer(grants, name="grants")
