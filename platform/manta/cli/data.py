"""`manta data`: the datasets, their versions, and what is in them. They are read straight from the lake."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from manta.cli.display import age, console
from manta.cli.door import AsJson, platform, print_json
from manta.client.data import datasets
from manta.errors import InvalidInput, MantaError
from manta.settings import Settings
from manta.words import plain, short, size

if TYPE_CHECKING:
    from manta.client.data import Datasets

data = typer.Typer(no_args_is_help=True, help="Datasets: what there is, by name and version.")

Name = Annotated[str, typer.Argument(help="A dataset; NAME@VERSION for another version than the newest.")]
Version = Annotated[str | None, typer.Option("--version", help="A version; the newest unless given.")]
AsOf = Annotated[str | None, typer.Option(help="The newest version by then: 2026-11-17, or with a time.")]
Wanted = Annotated[int, typer.Option("--rows", min=0, help="How many rows.")]
CELL = 28  # characters


def here() -> Datasets:
    return datasets(Settings.load())


def with_ledger() -> Datasets:
    """The same, where the platform is up: it knows more of who made a version."""
    try:
        return datasets(Settings.load(), platform())
    except MantaError:
        return here()


@data.command("list")
def list_datasets(as_json: AsJson = False) -> None:
    """List the datasets, with their newest versions."""
    found = here().list()
    if as_json:
        print_json(found)
        return
    if not found:
        console.print("no dataset yet: `manta apply` makes the project's")
        return
    table = _table("dataset", "version", "made", "rows", "columns", "size", "refused")
    for each in found:
        refused = f"[yellow]{each.quarantined:,}[/]" if each.quarantined else ""
        counts = (f"{each.rows:,}", str(each.columns), size(each.bytes), refused)
        table.add_row(each.name, str(each.version), age(each.at), *counts)
    console.print(table, highlight=False)


@data.command("show")
def show_dataset(
    name: Name,
    file: Annotated[Path | None, typer.Argument(help="With --plot: a .png or .html file to write.")] = None,
    version: Version = None,
    as_of: AsOf = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw how the values of each column lie.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show a version: where it came from, and what each column holds."""
    if file and not plot:
        raise InvalidInput(f"what is {file} for?", hint="--plot writes a picture into it")
    shown = here().show(name, version, as_of=as_of)
    if file:
        shown.plot(file)
    if as_json:
        print_json(shown)
        return
    console.print(f"[bold]{escape(shown.title())}[/]  {escape(shown.facts())}", highlight=False)
    headings = ["column", "type", "null", "distinct", *(["spread"] if plot else []), "values"]
    table = _table(*headings)
    for line in shown.lines():
        table.add_row(*(escape(line[heading]) for heading in headings))
    console.print(table, highlight=False)
    if file:
        console.print(f"drawn in {escape(str(file))}", highlight=False)


@data.command("history")
def list_versions(
    name: Name,
    limit: Annotated[int, typer.Option(help="The most to list.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List the versions of a dataset, newest first."""
    found = here().history(name)
    if as_json:
        print_json(found[:limit])
        return
    table = _table("version", "committed", "by", "run", "mode", "rows", "refused", "total")
    for each in found[:limit]:
        counts = ("" if count is None else f"{count:,}" for count in (each.rows, each.refused, each.total))
        run = "" if each.run is None else str(each.run)
        at = f"{each.at:%Y-%m-%d %H:%M:%S} UTC"
        table.add_row(str(each.version), at, escape(each.by), run, each.mode, *counts)
    console.print(table, highlight=False)
    if len(found) > limit:
        console.print(f"[dim]… and {len(found) - limit} older: --limit[/]")


@data.command("diff")
def show_difference(
    name: Annotated[str, typer.Argument(help="A dataset.")],
    before: Annotated[str, typer.Argument(help="A version.")],
    after: Annotated[str | None, typer.Argument(help="Another; the newest unless given.")] = None,
    key: Annotated[
        list[str] | None, typer.Option(help="A column that names a row; the contract's key unless given.")
    ] = None,
    rows: Wanted = 5,
    as_json: AsJson = False,
) -> None:
    """Show what changed from one version to another: columns, and rows by their key."""
    found = with_ledger().diff(name, before, after, key=key, sampled=rows)
    if as_json:
        print(json.dumps(plain(found.model_dump()), indent=1))
        return
    by = f"by {', '.join(found.key)}" if found.key else "whole rows compared"
    counts = f"{found.rows_before:,} → {found.rows_after:,} rows"
    console.print(
        f"[bold]{escape(found.name)}[/] {found.before} → {found.after}  {counts}, {escape(by)}",
        highlight=False,
    )
    if found.same:
        console.print("the same rows and columns")
        return
    for column, kind in found.columns_added.items():
        console.print(f"[green]+[/] column {escape(column)}: {escape(kind)}", highlight=False)
    for column, kind in found.columns_removed.items():
        console.print(f"[red]-[/] column {escape(column)}: {escape(kind)}", highlight=False)
    for column, (old, new) in found.columns_changed.items():
        told = f"{old} → {new}, values not compared"
        console.print(f"[yellow]~[/] column {escape(column)}: {escape(told)}", highlight=False)
    _told("[green]+[/]", found.added, "added", map(_row, found.sample_added))
    _told("[red]-[/]", found.removed, "removed", map(_row, found.sample_removed))
    changes = (
        f"{_row(each.key)}: "
        + ", ".join(f"{name} {_cell(old)} → {_cell(new)}" for name, (old, new) in each.values.items())
        for each in found.sample_changed
    )
    _told("[yellow]~[/]", found.changed, "changed", changes)
    if found.changed_in:
        most = sorted(found.changed_in.items(), key=lambda item: -item[1])
        told = ", ".join(f"{column} in {count:,}" for column, count in most)
        console.print(f"  [dim]changed: {escape(told)}[/]", highlight=False)


@data.command("sample")
def show_sample(
    name: Name,
    rows: Wanted = 10,
    version: Version = None,
    seed: Annotated[int, typer.Option(help="Another seed, other rows.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Show some rows, chosen by chance."""
    _rows(here().sample(name, rows, version, seed=seed), as_json)


@data.command("quarantine")
def show_quarantine(
    name: Name,
    version: Version = None,
    rows: Wanted = 20,
    as_json: AsJson = False,
) -> None:
    """Show the rows that were refused, each with its reason: for the newest content, or for one version."""
    found = here().quarantine(name, version)
    _rows(found.head(rows), as_json)
    if not as_json and found.height > rows:
        console.print(f"[dim]… of {found.height:,}: --rows[/]", highlight=False)


@data.command("compact")
def compact_dataset(name: Annotated[str, typer.Argument(help="A dataset.")], as_json: AsJson = False) -> None:
    """Put the newest version's rows into fewer files; no row changes, and older versions stay."""
    found = here().compact(name)
    if as_json:
        print_json(found)
    elif found.before == found.after:
        console.print(f"{found.name}: nothing to do: its files are {found.before}", highlight=False)
    else:
        made = f"{found.before} files → {found.after}, as version {found.version}"
        console.print(f"{found.name}: {made}", highlight=False)


@data.command("sql")
def ask(
    query: Annotated[str, typer.Argument(help="One SELECT; - for standard input.")],
    as_of: AsOf = None,
    memory: Annotated[str, typer.Option(help="What it may use before it spills to disk, such as 2GB.")] = "",
    rows: Annotated[int, typer.Option("--rows", min=0, help="The most rows shown as a table.")] = 40,
    explain: Annotated[bool, typer.Option("--explain", help="Show how it would be done.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all rows as CSV.")] = False,
    parquet: Annotated[Path | None, typer.Option(help="Write all rows into a Parquet file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Query all datasets with SQL: `select … from flights f join "flights@3" …`. Nothing can be written."""
    if sum(map(bool, (explain, as_csv, parquet, as_json))) > 1:
        raise InvalidInput("--explain, --csv, --parquet and --json exclude each other", hint="give one")
    answer = here().sql(sys.stdin.read() if query == "-" else query, as_of=as_of, memory=memory)
    if explain:
        print(answer.explain())
    elif parquet:
        console.print(f"{answer.write(parquet):,} rows in {escape(str(parquet))}", highlight=False)
    elif as_json:
        _print_all_json(row for batch in answer.batches() for row in batch.to_pylist())
    elif as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        batches = answer.batches()
        writer.writerow(batches.schema.names)
        for batch in batches:
            writer.writerows(map(_csv, zip(*(column.to_pylist() for column in batch.columns), strict=True)))
    else:
        found = answer.head(rows + 1)
        _rows(found.head(rows), as_json=False)
        if found.height > rows:
            console.print("[dim]… and more: --rows, --csv, --parquet[/]")


# --- how rows are shown -------------------------------------------------------------------------------


def _rows(frame: Any, as_json: bool) -> None:
    """As many columns as the terminal has room for."""
    if as_json:
        _print_all_json(frame.iter_rows(named=True))
        return
    cells = [[_cell(value) for value in frame[name].to_list()] for name in frame.columns]
    names = [short(name, CELL) for name in frame.columns]
    widths = [max(map(len, [name, *held])) + 2 for name, held in zip(names, cells, strict=True)]
    fitting = next((i for i in range(len(names)) if sum(widths[: i + 1]) > console.width), len(names))
    fitting = max(fitting, 1)
    table = _table(*map(escape, names[:fitting]))
    for row in zip(*cells[:fitting], strict=True):
        table.add_row(*map(escape, row))
    console.print(table, highlight=False)
    if fitting < len(names):
        console.print(f"[dim]… and columns {escape(', '.join(names[fitting:]))}[/]", highlight=False)


def _print_all_json(rows: Iterable[dict[str, Any]]) -> None:
    """One list, written as the rows come."""
    before = "["
    for row in rows:
        print(before, json.dumps(plain(row)), sep="\n" if before == "[" else ",\n", end="")
        before = ""
    print("\n]" if before != "[" else "[]")


def _csv(row: Iterable[Any]) -> Iterator[Any]:
    for value in map(plain, row):
        yield json.dumps(value) if isinstance(value, (dict, list, bool)) else value


def _told(sign: str, count: int, what: str, rows: Iterable[str]) -> None:
    if count:
        console.print(f"{sign} {count:,} row{'' if count == 1 else 's'} {what}", highlight=False)
        for row in rows:
            console.print(f"    [dim]{escape(row)}[/]", highlight=False, no_wrap=True, overflow="ellipsis")


def _row(values: dict[str, Any]) -> str:
    return ", ".join(f"{name}={_cell(value)}" for name, value in values.items())


def _cell(value: Any) -> str:
    return "null" if value is None else short(value, CELL)


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim")
    for name in columns:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    return table


def add_to(app: typer.Typer) -> None:
    app.add_typer(data, name="data")
