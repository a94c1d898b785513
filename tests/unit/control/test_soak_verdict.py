"""The soak's verdict finds what it is there to find: each fault is put into the books by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from manta.ledger.actor import OWNER
from manta.ledger.runs import EndReason, Run, State
from manta.ledger.store import Ledger
from tests.soak.load import APPLIED, Asked, Http, Sent
from tests.soak.verdict import Verdict, judge


class Books:
    """A ledger with two runs that went as they should, one with what it needs, one apply, and all that was
    seen of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = Ledger(f"sqlite:///{folder}/ledger.db")
        self.ledger.create()
        self.sent: list[Sent] = []
        self.logs: dict[int, str] = {}
        self.trace = folder / "trace"
        for key in ("a", "b"):
            run = self.submitted(key)
            self.executed(run)
            self.sent.append(Sent(key, "quick", run=run.id))
        self.executed(self.submitted("base-t", "base", fingerprint="t"))
        self.executed(top := self.submitted("t", "top"))
        self.sent.append(Sent("t", "top", run=top.id))
        both = {job: self.submitted(f"v0-{job}", job, APPLIED, "v0") for job in ("base", "top")}
        for run in both.values():
            self.executed(run)
        self.asked = [Asked("v0", {job: run.id for job, run in both.items()}), Asked("v1")]

    def submitted(self, key: str, job: str = "quick", project: str = "soak", fingerprint: str = "f") -> Run:
        return self.ledger.submit(
            key=key,
            project=project,
            job=job,
            kind="job",
            definition={},
            fingerprint=fingerprint,
            package="p",
            by=OWNER,
        )

    def executed(self, run: Run) -> None:
        run = self.ledger.start(run, f"{run.id}-{run.attempt + 1}")
        self.note(run.id, run.attempt, "begin")
        run = self.ledger.move(run, State.RUNNING)
        self.logs[run.id] = f"line 0 of 1\nlast words of run {run.id} in attempt {run.attempt}\n"
        self.ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE)

    def note(self, run: int, attempt: int, what: str) -> None:
        with self.trace.open("a") as trace:
            trace.write(f"{run} {attempt} {what}\n")

    def ask(self, _method: str, path: str) -> Any:
        return type("Answer", (), {"text": self.logs[int(path.split("/")[3])]})

    def judged(self) -> Verdict:
        return judge(self.ledger, cast(Http, self), self.sent, self.asked, self.folder, False)


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path)


def test_books_that_agree_are_clean(books: Books) -> None:
    verdict = books.judged()
    assert verdict.clean, verdict.findings
    assert (verdict.submitted, verdict.runs, verdict.executions) == (3, 6, 6)


def _surplus(books: Books) -> None:
    books.executed(books.submitted("nobody's"))


def _stuck(books: Books) -> None:
    books.sent.append(Sent("c", "quick", run=books.submitted("c").id))


def _without_its_need(books: Books) -> None:
    books.executed(top := books.submitted("c", "top"))
    books.sent.append(Sent("c", "top", run=top.id))


def _before_its_need(books: Books) -> None:
    _without_its_need(books)
    books.executed(books.submitted("base-c", "base", fingerprint="c"))


def _half_applied(books: Books) -> None:
    books.executed(base := books.submitted("v1-base", "base", APPLIED, "v1"))
    books.asked[1].runs = {"base": base.id, "top": base.id + 1}


def _lost_attempt(books: Books) -> None:
    run = books.submitted("c")
    run = books.ledger.move(books.ledger.start(run, "c-1"), State.QUEUED, end_reason=EndReason.LOST)
    books.executed(run)
    books.sent.append(Sent("c", "quick", run=run.id))


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_surplus, "doubled"),
        (_stuck, "stuck"),
        (_lost_attempt, "doubled"),
        (_without_its_need, "lost"),
        (_before_its_need, "lost"),
        (_half_applied, "lost"),
        (lambda books: books.executed(books.submitted("x", "base", fingerprint="t")), "doubled"),
        (lambda books: books.executed(books.submitted("x", "base", fingerprint="x")), "doubled"),
        (lambda books: books.executed(books.submitted("x", "base", APPLIED, "v0")), "doubled"),
        (lambda books: books.executed(books.submitted("x", "base", APPLIED, "v2")), "doubled"),
        (lambda books: books.submitted("x", "base", APPLIED, "v1"), "stuck"),
        (lambda books: books.sent.append(Sent("c", "endless", run=books.submitted("c").id)), "stuck"),
        (lambda books: books.note(1, 1, "begin"), "doubled"),
        (lambda books: books.note(1, 1, "overlap"), "doubled"),
        (lambda books: books.note(1, 2, "begin"), "doubled"),
        (lambda books: books.sent.append(Sent("c", "quick", run=77)), "lost"),
        (lambda books: setattr(books.sent[1], "run", 1), "lost"),
        (lambda books: setattr(books.sent[0], "job", "fails"), "lost"),
        (lambda books: setattr(books.sent[0], "job", "flaky"), "lost"),
        (lambda books: books.trace.write_text("2 1 begin\n"), "lost"),
        (lambda books: books.logs.update({1: "line 0 of 1\n"}), "lost"),
        (lambda books: books.logs.update({1: "last words of run 1 in attempt 1\n"}), "lost"),
        (
            lambda books: books.logs.update({1: "line 1 of 2\nlast words of run 1 in attempt 1\n"}),
            "lost",
        ),
    ],
)
def test_a_fault_is_found(books: Books, fault: Callable[[Books], Any], found: str) -> None:
    fault(books)
    verdict = books.judged()
    assert not verdict.clean
    assert getattr(verdict, found) >= 1, verdict.findings
