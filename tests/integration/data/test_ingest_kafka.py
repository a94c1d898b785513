"""Kafka through the whole ingest: whoever dies, and wherever, the dataset holds each message once.

The broker is the mock cluster of tests/brokers.py. That reading ends at what was committed, and passes over
what was compacted, is tests/integration/connectors/test_kafka.py's; a broker that itself dies is in neither.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from manta import Kafka
from manta.data import ingest
from manta.data.lake import Lake
from manta.definitions import Column, Contract, Definition, Ingest
from manta.definitions.sources import Ask, Rows
from manta.errors import ContractBroken
from manta.ledger.context import RunContext
from tests.brokers import produce

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]
COLUMNS = {
    "id": Column(type="int64"),
    "text": Column(type="string", nullable=True),
    "_partition": Column(type="int64"),
    "_offset": Column(type="int64"),
}


class Topic:
    """A topic, and what was written to it."""

    def __init__(self, servers: str) -> None:
        self.servers, self.name = servers, f"t{secrets.token_hex(6)}"
        self.written: list[int] = []
        self.poison = 0

    def grow(self, good: int, poison: int = 0) -> None:
        """Poison stands among the good ones, in every partition."""
        start = len(self.written)
        new = list(range(start, start + good))
        values: list[Any] = [{"id": number, "text": f"n{number}"} for number in new]
        for number in range(poison):
            values.insert(3 * number + 1, b"poison %d" % (self.poison + number))
        produce(self.servers, self.name, values)
        self.written += new
        self.poison += poison

    def job(self, source: type[Kafka] = Kafka, max_refused: float = 0.9, **fields: Any) -> Ingest:
        read = source(servers=self.servers, topic=self.name, per_piece=5, **fields)
        return Ingest(
            dataset="messages", source=read, contract=Contract(columns=COLUMNS, max_refused=max_refused)
        )


@pytest.fixture
def topic(kafka: str) -> Topic:
    return Topic(kafka)


def run(context: RunContext) -> int:
    ingest.execute(context)
    return int(context.outputs[0].version)


def held(lake: Lake, topic: Topic) -> None:
    """The dataset is what was written: no duplicate, no hole."""
    found = lake.read("messages")
    assert sorted(found["id"].to_list()) == topic.written
    assert not found.select("_partition", "_offset").is_duplicated().any()


def test_refused_messages_are_told_by_partition_and_offset(
    topic: Topic, lake: Lake, context_of: Contexts
) -> None:
    topic.grow(60, poison=9)
    job = topic.job()
    assert run(context_of(job)) == 0
    topic.grow(7, poison=2)
    assert run(context_of(job)) == 1
    held(lake, topic)
    refused = lake.read("messages__quarantine")
    assert sorted(refused["source"]) == sorted(f"poison {number}" for number in range(topic.poison))
    good = set(lake.read("messages").select("_partition", "_offset").rows())
    places = [(int(file.rpartition("/")[2]), row) for file, row in refused.select("file", "row").rows()]
    assert set(refused["file"].str.split("/").list.first()) == {topic.name}
    assert good.isdisjoint(places)
    # Together they are all offsets up to the cursor, which is in the commit.
    cursor = lake.metadata("messages")["cursors"]["messages"][topic.name]
    assert good | set(places) == {(int(number), at) for number, end in cursor.items() for at in range(end)}
    assert len(good) + len(places) == sum(cursor.values()) == 78


def test_too_many_refused_commit_nothing_and_move_no_offset(
    topic: Topic, lake: Lake, context_of: Contexts
) -> None:
    topic.grow(8)
    run(context_of(topic.job()))
    before = lake.metadata("messages")["cursors"]
    topic.grow(2, poison=8)
    with pytest.raises(ContractBroken, match="not a JSON object"):
        run(context_of(topic.job(max_refused=0.1)))
    assert lake.version("messages") == 0
    assert lake.metadata("messages")["cursors"] == before
    assert run(context_of(topic.job())) == 1
    held(lake, topic)


class Killed(BaseException):
    """As SIGKILL: nothing may catch it."""


@pytest.mark.parametrize(
    ("point", "after"),
    [
        ("land", True),  # all is staged
        ("_settle_keys", True),
        ("_quarantine", True),  # the quarantine has its version, the dataset not
        ("_change", True),  # the commit is made out
        ("change", False),
        ("change", True),  # committed, and nobody told
    ],
)
def test_killed_anywhere_the_next_run_makes_it_whole(
    topic: Topic,
    lake: Lake,
    context_of: Contexts,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
    after: bool,
) -> None:
    job = topic.job()
    topic.grow(11, poison=1)
    run(context_of(job))
    topic.grow(13, poison=2)
    where: Any = Lake if point == "change" else ingest
    original = getattr(where, point)

    def deadly(*arguments: Any, **named: Any) -> Any:
        if after and not (point == "change" and arguments[1] != "messages"):
            original(*arguments, **named)
            raise Killed
        if not after and arguments[1] == "messages":
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(where, point, deadly)
    dead = context_of(job)
    with pytest.raises(Killed):
        run(dead)
    monkeypatch.setattr(where, point, original)
    committed = point == "change" and after
    assert lake.version("messages") == (1 if committed else 0), "no part of it is to be seen"
    topic.grow(3)
    if committed:
        assert run(dead) == 1, "tried again, it reports what it had made"
        assert dead.metrics == {"rows": 13, "refused": 2}
    run(context_of(job))
    held(lake, topic)


class Dying(Kafka):
    """Its first reader dies in the middle of a piece, as from a lack of memory."""

    mark: str

    def read(self, piece: Any, ask: Ask) -> Iterator[Rows]:
        for rows in super().read(piece, ask):
            yield rows
            if piece.start > 0 and not Path(self.mark).exists():
                Path(self.mark).touch()
                os._exit(9)


def test_a_task_whose_process_dies_is_read_again(
    topic: Topic, lake: Lake, context_of: Contexts, tmp_path: Path
) -> None:
    topic.grow(60, poison=3)
    run(context_of(topic.job(Dying, mark=str(tmp_path / "died"))))
    assert (tmp_path / "died").exists()
    held(lake, topic)
    assert lake.read("messages__quarantine").height == 3


def test_two_runs_at_once(
    topic: Topic, lake: Lake, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is overtaken while it reads: it reads on from where the other has ended."""
    topic.grow(20, poison=1)
    job, land = topic.job(), ingest.land
    other = context_of(job)

    def land_late(*arguments: Any) -> Any:
        landed = land(*arguments)
        monkeypatch.setattr(ingest, "land", land)
        run(other)
        topic.grow(10, poison=1)
        return landed

    monkeypatch.setattr(ingest, "land", land_late)
    overtaken = context_of(job)
    assert run(overtaken) == 1
    assert overtaken.metrics == {"rows": 10, "refused": 1}
    held(lake, topic)


def test_begun_at_the_latest_the_end_is_kept_in_a_version_without_rows(
    topic: Topic, lake: Lake, context_of: Contexts
) -> None:
    topic.grow(8)
    job = topic.job(start="latest")
    assert run(context_of(job)) == 0
    assert lake.read("messages").is_empty()
    produce(topic.servers, topic.name, [{"id": 100}])
    assert run(context_of(job)) == 1
    assert lake.read("messages")["id"].to_list() == [100]
