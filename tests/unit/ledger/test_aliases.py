"""Promotion by people: compare-and-set, refusals, rollbacks, and what is kept of each move."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from manta.errors import Conflict, GateFailed, NotFound
from manta.ledger.actor import Actor
from manta.ledger.runs import State, Version
from manta.ledger.store import Ledger

ADA, BOB = Actor("user:ada", "http"), Actor("user:bob", "http")
PASSED, FAILED = {"gate": "roc_auc >= 0.7", "passed": True}, {"gate": "ece <= 0.1", "passed": False}


def trained(ledger: Ledger, version: str, gates: list[Any] | None = None, **fields: Any) -> int:
    """A run that has made a version of ``delay``."""
    row: dict[str, Any] = {"project": "p", "job": "delay", "kind": "training", "definition": {}} | fields
    run = ledger.submit(key=f"{version}-{fields}", fingerprint="f", package="z", by=ADA, **row)
    run = ledger.move(ledger.start(run, f"s-{run.id}"), State.RUNNING)
    made = Version(kind="model", name="delay", version=version, detail={"location": version})
    metrics = {"gates": [PASSED] if gates is None else gates}
    return ledger.move(run, State.SUCCEEDED, outputs=[made], metrics=metrics).id


def point(ledger: Ledger, version: str, expect: str | None, by: Actor = ADA, why: str = "better") -> Any:
    return ledger.aliases.point("p", "delay", "champion", version, expect=expect, by=by, why=why)


def rollback(ledger: Ledger, expect: str | None) -> Any:
    return ledger.aliases.rollback("p", "delay", "champion", expect=expect, by=BOB, why="worse")


def champion(ledger: Ledger) -> str | None:
    return ledger.aliases.get("p", "delay", "champion")


def test_a_move_is_kept_with_who_why_when_and_what_the_gates_said(ledger: Ledger) -> None:
    run = trained(ledger, "1")
    moved = point(ledger, "1", None, why="the first")
    assert champion(ledger) == "1"
    assert (moved.version, moved.previous, moved.kind) == ("1", None, "promote")
    assert (moved.by, moved.why, moved.run_id, moved.gates) == ("user:ada", "the first", run, (PASSED,))
    assert moved.at.tzinfo is not None
    assert ledger.aliases.history("p", "delay") == [moved]
    assert ledger.aliases.history("p", "delay", "challenger") == []
    assert ledger.aliases.history("q", "delay") == []
    (entry, *_) = ledger.audit.entries(project="p")
    assert (entry.actor, entry.action, entry.target) == ("user:ada", "promote", "model:delay@1")
    assert entry.detail["why"] == "the first"


def test_pointing_where_it_points_changes_nothing(ledger: Ledger) -> None:
    trained(ledger, "1")
    first = point(ledger, "1", None)
    assert point(ledger, "1", None, BOB) == first
    assert len(ledger.aliases.history("p", "delay")) == 1


def test_who_was_shown_another_version_is_told_who_moved_it(ledger: Ledger) -> None:
    for version in ("1", "2", "3"):
        trained(ledger, version)
    point(ledger, "1", None)
    point(ledger, "2", "1", BOB, "calibrated")
    for late in (
        lambda: point(ledger, "3", "1"),
        lambda: point(ledger, "3", None),
        lambda: rollback(ledger, "1"),
    ):
        with pytest.raises(
            Conflict, match=r"points at version 2, not at .*user:bob moved it at .*calibrated"
        ) as told:
            late()
        assert told.value.detail == {"version": "2", "by": "user:bob"}
    assert champion(ledger) == "2"
    with pytest.raises(Conflict, match="has not been set"):
        ledger.aliases.point("p", "delay", "other", "1", expect="2", by=ADA, why="x")


@pytest.mark.parametrize("expect", [None, "1"])
def test_of_many_promoters_one_wins_and_the_others_are_told(ledger: Ledger, expect: str | None) -> None:
    versions = [str(number) for number in range(1, 9)]
    for version in versions:
        trained(ledger, version)
    if expect:
        point(ledger, expect, None)

    def attempt(version: str) -> Any:
        try:
            return point(ledger, version, expect, Actor(f"user:{version}", "http"))
        except Conflict as told:
            return told

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(attempt, versions[1:]))
    won = [each for each in said if not isinstance(each, Conflict)]
    assert [each.version for each in won] == [champion(ledger)]
    lost = [each for each in said if isinstance(each, Conflict)]
    assert len(lost) == 6
    assert {each.detail["by"] for each in lost} == {won[0].by}
    assert len(ledger.aliases.history("p", "delay")) == (2 if expect else 1)


def test_what_is_not_registered_or_has_failed_is_refused(ledger: Ledger) -> None:
    first = trained(ledger, "1")
    trained(ledger, "2", [PASSED, FAILED])
    trained(ledger, "replay-9", replay_of=first)
    for version in ("7", "replay-9"):
        with pytest.raises(NotFound, match=f"no version {version} of delay is registered"):
            point(ledger, version, None)
    with pytest.raises(NotFound):
        ledger.aliases.point("q", "delay", "champion", "1", expect=None, by=ADA, why="of another project")
    with pytest.raises(GateFailed, match=r"version 2 .* ece <= 0.1$"):
        point(ledger, "2", None)
    assert champion(ledger) is None
    assert ledger.aliases.history("p", "delay") == []
    trained(ledger, "3", [])
    assert point(ledger, "3", None).gates == ()


def test_gates_of_a_run_that_was_stopped_after_it_promoted(ledger: Ledger) -> None:
    trained(ledger, "1")
    run = ledger.submit(
        key="k",
        project="p",
        job="delay",
        kind="training",
        definition={},
        fingerprint="f",
        package="z",
        by=ADA,
    )
    run = ledger.move(ledger.start(run, "s"), State.RUNNING)
    place = ("p", "delay", "champion", "2")
    ledger.aliases.promote(
        *place, expect=None, run_id=run.id, gates=[PASSED], by=ADA, detail={"location": "2"}
    )
    ledger.move(run, State.STOPPED)
    point(ledger, "1", "2")
    assert point(ledger, "2", "1").gates == (PASSED,)


def test_rollbacks_go_back_promotion_by_promotion(ledger: Ledger) -> None:
    for version in ("1", "2", "3"):
        trained(ledger, version)
    with pytest.raises(NotFound, match="has not been set"):
        rollback(ledger, None)
    point(ledger, "1", None)
    with pytest.raises(NotFound, match="before version 1"):
        rollback(ledger, "1")
    point(ledger, "2", "1")
    point(ledger, "3", "2")
    moved = rollback(ledger, "3")
    assert (moved.version, moved.previous, moved.kind, moved.by) == ("2", "3", "rollback", "user:bob")
    assert rollback(ledger, "2").version == champion(ledger) == "1"
    with pytest.raises(NotFound):
        rollback(ledger, "1")
    point(ledger, "3", "1")
    point(ledger, "1", "3")  # again, as if it were new
    assert rollback(ledger, "1").version == "3"
    assert rollback(ledger, "3").version == "1"
    kinds = [each.kind for each in ledger.aliases.history("p", "delay")]
    assert kinds == [*["rollback"] * 2, *["promote"] * 2, *["rollback"] * 2, *["promote"] * 3]
    assert ledger.audit.entries(project="p")[0].action == "rollback"


def test_two_rollbacks_at_once_are_one(ledger: Ledger) -> None:
    for version in ("1", "2", "3"):
        trained(ledger, version)
    point(ledger, "1", None)
    point(ledger, "2", "1")
    point(ledger, "3", "2")

    def attempt(_: int) -> Any:
        try:
            return rollback(ledger, "3").version
        except Conflict:
            return None

    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(attempt, range(4)))
    assert sorted(each or "" for each in said) == ["", "", "", "2"]
    assert champion(ledger) == "2"


def test_history_comes_by_page(ledger: Ledger) -> None:
    for number in range(1, 6):
        trained(ledger, str(number))
        point(ledger, str(number), str(number - 1) if number > 1 else None)
    first = ledger.aliases.history("p", "delay", limit=2)
    rest = ledger.aliases.history("p", "delay", before=first[-1].id)
    assert [each.version for each in first + rest] == ["5", "4", "3", "2", "1"]
