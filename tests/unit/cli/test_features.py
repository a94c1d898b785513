"""`manta features parity`: what it prints of a report, and draws."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from rich.console import Console

from manta.cli import features
from manta.client.parity_plot import draw
from manta.ledger.parity import Cause, Example, ParityReport, Skewed

AT = datetime(2024, 5, 1, tzinfo=UTC)


def skewed(feature: str, cause: Cause, values: int, **more: str) -> Skewed:
    example = Example(keys={"shop": 1}, at=AT, offline="1.5", online="'[red]'", offline_event=AT)
    return Skewed(view="sales", feature=feature, cause=cause, values=values, of=100, example=example, **more)


def report(*found: Skewed) -> ParityReport:
    names = ("sold", "best", "open", "asked")
    return ParityReport(
        service="trip",
        watermark=AT,
        rows=100,
        values=400,
        skewed=sum(each.values for each in found),
        compared={f"sales.{name}": 100 for name in names},
        found=found,
    )


FOUND = (
    skewed("sold", Cause.TYPE, 40),
    skewed("sold", Cause.STALE, 2),
    skewed("asked", Cause.TRANSFORM, 1, note="jobs:f looks at other rows"),
    skewed("best", Cause.TYPE, 3, through="sales.sold"),
)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Console:
    console = Console(width=140, record=True, color_system=None)
    monkeypatch.setattr(features, "console", console)
    return console


def test_what_differs_comes_with_its_cause_an_example_and_the_next_step(shown: Console) -> None:
    features.show_report(report(*FOUND))
    said = shown.export_text()
    assert "400 values of 100 rows as of 2024-05-01 00:00:00 UTC: 46 differ" in said
    (sold,) = [line for line in said.splitlines() if line.startswith(" sales.sold")]
    assert sold.split()[1:3] == ["100", "42"]
    assert sold.count("█") == 12  # of 28: 11 for 40 %, and what is only 2 % is seen too
    assert sold.rstrip().endswith("type, stale")
    assert "and 1 features without a difference" in said
    assert "type ← sales.sold" in said
    assert "'[red]'" in said
    assert "jobs:f looks at other rows" in said
    for cause in (Cause.TYPE, Cause.STALE, Cause.TRANSFORM):
        assert f"{cause}: " in said
    assert said.count("next: ") == 3


def test_all_the_same_is_one_line_and_the_table(shown: Console) -> None:
    features.show_report(report())
    said = shown.export_text()
    assert "the same" in said
    assert "next: " not in said
    assert len([line for line in said.splitlines() if line.startswith(" sales.")]) == 4


def test_it_is_drawn() -> None:
    for each in (report(*FOUND), report()):
        assert draw(each).startswith(b"\x89PNG")


def test_the_text_of_a_report_is_what_a_log_shows() -> None:
    lines = list(report(*FOUND).lines())
    assert lines[0].endswith("type 43, stale 2, transform 1; first type in sales.sold (40 of 100)")
    assert any("offline 1.5 (of 2024-05-01 00:00:00), online '[red]'" in line for line in lines)
    assert any("next: materialize again" in line for line in lines)
