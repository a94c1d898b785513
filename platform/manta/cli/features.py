"""`manta features`: the feature services, what is online of them, and whether it is what it should be."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json
from manta.client import Client
from manta.client.display import Follower
from manta.client.features import Features
from manta.client.verbs import failure
from manta.errors import InvalidInput, NotFound
from manta.ledger.parity import MEANING, NEXT, Cause, ParityReport, short
from manta.ledger.runs import State

features = typer.Typer(
    no_args_is_help=True, help="Feature services: what is online, how fresh, and whether right."
)

Service = Annotated[str | None, typer.Argument(help="A feature service; the only one, unless given.")]
BAR = 28  # characters
COLOUR = {
    Cause.TTL: "yellow",
    Cause.LATE: "cyan",
    Cause.TRANSFORM: "red",
    Cause.TYPE: "magenta",
    Cause.JOIN: "blue",
    Cause.STALE: "bright_black",
}


@features.command("list")
def list_services(as_json: AsJson = False) -> None:
    """List the feature services that are registered, and how old what is online of them is."""
    found = platform().features.services()
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no feature service yet: `manta apply` registers the project's")
        return
    table = _table("service", "version", "views", "features", "on demand", "online")
    for each in found:
        online = age(each.materialized) if each.materialized else "[yellow]not yet[/]"
        counts = (str(len(each.views)), str(len(each.features)), ", ".join(each.on_demand))
        table.add_row(escape(each.name), each.version[:8], *counts, online)
    console.print(table, highlight=False)


@features.command("show")
def show_service(service: Service = None, as_json: AsJson = False) -> None:
    """Show a service: its views and keys, its features with their types, and what uses it."""
    client = platform()
    found = client.features.show(_service(client.features, service))
    if as_json:
        print_json(found)
        return
    users = client.features.users(found.name)
    online = f"online since {age(found.materialized)}" if found.materialized else "not online yet"
    console.print(f"[bold]{escape(found.name)}[/]  version {found.version}, {online}", highlight=False)
    table = _table("view", "keys", "ttl", "dataset", "features")
    for view in found.views:
        read = (
            f"{view.dataset}@{found.datasets[view.dataset]}"
            if view.dataset in found.datasets
            else view.dataset
        )
        pushed = " (pushed)" if view.pushed else ""
        keys = ", ".join(view.keys) or "none"
        table.add_row(view.name + pushed, keys, _span(view.ttl_seconds), read, _typed(view.features))
    for name, given in found.on_demand.items():
        table.add_row(name, "", "", "on demand", _typed(given))
    console.print(table, highlight=False)
    if found.request:
        console.print(f"takes with each request: {escape(_typed(found.request))}", highlight=False)
    if users:
        console.print(f"used by {escape(', '.join(users))}", highlight=False)


@features.command("freshness")
def show_freshness(service: Service = None, as_json: AsJson = False) -> None:
    """Show by view the newest event time, in the lake and online, beside the TTL."""
    client = platform()
    name = _service(client.features, service)
    found = client.features.freshness(name)
    if as_json:
        print_json(found)
        return
    now = datetime.now(UTC)
    table = _table(
        "view", "ttl", "newest in the lake", "newest online", "keys seen", "missing", "behind", "too old"
    )
    for each in found:
        old = _seconds_since(each.online, now)
        expired = each.ttl_seconds and old is not None and old > each.ttl_seconds
        online = _at(each.online)
        table.add_row(
            escape(each.view),
            _span(each.ttl_seconds),
            _at(each.offline),
            f"[yellow]{online}[/]" if expired else online,
            str(each.keys),
            *(f"[red]{count}[/]" if count else "0" for count in (each.missing, each.behind)),
            f"[yellow]{each.expired}[/]" if each.expired else "0",
        )
    console.print(table, highlight=False)
    if any(each.missing or each.behind for each in found):
        console.print(f"the lake has what is not online: `manta features materialize {escape(name)}`")


@features.command("get")
def get_values(
    given: Annotated[
        list[str], typer.Argument(metavar="[SERVICE] KEY=VALUE…", help="Keys and request fields.")
    ],
    at: Annotated[
        str | None, typer.Option(help="When it is asked: 2013-12-31T18:00; now, unless given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look values up online, as an endpoint would."""
    client = platform()
    named = given[0] if "=" not in given[0] else None
    row = _pairs(given[1:] if named else given)
    when = _instant(at) if at else None
    service = client.features.show(_service(client.features, named))
    (found,) = client.features.get(service.name, [row], when)
    if as_json:
        print_json(found)
        return
    table = _table("view", "feature", "value", "as of", "")
    places = [
        (view.name, name) for view in service.views for name in view.features if name in service.features
    ]
    places += [(view, name) for view, given_ in service.on_demand.items() for name in given_]
    for view, name in places:
        state = found.status.get(view, "")
        shown = "" if state in ("", "PRESENT") else f"[yellow]{state.lower().replace('_', ' ')}[/]"
        value = found.values.get(name)
        told = "[dim]missing[/]" if value is None else escape(str(value))
        table.add_row(escape(view), escape(name), told, _at(found.fresh_as_of.get(view)), shown)
    console.print(table, highlight=False)


@features.command("parity")
def show_parity(
    service: Service = None,
    of: Annotated[str | None, typer.Option("--service", help="The same as the argument.")] = None,
    keys: Annotated[int, typer.Option(min=1, help="How many rows to compare.")] = 1000,
    seed: Annotated[int, typer.Option(help="Another seed samples other rows.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw it into this .png file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare what is online with the as-of join, and name what differs. Exit status 1: something does."""
    client = platform()
    found = client.features.parity(_service(client.features, service or of), keys=keys, seed=seed)
    if plot:
        from manta.client.parity_plot import draw

        plot.write_bytes(draw(found))
    if as_json:
        print_json(found)
    else:
        show_report(found)
        if plot:
            console.print(f"drawn in {escape(str(plot))}", highlight=False)
    if not found.clean:
        raise typer.Exit(1)


def show_report(found: ParityReport) -> None:
    """What differs, with a bar for each feature; or that nothing does."""
    of = f"{found.values:,} values of {found.rows:,} rows as of {found.watermark:%Y-%m-%d %H:%M:%S} UTC"
    verdict = "[green]the same[/]" if found.clean else f"[red]{found.skewed:,} differ[/]"
    console.print(
        f"[bold]{escape(found.service)}[/]  {of}: {verdict}  [dim]{found.seconds:.1f} s[/]",
        highlight=False,
    )
    skewed: dict[str, dict[Cause, int]] = {}
    for each in found.found:
        by = skewed.setdefault(f"{each.view}.{each.feature}", {})
        by[each.cause] = by.get(each.cause, 0) + each.values
    table = _table("feature", "compared", "differ", "", "cause")
    for name, compared in sorted(
        found.compared.items(), key=lambda pair: -sum(skewed.get(pair[0], {}).values())
    ):
        by = skewed.get(name, {})
        if skewed and not by:
            continue
        differ = f"[red]{sum(by.values()):,}[/]" if by else "0"
        table.add_row(escape(name), f"{compared:,}", differ, _bar(by, compared), ", ".join(by))
    console.print(table, highlight=False)
    if found.clean:
        return
    if same := len(found.compared) - len(skewed):
        console.print(f"[dim] and {same} features without a difference[/]", highlight=False)
    examples = _table("cause", "feature", "offline", "online", "keys", "asked at")
    for each in found.found:
        told = each.example
        cause = f"{each.cause} ← {each.through}" if each.through else str(each.cause)
        keys = " ".join(f"{name}={value}" for name, value in told.keys.items())
        values = (short(told.offline), short(told.online), short(keys))
        examples.add_row(cause, f"{each.view}.{each.feature}", *map(escape, values), _at(told.at))
    console.print(examples, highlight=False)
    for cause in found.causes:
        console.print(f"[{COLOUR[cause]}]{cause}[/]: {MEANING[cause]}", highlight=False)
        for each in found.found:
            if each.cause is cause and each.note and not each.through:
                console.print(f"  {escape(each.note)}", highlight=False)
                break
        console.print(f"  next: {escape(NEXT[cause])}", highlight=False)


@features.command("materialize")
def materialize(service: Service = None) -> None:
    """Put the newest values of a service online, and follow the run."""
    client = platform()
    _run_each(client, client.features.jobs(_service_of_project(client, service)))


@features.command("backfill")
def backfill(service: Service = None) -> None:
    """Make the feature tables behind a service anew, from all of their inputs, then put it online."""
    client = platform()
    _run_each(client, client.features.jobs(_service_of_project(client, service), backfill=True))


def _run_each(client: Client, jobs: Iterable[str]) -> None:
    """One after the other: each reads what those before it made."""
    for job in jobs:
        submitted = client.submit(job)
        with Follower() as follower:
            for look in client.watch(submitted.id):
                follower(look.run, look.printed)
        if submitted.data.state is not State.SUCCEEDED:
            raise failure([submitted.data])


def _service(found: Features, name: str | None) -> str:
    """Raises:
    NotFound, InvalidInput: none is registered, or several are and none was named.
    """
    if name:
        return name
    return _only([each.name for each in found.services()])


def _service_of_project(client: Client, name: str | None) -> str:
    return name or _only([each.name for each in client.features.services()])


def _only(names: list[str]) -> str:
    if not names:
        raise NotFound("no feature service is registered yet", hint="`manta apply` registers the project's")
    if len(names) > 1:
        raise InvalidInput("which feature service?", hint=f"one of {', '.join(sorted(names))}")
    return names[0]


def _pairs(given: list[str]) -> dict[str, str]:
    wrong = [each for each in given if "=" not in each]
    if wrong:
        raise InvalidInput(
            f"{wrong[0]!r} is no KEY=VALUE", hint="e.g. manta features get delay_v1 origin=EWR"
        )
    return {name: value for name, _, value in (each.partition("=") for each in given)}


def _instant(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidInput(
            f"{text!r} is no time", hint="write 2013-12-31T18:00:00Z, or with an offset"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _typed(given: dict[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in given.items())


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:g} {unit}"
    return f"{seconds:g} s" if seconds else "for ever"


def _at(at: datetime | None) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else ""


def _seconds_since(at: datetime | None, now: datetime) -> float | None:
    return (now - at).total_seconds() if at else None


def _bar(by: dict[Cause, int], of: int) -> Text:
    """A share of the values for each cause; what differs at all is seen."""
    bar = Text()
    for cause, count in by.items():
        bar.append("█" * max(1, round(BAR * count / max(of, 1))), style=COLOUR[cause])
    return bar.append("·" * max(0, BAR - len(bar)), style="dim")


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def add_to(app: typer.Typer) -> None:
    app.add_typer(features, name="features")
