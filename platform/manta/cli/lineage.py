"""`manta lineage`: what something was made from, and what was made from it, as trees."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape
from rich.tree import Tree

from manta.cli.display import console
from manta.cli.door import platform
from manta.client.display import COLOURS
from manta.ledger.records import Direction, Lineage, Node
from manta.ledger.runs import State

KEPT_SHORT = 8  # digits of a hash that are shown


def lineage(
    of: Annotated[str, typer.Argument(help="run:17, model:delay@3, dataset:flights@2, endpoint:delay …")],
    up: Annotated[bool, typer.Option("--up", help="Only what it was made from.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Only what was made from it.")] = False,
    json: Annotated[bool, typer.Option("--json", help="As JSON: nodes and edges.")] = False,
) -> None:
    """Show what something was made from, and what was made from it."""
    direction: Direction = "both" if up == down else "up" if up else "down"
    with platform() as client:
        found = client.lineage(of, direction)
    if json:
        print(found.model_dump_json(indent=2))
        return
    if direction in ("both", "up"):
        console.print(tree(found, up=True), highlight=False)
    if direction in ("both", "down"):
        console.print(tree(found, up=False), highlight=False)
    if found.truncated:
        console.print("[dim]… and more: ask for one of the ends[/]")


def tree(found: Lineage, *, up: bool) -> Tree:
    """From the node asked for, its sources below it ("up") or what came of it. What has been shown is not
    unfolded again."""
    nodes = {node.id: node for node in found.nodes}
    steps: dict[str, list[str]] = {}
    for edge in found.edges:
        here, there = (edge.target, edge.source) if up else (edge.source, edge.target)
        steps.setdefault(here, []).append(there)
    root = Tree(f"{_label(nodes[found.of])}  [dim]{'made from' if up else 'of it came'}[/]")
    shown = {found.of}
    todo = [(root, found.of)]
    while todo:
        branch, here = todo.pop(0)
        for there in steps.get(here, []):
            again = there in shown and there in steps
            leaf = branch.add(_label(nodes[there]) + (" [dim](above)[/]" if again else ""))
            if not again:
                shown.add(there)
                todo.append((leaf, there))
    return root


def _label(node: Node) -> str:
    detail = node.detail
    if node.kind == "run":
        colour = COLOURS[State(detail["state"])]
        said = [f"code {detail['package'][:KEPT_SHORT]}"]
        said += [f"lock {detail['lock'][:KEPT_SHORT]}"] if "lock" in detail else []
        said += [f"seed {detail['seed']}"] if "seed" in detail else []
        said += [f"{name}={value}" for name, value in detail.get("params", {}).items()]
        said += [f"replay of {detail['replay_of']}"] if "replay_of" in detail else []
        told = escape(", ".join(said))
        state = f"[{colour}]{detail['state'].lower()}[/]"
        return f"run [bold]{node.version}[/] {detail['kind']} {escape(node.name)} {state}  [dim]{told}[/]"
    if node.kind == "promotion":
        return f"[green]promotion[/] {escape(node.name)} → {escape(node.version)} [dim]{detail['at'][:19]}[/]"
    version = f"@{escape(node.version)}" if node.version else ""
    rows = f"  [dim]{detail['rows']:,} rows[/]" if isinstance(detail.get("rows"), int) else ""
    return f"{node.kind} [bold]{escape(node.name)}[/]{version}{rows}"


def add_to(app: typer.Typer) -> None:
    app.command()(lineage)
