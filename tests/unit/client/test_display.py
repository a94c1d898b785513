"""How a run that is followed looks where there is neither a notebook nor a terminal: in CI's log."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.progress_bar import ProgressBar

from manta.client.display import Follower, Plots, as_html, bar, status_line
from manta.ledger.runs import Progress, Run, State, Version

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)


def run(state: State, **fields: Any) -> Run:
    given: dict[str, Any] = {
        "id": 7,
        "project": "flights",
        "job": "delay",
        "kind": "training",
        "definition": {},
        "fingerprint": "f",
        "package": "p",
        "state": state,
        "attempt": 1,
        "created_at": BEGAN,
    }
    return Run(**(given | fields))


def ended(**fields: Any) -> Run:
    made = (Version(kind="model", name="delay", version="3"),)
    return run(
        State.SUCCEEDED, started_at=BEGAN, ended_at=BEGAN + timedelta(seconds=3), outputs=made, **fields
    )


def test_lines_come_whole_and_states_once() -> None:
    file = io.StringIO()
    with Follower(file) as follower:
        follower(run(State.QUEUED, attempt=0), "")
        follower(run(State.RUNNING), "")
        follower(run(State.RUNNING), "one\ntw")
        follower(run(State.RUNNING), "o\n")
        follower(ended(), "three")
    assert file.getvalue().splitlines() == [
        "manta: run 7 delay QUEUED",
        "manta: run 7 delay RUNNING",
        "one",
        "two",
        "three",
        "manta: run 7 delay SUCCEEDED  3.0 s  delay@3",
    ]


def test_a_bar_is_shown_while_it_runs_and_says_how_far_it_is() -> None:
    at_work = run(State.RUNNING, progress=Progress(done=3, total=7, unit="steps"))
    running = bar(at_work)
    assert isinstance(running, ProgressBar)
    assert (running.completed, running.total) == (3, 7)
    assert "3 of 7 steps" in as_html(status_line(at_work))
    assert bar(ended()) == ""


def test_what_a_run_says_is_no_html() -> None:
    shown = as_html(status_line(run(State.FAILED, message="<script>alert(1)</script>")))
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_plots_are_pictures_in_a_notebook() -> None:
    plots = Plots({"roc": b"png", "confusion": b"png"})
    assert plots._repr_html_().count("data:image/png;base64,cG5n") == 2
    assert list(plots) == ["roc", "confusion"]
