"""`manta leaderboard`: the trainings of a model, the best first."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json
from manta.client.display import COLOURS, seconds
from manta.ledger.leaderboard import Standing


def leaderboard(
    model: Annotated[str, typer.Argument(help="A model: see `manta models`.")],
    metric: Annotated[
        str | None, typer.Option(help="The figure to rank by: roc_auc, or rmse of a regression.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Also replays, and what was never measured: at work, failed.")
    ] = False,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Rank the trainings of a model by a figure, the best first; refused ones are among them."""
    with platform() as client:
        found = client.leaderboard(model, metric, everything=everything, limit=limit)
    if as_json:
        print_json(found)
    elif found:
        console.print(_table(found, found[0].ranked_by), highlight=False)
    else:
        console.print(f"no training of {model} has been measured: --all lists the others", highlight=False)


def _table(found: list[Standing], metric: str) -> Table:
    """Narrow enough for 80 columns; who trained it and on which features, `--json` and `manta show` tell."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("", justify="right")
    for name in (metric, "version", "alias", "training", "trainer", "gates", "run", "when"):
        table.add_column(name, no_wrap=name != "gates")
    table.add_column("took", justify="right", no_wrap=True)
    for each in found:
        value = each.metrics.get(metric)
        table.add_row(
            str(each.rank),
            "-" if value is None else f"{value:.4f}",
            Text(each.version or str(each.state).lower(), style="" if each.version else COLOURS[each.state]),
            ", ".join(each.aliases),
            each.job,
            each.trainer,
            _gates(each),
            str(each.run),
            age(each.at),
            seconds(each.seconds),
        )
    return table


def _gates(each: Standing) -> str:
    if not each.gates:
        return "-"
    refused = f": {'; '.join(each.refused_by)} refused" if each.refused_by else ""
    return f"{each.gates_passed}/{each.gates}{refused}"


def add_to(app: typer.Typer) -> None:
    app.command()(leaderboard)
