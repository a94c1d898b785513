"""Lineage in the ledger: the whole chain, in both directions, whatever the length of the history."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest
from sqlalchemy import event

from manta.cli.display import console
from manta.cli.lineage import tree
from manta.errors import InvalidInput, NotFound
from manta.ledger.actor import OWNER
from manta.ledger.lineage import grow
from manta.ledger.records import Edge, Lineage
from manta.ledger.runs import State, Version
from manta.ledger.store import Ledger


class Past:
    """Writes runs into a ledger as the worker does."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.count = 0

    def ran(
        self, job: str, reads: Iterable[str] = (), makes: Iterable[str] = (), project: str = "p", **given: Any
    ) -> int:
        self.count += 1
        run = self.ledger.submit(
            key=f"k{self.count}",
            project=project,
            job=job,
            kind="training" if job == "delay" else "ingest",
            definition={"seed": 7} if job == "delay" else {},
            fingerprint="f1",
            package="c0de",
            by=OWNER,
            **given,
        )
        run = self.ledger.move(self.ledger.start(run, f"s-{run.id}"), State.RUNNING)
        self.ledger.ran_in(run, {"lock": "l0ck"})
        for each in reads:
            self.ledger.versions.read_by(run.id, version(each))
        self.ledger.move(run, State.SUCCEEDED, outputs=[version(each) for each in makes])
        return run.id


def version(text: str) -> Version:
    ref, _, number = text.partition("@")
    kind, _, name = ref.partition(":")
    return Version(kind=kind, name=name, version=number, detail={"rows": 12} if kind == "dataset" else {})


@pytest.fixture
def past(ledger: Ledger) -> Past:
    """flights@0 → delay_v1@abc → delay@1 → champion → endpoint delay; and what does not belong to it."""
    past = Past(ledger)
    assert past.ran("flights", ["source:flights@t0"], ["dataset:flights@0"]) == 1
    assert past.ran("features", [], ["features:delay_v1@abc"]) == 2
    assert past.ran("rates", ["dataset:flights@0"], ["dataset:rates@0"]) == 3
    reads = ["dataset:flights@0", "dataset:rates@0", "features:delay_v1@abc"]
    assert past.ran("delay", reads, ["model:delay@1"], params={"epochs": 3}) == 4
    assert past.ran("online", ["features:delay_v1@abc", "dataset:rates@0"], ["online:delay_v1@on1"]) == 5
    assert past.ran("flights", ["source:flights@t1"], ["dataset:flights@1"]) == 6
    assert past.ran("features", [], ["features:delay_v1@abc"]) == 7  # the same digest, made again
    assert past.ran("flights", ["source:flights@t0"], ["dataset:flights@0"], project="other") == 8
    ledger.aliases.promote("p", "delay", "champion", "1", expect=None, run_id=4, gates=[], by=OWNER)
    ledger.projects.want_endpoint(
        "p",
        "late",
        definition={"model": "delay", "alias": "champion", "features": "delay_v1"},
        package="c0de",
        fingerprint="f",
        by=OWNER,
    )
    ledger.projects.seen_endpoint("p", "late", state="READY", served={"version": "1"})
    return past


def edges(found: Lineage) -> set[str]:
    return {f"{edge.source} {edge.what} {edge.target}" for edge in found.edges}


UP_TO_MODEL = {
    "run:4 made model:delay@1",
    "dataset:flights@0 read run:4",
    "dataset:rates@0 read run:4",
    "features:delay_v1@abc read run:4",
    "run:1 made dataset:flights@0",
    "run:3 made dataset:rates@0",
    "dataset:flights@0 read run:3",
    "run:2 made features:delay_v1@abc",
    "source:flights@t0 read run:1",
}


def test_up_from_a_model_is_all_that_it_was_made_from(ledger: Ledger, past: Past) -> None:
    found = ledger.histories.lineage("p", "model:delay@1", "up")
    assert edges(found) == UP_TO_MODEL
    assert not found.truncated
    nodes = {node.id: node for node in found.nodes}
    assert nodes["run:4"].detail == {
        "job": "delay",
        "kind": "training",
        "state": "SUCCEEDED",
        "package": "c0de",
        "fingerprint": "f1",
        "params": {"epochs": 3},
        "submitted_by": "owner",
        "seed": 7,
        "lock": "l0ck",
    }
    assert nodes["dataset:flights@0"].detail == {"rows": 12}


def test_up_from_an_endpoint_goes_through_the_promotion(ledger: Ledger, past: Past) -> None:
    found = ledger.histories.lineage("p", "endpoint:late", "up")
    assert edges(found) == UP_TO_MODEL | {
        "model:delay@1 promoted promotion:1",
        "promotion:1 serves endpoint:late",
        "online:delay_v1@on1 serves endpoint:late",
        "run:5 made online:delay_v1@on1",
        "features:delay_v1@abc read run:5",
        "dataset:rates@0 read run:5",
    }


def test_down_from_a_source_reaches_the_endpoint(ledger: Ledger, past: Past) -> None:
    found = ledger.histories.lineage("p", "source:flights@t0", "down")
    assert {"promotion:1", "endpoint:late", "online:delay_v1@on1", "run:4"} <= {n.id for n in found.nodes}
    assert not {"run:6", "run:8"} & {node.id for node in found.nodes}
    assert "promotion:1 serves endpoint:late" in edges(found)


@pytest.mark.parametrize("direction", ["up", "down", "both"])
@pytest.mark.parametrize("of", ["run:4", "dataset:flights", "dataset:flights@0", "endpoint:late"])
def test_the_tree_shows_every_node(ledger: Ledger, past: Past, of: str, direction: Any) -> None:
    found = ledger.histories.lineage("p", of, direction)
    assert found.of == {"dataset:flights": "dataset:flights@1"}.get(of, of)
    with console.capture() as shown:
        for up in (True, False):
            console.print(tree(found, up=up), width=200)
    for node in found.nodes:
        assert node.name in shown.get()


def test_what_is_not_there_or_not_meant(ledger: Ledger, past: Past) -> None:
    for of in ("run:99", "run:8", "model:delay@9", "endpoint:none", "dataset:none", "run:99999999999"):
        with pytest.raises(NotFound):
            ledger.histories.lineage("p", of)
    for of in ("", "run:x", "table:x@1", "delay", "run:", "dataset:@1", "dataset:a b"):
        with pytest.raises(InvalidInput):
            ledger.histories.lineage("p", of)


def test_it_is_cut_where_it_gets_too_deep_or_too_wide(ledger: Ledger, past: Past) -> None:
    deep = ledger.histories.lineage("p", "model:delay@1", "up", depth=2)
    assert deep.truncated
    assert "run:1" not in {node.id for node in deep.nodes}
    for _ in range(30):
        past.ran("reader", ["dataset:flights@1"])
    wide = ledger.histories.lineage("p", "dataset:flights@1", "down", size=10)
    assert wide.truncated
    assert len(wide.nodes) == 10


def test_the_queries_do_not_grow_with_the_history(ledger: Ledger, past: Past) -> None:
    def queries() -> int:
        seen: list[str] = []
        note = lambda *args: seen.append(args[2])  # noqa: E731
        event.listen(ledger._db.engine, "before_cursor_execute", note)
        ledger.histories.lineage("p", "endpoint:late", "up")
        event.remove(ledger._db.engine, "before_cursor_execute", note)
        return len(seen)

    before = queries()
    for number in range(50):
        past.ran("rates", ["dataset:flights@1"], [f"dataset:rates@{number + 1}"])
    assert queries() == before


def test_a_circle_would_end() -> None:
    def around(ids: Collection[str]) -> Iterable[Edge]:
        return [Edge(each, {"a": "b", "b": "c", "c": "a"}[each], "made") for each in ids]

    found, between, truncated = grow("a", around, up=False, depth=100, size=100)
    assert list(found) == ["a", "b", "c"]
    assert len(between) == 3
    assert not truncated
