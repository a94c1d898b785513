"""`manta run`, `runs`, `show`, `logs`, `stop`."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.table import Table

from manta.cli import report
from manta.cli.display import age, console, gates_table, runs_table
from manta.cli.door import AsJson, platform, print_json
from manta.cli.errors import INTERRUPTED, STOPPED, show
from manta.client import Client, RunHandle
from manta.client.display import Follower, said, status_line
from manta.client.verbs import failure
from manta.errors import InvalidInput, Unavailable
from manta.ledger.runs import Run, State

POLL_SECONDS = 0.4
STOP_MARGIN_SECONDS = 60.0  # beyond the job's own grace: the controller and the engine need some too
DEFAULT_GRACE_SECONDS = 20.0

RunId = Annotated[int, typer.Argument(metavar="ID")]


def run(
    name: Annotated[str, typer.Argument(help="A job of the project: see `manta plan`.")],
    param: Annotated[list[str] | None, typer.Option(help="k=v; v is JSON, or else text.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Stream its log until it ends; exit with its outcome.")
    ] = False,
    key: Annotated[
        str | None, typer.Option(help="The same key again is the same run: for CI steps that are retried.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="With --wait: write a JUnit file.")] = None,
    summary: Annotated[
        Path | None, typer.Option(help="With --wait: add a summary in Markdown, e.g. $GITHUB_STEP_SUMMARY.")
    ] = None,
    stop_on_interrupt: Annotated[
        bool, typer.Option("--stop-on-interrupt", help="Ctrl-C or SIGTERM stops the run too: for CI.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Submit one run of a job, whether or not what it made is fresh.

    Exit status with --wait: 0 it SUCCEEDED, 1 it FAILED, 3 it was STOPPED; 130 interrupted, and it goes on.
    """
    if (junit or summary or stop_on_interrupt) and not wait:
        raise InvalidInput("--junit, --summary and --stop-on-interrupt go with --wait", hint="add --wait")
    client = platform()
    submitted = client.submit(name, _params(param or []), key=key)
    if not wait:
        told_of(submitted.data, as_json)
        return
    if stop_on_interrupt:
        signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        follow(client, submitted)
        ended = submitted.data
        _write_reports(client, ended, junit, summary)
    except KeyboardInterrupt:
        _interrupted(client, submitted.id, stop_on_interrupt)
        raise typer.Exit(INTERRUPTED) from None
    if ended.state is not State.SUCCEEDED:
        show(failure([ended]))
        raise typer.Exit(STOPPED if ended.state is State.STOPPED else 1)


def told_of(found: Run, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    state = f"{found.state} {said(found)}" if found.state.ended else str(found.state)
    told = " and is being stopped" if found.stop_requested and not found.state.ended else ""
    console.print(f"run {found.id} ({found.job}) is {state}{told}".rstrip(), highlight=False, markup=False)


def _as_interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def follow(client: Client, run: RunHandle) -> None:
    with Follower() as follower:
        for look in client.watch(run.id):
            follower(look.run, look.printed)


def _write_reports(client: Client, ended: Run, junit: Path | None, summary: Path | None) -> None:
    if junit:
        junit.parent.mkdir(parents=True, exist_ok=True)
        junit.write_text(report.junit(ended, client.logs(ended.id)), encoding="utf-8")
    if summary:
        report.append(summary, report.summary(ended, client.url))


def _interrupted(client: Client, run_id: int, stop_it: bool) -> None:
    if stop_it:
        client.stop(run_id)
        print(f"\ninterrupted; run {run_id} is being stopped", file=sys.stderr)
    else:
        print(
            f"\ninterrupted; run {run_id} goes on: `manta logs -f {run_id}` follows it, "
            f"`manta stop {run_id}` stops it",
            file=sys.stderr,
        )


def runs(
    job: Annotated[str | None, typer.Option(help="Only this job's.")] = None,
    active: Annotated[bool, typer.Option("--active", help="Only those that have not ended.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="The most to list.")] = 20,
    before: Annotated[int | None, typer.Option(help="Only those before this run: the next page.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    found = platform().runs(job=job, active=active, before=before, limit=limit + 1)
    more, found = len(found) > limit, found[:limit]
    if as_json:
        print_json(found)
    elif found:
        console.print(runs_table(found))
        if more:
            print(f"older ones: manta runs --before {found[-1].id}")
    else:
        console.print(
            "no such runs" if job or active or before else "no runs yet: `manta apply` sets some going"
        )


def show_run(
    run_id: RunId,
    as_json: AsJson = False,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="All that decides what it makes, as JSON, and one id of it.")
    ] = False,
) -> None:
    """Show one run: how it went, attempt by attempt, what it read and what it made."""
    client = platform()
    if manifest:
        print_json(client.manifest(run_id))
        return
    found = client.look(run_id)
    attempts, events = client.attempts(run_id), client.events(run_id)
    if as_json:
        tries = [each.model_dump(mode="json") for each in attempts]
        happened = [each.model_dump(mode="json") for each in events]
        print_json(
            found.model_dump(mode="json")
            | {"attempts": tries, "events": happened, "manifest": client.manifest(run_id).id}
        )
        return
    console.print(status_line(found))
    table = Table(box=None, show_header=False, padding=(0, 1))
    by = f"{found.submitted_by}, {age(found.created_at)}"
    table.add_row("submitted", "", f"by {by}" if found.submitted_by else age(found.created_at))
    table.add_row("manifest", "", f"{client.manifest(run_id).id[:16]} (--manifest: all of it)")
    for each in attempts:
        ended = f"{each.end_reason or ''} {each.message.splitlines()[0] if each.message else ''}".strip()
        table.add_row("attempt", str(each.number), ended or "at work")
    for name, versions in (("read", found.inputs), ("made", found.outputs)):
        for version in versions:
            table.add_row(name, version.kind, f"{version.name}@{version.version}")
    for event in events:
        at = event.at.astimezone().strftime("%H:%M:%S")
        table.add_row("event", at, f"{event.what} {event.detail.get('message', '')}".strip())
    console.print(table, highlight=False)
    if gates := found.metrics.get("gates"):
        console.print(gates_table(gates), highlight=False)


def logs(
    run_id: RunId,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run has ended.")] = False,
    attempt: Annotated[
        int | None, typer.Option(min=1, help="Of this attempt; the last unless given.")
    ] = None,
) -> None:
    """Print what a run has printed."""
    client = platform()
    if not follow:
        print(client.logs(run_id, attempt=attempt), end="")
        return
    if attempt is not None:
        raise InvalidInput("--follow shows every attempt", hint="leave out --attempt, or --follow")
    for look in client.watch(run_id):
        print(look.printed, end="", flush=True)


def stop(
    run_id: RunId,
    wait: Annotated[bool, typer.Option(help="Wait until it has ended.")] = True,
    as_json: AsJson = False,
) -> None:
    """Stop a run, and wait until it has ended. It is asked first, and killed after the grace of its job."""
    client = platform()
    stopped = client.stop(run_id)
    if wait:
        stopped = _until_ended(client, stopped)
    told_of(stopped, as_json)


def _until_ended(client: Client, run: Run) -> Run:
    grace = float(run.definition.get("stop_grace") or DEFAULT_GRACE_SECONDS)
    until = time.monotonic() + grace + STOP_MARGIN_SECONDS
    while not run.state.ended:
        if time.monotonic() > until:
            raise Unavailable(
                f"run {run.id} is still {run.state}, {grace + STOP_MARGIN_SECONDS:.0f} s after it was asked "
                "to stop",
                hint="it is stopped when its cluster answers: `manta status` shows what is up",
            )
        time.sleep(POLL_SECONDS)
        run = client.look(run.id, patience=STOP_MARGIN_SECONDS)
    return run


def _params(given: list[str]) -> dict[str, Any]:
    params: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals:
            raise InvalidInput(f"--param {each!r} is not k=v", hint="for example --param epochs=3")
        try:
            params[name] = json.loads(text)
        except ValueError:
            params[name] = text
    return params


def add_to(app: typer.Typer) -> None:
    app.command()(run)
    app.command()(runs)
    app.command("show")(show_run)
    app.command()(logs)
    app.command()(stop)
