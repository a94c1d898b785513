"""Streams: what is produced is in the dataset once, and online with the newest event time, whoever dies."""

from __future__ import annotations

import secrets
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from manta.connectors.kafka import Kafka
from manta.definitions import Column, Contract, StreamFeatures
from manta.errors import DefinitionInvalid, FeaturesUnavailable, NotFound, RequestInvalid
from manta.features import stream
from manta.features.compiled import service_of
from manta.features.online import OnlineReader
from manta.features.push import append, push
from manta.ledger.context import RunContext
from manta.ledger.runs import State
from manta.testing.connectors import run_of
from tests.brokers import make, produce
from tests.soak.parts import RedisServer
from tests.soak.stream import Die, applied, listens, spawned, work

from .conftest import START, Shop

CLICKS = """
from datetime import timedelta

from feast import FeatureService, FeatureView, Field, PushSource
from feast.types import Float64, Int64, String

from features.views import shop
from manta.features import DatasetSource

clicks = DatasetSource(name="clicks", dataset="clicks", timestamp_field="at")
pushed = PushSource(name="clicks_push", batch_source=clicks)
last = FeatureView(
    name="last", entities=[shop], ttl=timedelta(0), source=pushed,
    schema=[Field(name="shop", dtype=Int64), Field(name="amount", dtype=Float64)],
)
page = FeatureView(
    name="page", entities=[shop], ttl=timedelta(0), source=pushed,
    schema=[Field(name="shop", dtype=Int64), Field(name="note", dtype=String)],
)
clicking = FeatureService(name="clicking", features=[last])
paging = FeatureService(name="paging", features=[page, last])
"""
CONTRACT = Contract(
    columns={
        "shop": Column(type="int64"),
        "at": Column(type="timestamp"),
        "amount": Column(type="float64", nullable=True),
        "note": Column(type="string", nullable=True),
    },
    max_refused=1.0,
)
Click = tuple[int, float, float]  # the shop, hours after START, the amount
HISTORY: list[Click] = [(1, 0, 1.0), (2, 5, 2.0)]
FAR = 24.0 * 365 * 100
DEADLINE = 120.0


def row(click: Click) -> dict[str, Any]:
    shop, hour, amount = click
    return {
        "shop": shop,
        "at": START + timedelta(hours=hour),
        "amount": amount,
        "note": f"n{amount}",
    }


class Clicks:
    """A topic, the stream that reads it, and all that was ever sent, in the order of the dataset."""

    def __init__(self, shop: Shop, servers: str) -> None:
        self.shop, self.servers, self.topic = shop, servers, f"t{secrets.token_hex(6)}"
        self.sent: list[Click] = []
        shop.write("clicks.py", CLICKS)
        make(servers, self.topic)
        manifests = applied(shop.settings)
        self._reader = OnlineReader(manifests["paging"], "paging")
        self.view = service_of(manifests["clicking"], "clicking").views[0]

    def history(self) -> None:
        """Rows that another has put there."""
        frame = pl.DataFrame([row(click) for click in HISTORY])
        self.shop.lake.replace("clicks", frame, run_key="first")
        self.sent += HISTORY

    def send(self, *clicks: Click) -> None:
        """To one partition: their order is that of the dataset."""
        values = [row(click) | {"at": row(click)["at"].isoformat()} for click in clicks]
        produce(self.servers, self.topic, values, partition=0)
        self.sent += clicks

    def stream(self, **fields: Any) -> StreamFeatures:
        source = Kafka(servers=self.servers, topic=self.topic, **fields.pop("kafka", {}))
        given = {"contract": nullable(), "seconds": 0, "poll_seconds": 0.05, "features": "clicking"}
        return StreamFeatures(dataset="clicks", source=source, **(given | fields))

    def begin(self, **fields: Any) -> RunContext:
        return run_of(self.shop.settings, self.stream(**fields))

    def run(self, **fields: Any) -> RunContext:
        context = self.begin(**fields)
        finish(context)
        return context

    def attempt(self, context: RunContext, deadly: Any = None) -> Any:
        """Execute the run in a process of its own, which is begun."""
        settings = self.shop.settings.model_dump(mode="json")
        process = spawned.Process(target=work, args=(str(self.shop.root), settings, context.run.id, deadly))
        process.start()
        return process

    def online(self) -> dict[int, tuple[float | None, str | None]]:
        shops = sorted({shop for shop, _, _ in self.sent})
        found = self._reader.read({"shop": shops}, [datetime.now(UTC)] * len(shops)).values
        return dict(zip(shops, zip(found["amount"], found["note"], strict=True), strict=True))

    def wanted(self, but: float = FAR) -> dict[int, tuple[float | None, str | None]]:
        """By looking at every row: the newest event time, and of equal ones the last."""
        newest: dict[int, tuple[float, float]] = {}
        for shop, hour, amount in self.sent:
            if hour < but and (shop not in newest or hour >= newest[shop][0]):
                newest[shop] = (hour, amount)
        shops = {shop for shop, _, _ in self.sent}
        return {s: (newest[s][1], f"n{newest[s][1]}") if s in newest else (None, None) for s in shops}

    def check(self) -> None:
        """Each message is in the dataset once, and what is online is what a look at all of them says."""
        rows = self.shop.lake.read("clicks").select("shop", "at", "amount").rows()
        sent = [(shop, START + timedelta(hours=hour), amount) for shop, hour, amount in self.sent]
        assert sorted(rows) == sorted(sent)
        assert self.online() == self.wanted()


def nullable() -> Contract:
    """As what Polars has written: any column may be null."""
    columns = {name: column.replace(nullable=True) for name, column in CONTRACT.columns.items()}
    return CONTRACT.replace(columns=columns)


def finish(context: RunContext) -> None:
    stream.execute(context)
    run = context.ledger.run(context.run.id)
    context.ledger.move(run, State.SUCCEEDED, outputs=context.outputs, metrics=context.metrics)


@pytest.fixture
def clicks(shop: Shop, kafka: str) -> Clicks:
    return Clicks(shop, kafka)


@pytest.mark.parametrize("online_kind", ["sqlite", "redis", "postgres"], indirect=True)
def test_what_is_produced_is_online_and_the_newest_event_time_wins(clicks: Clicks) -> None:
    clicks.history()
    clicks.send((1, 3, 10.0), (1, 2, 11.0), (3, 1, 12.0), (3, 1, 12.0), (2, 4, 13.0), (2, 5, 14.0))
    context = clicks.run()
    clicks.check()
    assert clicks.online() == {1: (10.0, "n10.0"), 2: (14.0, "n14.0"), 3: (12.0, "n12.0")}
    assert [(str(v.ref), v.detail["rows"]) for v in context.outputs] == [("dataset:clicks", 6)]
    assert {name: context.metrics[name] for name in ("batches", "rows", "refused", "online", "future")} == {
        "batches": 1,
        "rows": 6,
        "refused": 0,
        "online": {"last": 2 + 3, "page": 2 + 3},
        "future": 0,
    }
    assert context.metrics["lag_seconds"] > 0
    clicks.send((1, 2.5, 20.0), (3, 9, 21.0))  # late, and newer
    clicks.run()
    clicks.check()
    assert clicks.run().metrics["batches"] == 0


class Stopped(BaseException):
    """As a worker raises it at a SIGTERM."""


def until(clicks: Clicks, thread: threading.Thread) -> None:
    """Returns when all that was sent is online."""
    deadline = time.monotonic() + DEADLINE
    while clicks.online() != clicks.wanted():
        assert thread.is_alive()
        assert time.monotonic() < deadline, (clicks.online(), clicks.wanted())
        time.sleep(0.02)


def test_it_goes_on_and_what_others_commit_goes_online_too(clicks: Clicks) -> None:
    clicks.send((1, 1, 1.0))
    first = clicks.run(seconds=3600)  # one batch: what reads the dataset waits for it
    assert first.metrics["batches"] == 1
    context, stop = clicks.begin(seconds=3600), threading.Event()

    def progress(done: float, total: float, unit: str = "") -> None:
        if stop.is_set():
            raise Stopped

    context.progress = progress  # type: ignore[method-assign]
    ended: list[BaseException] = []

    def run() -> None:
        try:
            stream.execute(context)
        except Stopped as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    for number in range(2, 5):
        clicks.send((1, number, float(number)), (number, 0, 0.5))
        until(clicks, thread)
    values: dict[str, list[Any]] = {
        name: [str(value) if name == "at" else value] for name, value in row((9, 3, 30.0)).items()
    }
    append(clicks.shop.lake, clicks.view, values, datetime.now(UTC))
    clicks.sent.append((9, 3, 30.0))
    until(clicks, thread)
    stop.set()
    thread.join(DEADLINE)
    assert len(ended) == 1
    clicks.check()


POINTS = {
    "nothing committed": Die("manta.data.lake:Lake", "change"),
    "committed": Die("manta.data.lake:Lake", "change", after=True),
    "to be written": Die("manta.features.stream", "_patiently", call=3),
    "one view written": Die("manta.features.stream", "_patiently", call=3, after=True),
    "written": Die("manta.features.stream:_Online", "bring", after=True),
    "the second batch": Die("manta.features.stream", "take", call=2),
}


def test_killed_anywhere_it_is_whole_after_the_next_attempt(clicks: Clicks) -> None:
    clicks.history()
    clicks.run()
    for number, (point, deadly) in enumerate(POINTS.items()):
        clicks.send((1, 3 + number, 10.0), (2, 2, 11.0 + number), (3, number, 12.0), (3, number, 12.0))
        context = clicks.begin(seconds=3600)
        process = clicks.attempt(context, deadly)
        process.join(DEADLINE)
        assert process.exitcode == -signal.SIGKILL, point
        clicks.send((1, 2, 20.0), (3, 1 + number, 21.0 + number), (10 + number, 0, 22.0))
        context.definition = clicks.stream()  # which ends after a batch
        finish(context if number % 2 else clicks.begin())  # the same run again, or another
        clicks.check()


def test_a_sigterm_ends_it(clicks: Clicks) -> None:
    clicks.send((1, 1, 1.0))
    clicks.run()
    process = clicks.attempt(clicks.begin(seconds=3600), listens)
    clicks.send((1, 2, 2.0))
    deadline = time.monotonic() + DEADLINE
    while clicks.online() != clicks.wanted():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.terminate()
    process.join(DEADLINE)
    assert process.exitcode == 3
    clicks.check()


@pytest.mark.parametrize("online_kind", ["redis"], indirect=True)
def test_a_store_that_is_down_and_then_is_empty(
    clicks: Clicks, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clicks.send((1, 1, 1.0), (2, 1, 1.5))
    clicks.run()
    monkeypatch.setattr(stream, "PATIENCE_SECONDS", 0.4)
    context = clicks.begin()
    clicks.send((1, 2, 2.0))
    taken = stream.take

    def fell(*given: Any) -> Any:
        made = taken(*given)
        redis_server.kill()  # between the commit and the store
        return made

    monkeypatch.setattr(stream, "take", fell)
    try:
        with pytest.raises(FeaturesUnavailable):
            stream.execute(context)
    finally:
        redis_server.start()
        redis_server.client().flushall()
    assert clicks.shop.lake.read("clicks").height == 3
    monkeypatch.setattr(stream, "take", taken)
    clicks.run()
    clicks.check()  # of shop 2 too, which the store had lost


def test_of_rows_that_tie_the_later_message_counts_online_and_offline(clicks: Clicks) -> None:
    for number in range(4):
        clicks.send((1, 1, float(number)), (2, 1, float(number)))
        clicks.run()
        clicks.check()
    assert clicks.shop.lake.read("clicks")["amount"].to_list() == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]


def test_a_row_of_the_far_future_does_not_win(clicks: Clicks, monkeypatch: pytest.MonkeyPatch) -> None:
    clicks.send((1, 1, 1.0), (1, FAR, 2.0), (2, FAR, 3.0))
    assert clicks.run().metrics["future"] == 2
    assert clicks.shop.lake.read("clicks").height == 3
    clicks.send((1, 2, 4.0))
    clicks.run()
    assert clicks.online() == clicks.wanted(but=FAR) == {1: (4.0, "n4.0"), 2: (None, None)}
    monkeypatch.setattr(stream, "FUTURE_SECONDS", 2 * FAR * 3600)  # its time has come
    clicks.run()
    assert clicks.online() == clicks.wanted(but=2 * FAR)


def test_what_begins_at_the_end_of_a_topic_keeps_its_place(clicks: Clicks) -> None:
    latest: dict[str, Any] = {"kafka": {"start": "latest"}}
    clicks.history()
    clicks.send((7, 1, 7.0))
    before = clicks.sent.pop()
    clicks.run(**latest)
    clicks.send((3, 1, 8.0))
    clicks.run(**latest)
    clicks.check()
    assert before not in clicks.sent


def test_what_would_not_stay_online_is_refused(clicks: Clicks) -> None:
    with pytest.raises(NotFound, match="nothing"):
        clicks.run(features="nothing")
    with pytest.raises(DefinitionInvalid, match="no view of which reads 'clicks'"):
        clicks.run(features="trip")
    with pytest.raises(DefinitionInvalid, match="late row would undo a newer one"):
        clicks.run(contract=CONTRACT.replace(key=("shop",)))
    clicks.shop.change("clicks.py", "ttl=timedelta(0), source=pushed", "ttl=timedelta(0), source=clicks")
    applied(clicks.shop.settings)
    with pytest.raises(DefinitionInvalid, match="last online as rows come, and it is not pushed to"):
        clicks.run()
    assert clicks.shop.lake.version("clicks") is None


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_a_key_with_the_time_leaves_each_row_once(clicks: Clicks) -> None:
    contract = CONTRACT.replace(key=("shop", "at"))
    clicks.send((1, 1, 1.0), (1, 3, 2.0), (1, 2, 3.0))
    clicks.run(contract=contract)
    clicks.send((1, 1, 1.0), (1, 3, 4.0))
    clicks.sent = [(1, 1, 1.0), (1, 2, 3.0), (1, 3, 4.0)]
    clicks.run(contract=contract)
    clicks.check()


def test_pushing_the_far_future_is_refused_with_its_field(clicks: Clicks) -> None:
    clicks.history()
    soon = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
    late = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    assert push([clicks.view], {"shop": [5], "at": [soon], "amount": [1.0]}, None, None) == 1
    both = {"shop": [5, 5], "event_timestamp": [soon, late], "amount": [1.0, 2.0]}
    with pytest.raises(RequestInvalid, match="'event_timestamp' of row 1 is") as failed:
        push([clicks.view], both, None, None)
    assert failed.value.detail["fields"] == ["event_timestamp"]
