"""The verdict: what the submitters know, what the ledger holds, and what the runs themselves left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from manta.ledger.runs import Run, State
from manta.ledger.store import Ledger
from tests.soak.load import JOBS, Http, Sent


@dataclass
class Verdict:
    """Counts, and a line for each finding.

    Attributes:
        lost: submissions that were answered and have no run, or one that ended wrongly, or without its log.
        doubled: two runs for one key, two executions of one attempt, two attempts of a run alive at once, or
            more attempts than the run's own failures account for.
        stuck: runs that have not ended.
    """

    submitted: int = 0
    answered: int = 0
    runs: int = 0
    attempts: int = 0
    executions: int = 0
    lost: int = 0
    doubled: int = 0
    stuck: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return not (self.lost or self.doubled or self.stuck or self.findings)

    def find(self, kind: str, what: str) -> None:
        self.findings.append(f"{kind}: {what}")
        if kind in ("lost", "doubled", "stuck"):
            setattr(self, kind, getattr(self, kind) + 1)


def judge(ledger: Ledger, http: Http, sent: list[Sent], trace: Path, attempts_may_be_lost: bool) -> Verdict:
    """Args:
    attempts_may_be_lost: what was killed takes runs with it, so that a run may have more attempts; each must
        still be executed at most once.
    """
    rows = {run.id: run for run in ledger.runs(limit=1_000_000)}
    notes = Counter(tuple(line.split()) for line in _lines(trace))
    verdict = Verdict(
        submitted=len(sent),
        answered=sum(each.run is not None for each in sent),
        runs=len(rows),
        attempts=sum(run.attempt for run in rows.values()),
        executions=sum(count for (_, _, what), count in notes.items() if what == "begin"),
    )
    _count_runs(verdict, rows, sent)
    for each in sent:
        if each.run in rows:
            _judge_run(verdict, rows[each.run], each, http, attempts_may_be_lost)
    for (run, attempt, what), count in notes.items():
        if what == "overlap":
            verdict.find("doubled", f"run {run}: attempt {attempt} began while another was alive")
        if what == "begin" and count > 1:
            verdict.find("doubled", f"run {run}: attempt {attempt} was executed {count} times")
        if int(run) in rows and int(attempt) > rows[int(run)].attempt:
            verdict.find("doubled", f"run {run}: attempt {attempt} was executed, and is not in the ledger")
    executed = {(int(run), int(attempt)) for run, attempt, what in notes if what == "begin"}
    for run in rows.values():
        if run.state is State.SUCCEEDED and (run.id, run.attempt) not in executed:
            verdict.find("lost", f"run {run.id} is SUCCEEDED in attempt {run.attempt}, which never began")
    return verdict


def _count_runs(verdict: Verdict, rows: dict[int, Run], sent: list[Sent]) -> None:
    answered = [each.run for each in sent if each.run is not None]
    for run, count in Counter(answered).items():
        if count > 1:
            verdict.find("lost", f"run {run} answers to {count} keys")
        if run not in rows:
            verdict.find("lost", f"run {run} was answered and is not in the ledger")
    # A submission whose sender gave up may or may not have a run; nothing else may.
    surplus = len(rows) - len(set(answered)) - (len(sent) - len(answered))
    if surplus > 0:
        verdict.find("doubled", f"{surplus} runs that nobody submitted")


def _judge_run(verdict: Verdict, run: Run, sent: Sent, http: Http, attempts_may_be_lost: bool) -> None:
    _, state, reason, attempts = JOBS[sent.job]
    name = f"run {run.id} ({run.job})"
    if not run.state.ended:
        verdict.find("stuck", f"{name} is {run.state} in attempt {run.attempt}: {run.message}")
        return
    ended = (str(run.state), str(run.end_reason))
    if ended == ("STOPPED", "STOP_REQUESTED") and sent.stopped:
        return  # a stop may come at any time, so that nothing more is known of it
    if ended != (state, reason):
        verdict.find("lost", f"{name} is {run.state} {run.end_reason} ({run.message}), not {state} {reason}")
        return
    if run.attempt > attempts and not attempts_may_be_lost:
        verdict.find("doubled", f"{name} took {run.attempt} attempts, not {attempts}")
    if run.attempt < attempts:
        verdict.find("lost", f"{name} took {run.attempt} attempts, not {attempts}")
    problem = _incomplete(http.ask("GET", f"/v1/runs/{run.id}/logs").text, run)
    if problem:
        verdict.find("lost", f"{name}: its log {problem}")


def _incomplete(log: str, run: Run) -> str:
    lines = log.splitlines()
    last = f"last words of run {run.id} in attempt {run.attempt}"
    if last not in lines:
        return f"has {len(lines)} lines and not its last words; its end: {log[-200:]!r}"
    said = [line for line in lines if line.startswith("line ")]
    total = int(said[0].split()[-1]) if said else 0
    if not said or said != [f"line {number} of {total}" for number in range(total)]:
        return f"has {len(said)} of {total} lines"
    return ""


def _lines(trace: Path) -> Iterable[str]:
    path = trace / "trace"
    return path.read_text().splitlines() if path.exists() else []
