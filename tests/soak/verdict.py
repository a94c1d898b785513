"""The verdict: what the submitters know, what the ledger holds, and what the runs themselves left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from manta.ledger.runs import Run, State
from manta.ledger.store import Ledger
from tests.soak.load import APPLIED, JOBS, NEEDED, Asked, Http, Sent


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


def judge(
    ledger: Ledger,
    http: Http,
    sent: list[Sent],
    asked: list[Asked],
    trace: Path,
    attempts_may_be_lost: bool,
) -> Verdict:
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
    applied = [run for run in rows.values() if run.project == APPLIED]
    needed = [run for run in rows.values() if run.project != APPLIED and run.job == NEEDED]
    apart = {run.id for run in (*applied, *needed)}
    _count_runs(verdict, {run.id: run for run in rows.values() if run.id not in apart}, sent)
    expected = [(rows[each.run], each) for each in sent if each.run in rows]
    expected += [(run, Sent("", "top")) for run in (*applied, *needed)]
    for run, each in expected:
        _judge_run(verdict, run, each, http, attempts_may_be_lost)
    _judge_needs(verdict, rows, needed, sent)
    _judge_applied(verdict, applied, asked)
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


def _judge_needs(verdict: Verdict, rows: dict[int, Run], needed: list[Run], sent: list[Sent]) -> None:
    """Each run of `top` had one run of what it needs, its own, and before it."""
    for key, count in Counter(run.fingerprint for run in needed).items():
        if count > 1:
            verdict.find("doubled", f"key {key}: {count} runs of what it needs")
    known = {each.key for each in sent if each.job == "top"}
    for need in needed:
        if need.fingerprint not in known:
            verdict.find("doubled", f"run {need.id}: nobody needs it")
    for each in sent:
        if each.job == "top" and each.run in rows:
            before = [need for need in needed if need.fingerprint == each.key]
            _judge_order(verdict, rows[each.run], before)


def _judge_applied(verdict: Verdict, applied: list[Run], asked: list[Asked]) -> None:
    """Each version that was applied had one run of each of its two jobs, in their order."""
    for each in asked:
        found = [run for run in applied if run.fingerprint == each.version]
        for job, count in Counter(run.job for run in found).items():
            if count > 1:
                verdict.find("doubled", f"{each.version}: {count} runs of {job}")
        if each.runs and {run.job: run.id for run in found} != each.runs:
            has = [run.id for run in found]
            verdict.find("lost", f"{each.version}: answered with {each.runs}, has {has}")
        for run in found:
            if run.job != NEEDED:
                _judge_order(verdict, run, [other for other in found if other.job == NEEDED])
    surplus = {run.fingerprint for run in applied} - {each.version for each in asked}
    if surplus:
        verdict.find("doubled", f"versions that nobody applied have runs: {sorted(surplus)}")


def _judge_order(verdict: Verdict, run: Run, before: list[Run]) -> None:
    if not before:
        verdict.find("lost", f"run {run.id}: what it needs has no run")
    for need in before:
        if run.started_at and (need.ended_at is None or need.ended_at > run.started_at):
            verdict.find("lost", f"run {run.id} began before run {need.id}, which it needs, had ended")


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
