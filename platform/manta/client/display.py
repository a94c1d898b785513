"""How a run looks while it works, and what it drew: in a notebook, in a terminal, and in a log file."""

from __future__ import annotations

import base64
import html
import io
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from manta.ledger.runs import Run, State

COLOURS = {
    State.QUEUED: "dim",
    State.STARTING: "yellow",
    State.RUNNING: "cyan",
    State.PREEMPTING: "yellow",
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.STOPPED: "magenta",
}
LOG_LINES = 8
WIDTH = 100


def seconds(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.1f} min"


def took(run: Run) -> float | None:
    """Seconds from the start of its last attempt to its end, or to now."""
    if run.seconds is None and run.started_at:
        return (datetime.now(UTC) - run.started_at).total_seconds()
    return run.seconds


def made(run: Run) -> str:
    return ", ".join(f"{version.name}@{version.version}" for version in run.outputs)


def said(run: Run) -> str:
    """The one thing to know of it now: how far it is, what it made, or why it ended."""
    if run.state in (State.FAILED, State.STOPPED):
        return run.message.splitlines()[0] if run.message else str(run.end_reason or "")
    if run.state is State.SUCCEEDED:
        return made(run)
    if run.state is State.QUEUED and run.message:
        return run.message.splitlines()[0]
    progress = run.progress
    if run.state is State.RUNNING and progress and progress.total > 0:
        return f"{progress.done:g} of {progress.total:g} {progress.unit}".rstrip()
    return progress.unit if run.state is State.RUNNING and progress else ""


def bar(run: Run, width: int = 24) -> RenderableType:
    if run.state is not State.RUNNING:
        return ""
    progress = run.progress
    known = progress is not None and progress.total > 0
    return ProgressBar(
        total=progress.total if known and progress else None,
        completed=progress.done if known and progress else 0,
        pulse=not known,
        width=width,
    )


def status_line(run: Run) -> Table:
    """Run, state, bar, time, and what is to be known, on one line."""
    line = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    for _ in range(4):
        line.add_column(no_wrap=True)
    line.add_column(no_wrap=True, overflow="ellipsis")
    state = Text(str(run.state).lower(), style=f"bold {COLOURS[run.state]}")
    told = Text(said(run), style="red" if run.state is State.FAILED else "")
    line.add_row(Text(f"run {run.id} {run.job}", style="bold"), state, bar(run), seconds(took(run)), told)
    return line


def plain_line(run: Run) -> str:
    words = [f"manta: run {run.id} {run.job} {run.state}", seconds(run.seconds), said(run)]
    return "  ".join(word for word in words if word)


def in_notebook() -> bool:
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


class Follower:
    """Told each look at a run, shows it. In a notebook: state, bar, time and the last lines that were
    printed, in one place. In a terminal: the lines as they come, and the state below them. Elsewhere (CI, a
    file): the lines as they come, and one line for each change of state.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file or sys.stdout
        self._live: Live | None = None
        self._cell: Any = None
        self._lines: deque[str] = deque(maxlen=LOG_LINES)
        self._state: tuple[State, int] | None = None
        self._unfinished = ""

    def __enter__(self) -> Self:
        if self._file is sys.stdout and in_notebook():
            from IPython.display import display

            self._cell = display(_Html(""), display_id=True)
        elif self._file.isatty():
            console = Console(file=self._file)
            self._live = Live(console=console, refresh_per_second=8, redirect_stdout=False)
            self._live.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._unfinished:
            self._print("\n")
        if self._live:
            self._live.stop()

    def __call__(self, run: Run, printed: str) -> None:
        if self._cell is not None:
            self._show_in_cell(run, printed)
        elif self._live is not None:
            self._live.update(status_line(run), refresh=bool(printed))
            self._print(printed)
        else:
            self._print(printed)
            if self._state != (run.state, run.attempt):
                self._state = (run.state, run.attempt)
                self._print("\n" if self._unfinished else "")
                print(plain_line(run), file=self._file, flush=True)

    def _print(self, printed: str) -> None:
        """Whole lines, as they come; the rest waits for its end."""
        *whole, self._unfinished = (self._unfinished + printed).split("\n")
        if not whole:
            return
        text = "\n".join(whole)
        if self._live is not None:
            self._live.console.print(Text.from_ansi(text))
        else:
            print(text, file=self._file, flush=True)

    def _show_in_cell(self, run: Run, printed: str) -> None:
        *whole, self._unfinished = (self._unfinished + printed).split("\n")
        self._lines.extend(whole)
        lines = [*self._lines, self._unfinished] if self._unfinished else list(self._lines)
        log = Text("\n").join(Text.from_ansi(line, style="dim") for line in lines)
        log.no_wrap, log.overflow = True, "ellipsis"
        self._cell.update(_Html(as_html(Group(status_line(run), log) if lines else status_line(run))))


def as_html(shown: RenderableType) -> str:
    """What a terminal would show, as HTML."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, force_jupyter=False)
    console.print(shown)
    frame = '<pre style="font-family:monospace;line-height:1.35;overflow-x:auto">{code}</pre>'
    return console.export_html(inline_styles=True, code_format=frame)


class _Html:
    """Something that a notebook shows as HTML, and anything else as nothing."""

    def __init__(self, content: str) -> None:
        self._content = content

    def _repr_html_(self) -> str:
        return self._content

    def __repr__(self) -> str:
        return ""


class Plots(Mapping[str, bytes]):
    """Figures by name, as PNG. A notebook shows them side by side."""

    def __init__(self, figures: Mapping[str, bytes]) -> None:
        self._figures = dict(figures)

    def __getitem__(self, name: str) -> bytes:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def __repr__(self) -> str:
        return f"<plots {', '.join(self._figures)}>"

    def _repr_html_(self) -> str:
        images = (
            f'<img alt="{html.escape(name)}" style="width:32%;min-width:260px" '
            f'src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for name, png in self._figures.items()
        )
        return f"<div>{''.join(images)}</div>"
