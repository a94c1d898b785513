"""What a CI system is given of a run: JUnit and Markdown."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from manta.cli import report
from manta.ledger.runs import EndReason, Run, State, Version

BEGAN = datetime(2026, 3, 1, 12, tzinfo=UTC)
GATE = {"gate": "roc_auc >= 0.7", "metric": "roc_auc", "value": 0.81234, "bound": 0.7, "passed": True}
GATES = [GATE, GATE | {"gate": "ece <= 0.05", "metric": "ece", "value": 0.09, "bound": 0.05, "passed": False}]


def run(state: State = State.SUCCEEDED, **fields: Any) -> Run:
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
        "started_at": BEGAN,
        "ended_at": BEGAN + timedelta(seconds=12.5),
        "submitted_by": "ci:github",
    }
    return Run(**(given | fields))


def refused(**fields: Any) -> Run:
    more = {"metrics": {"gates": GATES}, "message": "delay was refused promotion: ece", **fields}
    return run(State.FAILED, end_reason=EndReason.GATE_FAILED, **more)


def suite(of: Run, log: str = "") -> ElementTree.Element:
    root = ElementTree.fromstring(report.junit(of, log))
    assert root.tag == "testsuites"
    (found,) = root
    return found


def counts(of: ElementTree.Element) -> tuple[int, int, int]:
    return int(of.attrib["tests"]), int(of.attrib["failures"]), int(of.attrib["errors"])


def test_a_run_that_succeeded_is_one_passed_case() -> None:
    found = suite(run(), "hello\n")
    assert counts(found) == (1, 0, 0)
    (case,) = found
    assert case.attrib == {"classname": "manta.flights.training", "name": "delay", "time": "12.500"}
    assert case.findtext("system-out") == "hello\n"


def test_each_gate_is_a_case_and_the_refused_one_fails() -> None:
    found = suite(refused())
    assert counts(found) == (3, 2, 0)
    failed = {case.attrib["name"] for case in found if case.find("failure") is not None}
    assert failed == {"delay", "delay: ece <= 0.05"}
    assert "0.09" in found[2].find("failure").attrib["message"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (State.FAILED, EndReason.USER_ERROR),
        (State.FAILED, EndReason.LOST),
        (State.STOPPED, EndReason.STOP_REQUESTED),
    ],
)
def test_what_is_no_gate_is_an_error(state: State, reason: EndReason) -> None:
    found = suite(run(state, end_reason=reason, message="no such column\nin line 3"))
    assert counts(found) == (1, 0, 1)
    error = found[0].find("error")
    assert error is not None
    assert error.attrib == {"type": str(reason), "message": "no such column"}
    assert error.text == "no such column\nin line 3"


def test_what_xml_cannot_hold_is_left_out_and_the_rest_is_kept() -> None:
    log = "\x1b[31mred\x1b[0m \x00\x08 <tag> & ]]> \ud800 schön 🛫\n"
    assert suite(run(), log)[0].findtext("system-out") == "red  <tag> & ]]>  schön 🛫\n"


def test_only_the_end_of_a_long_log_is_kept() -> None:
    found = suite(run(), "x" * 100_000 + "the end")[0].findtext("system-out")
    assert found is not None
    assert len(found) == report.LOG_CHARACTERS
    assert found.endswith("the end")


def test_the_summary_says_what_there_is_to_know() -> None:
    text = report.summary(
        run(
            metrics={"roc_auc": 0.81234, "gates": GATES[:1], "rows_train": 9},
            params={"epochs": 3},
            inputs=(Version(kind="dataset", name="flights", version="4"),),
            outputs=(Version(kind="model", name="delay", version="2"),),
        ),
        "https://manta.example",
    )
    for said in (
        "## ✅ delay: succeeded",
        "https://manta.example/v1/runs/7",
        "12.5 s",
        "ci:github",
        "epochs=3",
        "| roc\\_auc | 0.8123 |",
        "| passed | roc\\_auc \\>= 0.7 | 0.8123 |",
        "| read | dataset | flights | `4` |",
        "| made | model | delay | `2` |",
        "manta logs 7",
    ):
        assert said in text, text


def test_a_failed_run_says_why_first_and_its_words_are_no_markdown() -> None:
    text = report.summary(refused(message="<b>no</b> | *such*\n# column"), "http://x")
    assert text.splitlines()[0] == "## ❌ delay: failed"
    assert "> \\<b\\>no\\</b\\> \\| \\*such\\*\n> \\# column" in text
    assert "| **failed** | ece \\<= 0.05 | 0.09 |" in text


def test_a_summary_is_added_to_what_others_wrote(tmp_path: Path) -> None:
    path = tmp_path / "new" / "summary.md"
    report.append(path, "one\n")
    report.append(path, "two\n")
    assert path.read_text() == "one\ntwo\n"
