"""How the command line tells an error, and with which status it exits."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from manta.errors import (
    Conflict,
    Forbidden,
    InvalidInput,
    MantaError,
    NotFound,
    TooMany,
    Unauthenticated,
    Unavailable,
)

INTERRUPTED = 130
STOPPED = 3
# The first that fits; what fits none exits with 1, as a run that FAILED does.
STATUSES: tuple[tuple[type[MantaError], int], ...] = (
    (InvalidInput, 2),
    (NotFound, 4),
    (Conflict, 5),
    (Unauthenticated, 6),
    (Forbidden, 6),
    (TooMany, 7),
    (Unavailable, 7),
)
EXPLAINED = (
    "Exit status: 0 done · 1 failed · 2 what was given cannot be used · 3 the run was stopped · "
    "4 no such thing · 5 somebody else was first · 6 not allowed · 7 the platform does not answer · "
    "130 interrupted"
)


def status_of(error: MantaError) -> int:
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 1)


def show(error: MantaError) -> None:
    """On standard error: what went wrong, and the next step."""
    console = Console(stderr=True)
    console.print(f"[bold red]error[/] [dim]{error.code}[/]  {escape(error.message)}", highlight=False)
    if error.hint:
        console.print(f"  [bold]next:[/] {escape(error.hint)}", highlight=False)
