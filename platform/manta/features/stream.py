"""A stream: rows go from a source into their dataset and then online, batch by batch, until the run's time
is over.

Of each batch the commit holds the rows and where the next one begins, and only then are the newest of the
rows written online; there the newest event time wins. So offsets are never ahead of the rows, a row is in the
dataset once, and to write it online again changes nothing. What a killed run, or one whose store was down,
has not written online needs no mark: each run begins by writing the newest row of every key.

What others commit meanwhile, pushes above all, goes online with the next batch. A row later than now by more
than `push.FUTURE_SECONDS` stays in the dataset only, for it would win over all that comes until its time; a
run that begins when that has come writes it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import polars as pl

from manta.data import checks
from manta.data.ingest import take
from manta.data.lake import Lake
from manta.data.parallel import small
from manta.definitions import StreamFeatures
from manta.definitions.features import CATALOG
from manta.errors import DefinitionInvalid, FeaturesUnavailable
from manta.features import asof
from manta.features.catalog import Catalog, read_catalog
from manta.features.compiled import View, service_of
from manta.features.historical import side_of
from manta.features.push import FUTURE_SECONDS
from manta.features.stores import OnlineStore, open_store_of
from manta.ledger.context import RunContext

PATIENCE_SECONDS = 60.0  # with an online store that is down: what restarts is back by then
PAUSE_SECONDS, MOST_PAUSE_SECONDS = 0.25, 5.0
TELL_SECONDS = 30.0  # between two lines of the log


def execute(context: RunContext) -> None:
    """Read, commit and write online until the run's time is over.

    Raises:
        NotFound: the service has not been applied.
        DefinitionInvalid: a view of it on the dataset is not pushed to, or the dataset does not hold what a
            view declares; or the contract's key would have an older row replace a newer one.
        FeaturesUnavailable: the store could not be written for a minute. The dataset has the rows; the next
            run writes them.
        SourceUnreadable, ContractBroken, Conflict: as an ingest; the batch is not committed.
    """
    stream: StreamFeatures = context.definition
    checks.require(stream.contract)
    lasts = stream.seconds if _again(context) else 0.0
    catalog = read_catalog(context.read(*CATALOG).detail["catalog"])
    views = views_of(stream, catalog)
    lake = Lake(context.settings.datasets)
    with closing(open_store_of(catalog.store)) as store:
        online = _Online(stream.dataset, lake, views, store)
        held = lake.version(stream.dataset)
        if held is not None:  # before the source is asked, which may be away
            online.bring(held)
        done = _go_on(context, stream, online, time.monotonic() + lasts)
    context.measured(**done.metrics(), **online.metrics())
    context.produced("dataset", stream.dataset, done.version, rows=done.rows, refused=done.refused)


def views_of(stream: StreamFeatures, catalog: Catalog) -> list[View]:
    """The pushed views of the dataset, with all their features, whatever service uses them.

    Raises:
        NotFound, DefinitionInvalid: as :func:`execute`.
    """
    service = service_of(catalog.service(stream.features), stream.features)
    stream.require({view.name: view.pushed for view in service.views if view.dataset == stream.dataset})
    names = [n for n, of in catalog.views.items() if of.get("pushed") and of["dataset"] == stream.dataset]
    views = [catalog.view(name) for name in names]
    for view in views:
        if stream.mode == "upsert" and view.time not in stream.contract.key:
            raise DefinitionInvalid(
                f"mode='upsert' keeps the row that came last for {', '.join(stream.contract.key)}, and view "
                f"{view.name!r} the one of the newest {view.time!r}: a late row would undo a newer one",
                hint=f"add {view.time!r} to the contract's key, or leave the key out and say mode='append'",
            )
    return views


@dataclass
class _Done:
    """What the run has done: ``slowest`` is the longest batch in seconds, from its look at the source until
    its rows were online; ``waiting`` the most messages that one has found; ``lag`` how many seconds later
    than its event time the newest row of the last batch was online."""

    version: int = 0
    batches: int = 0
    rows: int = 0
    refused: int = 0
    waiting: int = 0
    slowest: float = 0.0
    lag: float | None = None

    def metrics(self) -> dict[str, Any]:
        counts = {"batches": self.batches, "rows": self.rows, "refused": self.refused}
        counts |= {"most_waiting": self.waiting}
        lag = None if self.lag is None else round(self.lag, 3)
        return {**counts, "slowest_batch_seconds": round(self.slowest, 3), "lag_seconds": lag}


def _go_on(context: RunContext, stream: StreamFeatures, online: _Online, until: float) -> _Done:
    """Batches, one at least, until the clock shows ``until``. Only sleeps, reads and writes, none of which
    keeps an exception from ending it: so does a SIGTERM, which is one."""
    done, began, told = _Done(), time.monotonic(), time.monotonic()
    while True:
        looked = time.monotonic()
        batch = _Batch(context, online.lake.version(stream.dataset))
        taken = take(batch, stream, online.lake, small)
        newest = online.bring(taken.version)
        if newest is not None:
            done.lag = time.time() - newest / 1e6
        now = time.monotonic()
        done.version = taken.version
        if taken.rows or taken.refused:
            done.batches += 1
            done.rows += taken.rows
            done.refused += taken.refused
            done.waiting = max(done.waiting, taken.rows + taken.refused)
            done.slowest = max(done.slowest, now - looked)
        if now - told > TELL_SECONDS or now >= until:
            print(f"manta: {done.metrics() | online.metrics()}", flush=True)
            told = now
        if now >= until:
            return done
        context.progress(now - began, until - began, "s")
        time.sleep(max(0.0, min(stream.poll_seconds - (now - looked), until - now)))


def _again(context: RunContext) -> bool:
    """Whether the last run to succeed was of the same definition and the same service, which is read here.

    Raises:
        NotFound: the service has not been applied.
    """
    features = context.read("features", context.definition.features)
    last = context.ledger.last_success(context.run.project, context.run.job)
    if last is None or last.fingerprint != context.run.fingerprint:
        return False
    return any((each.ref, each.version) == (features.ref, features.version) for each in last.inputs)


class _Batch(RunContext):
    """One batch, as the ingest sees it: a run with a key of its own.

    Batches are in the order of the versions they follow, and the lake reads files in the order of their
    names: so of two rows that tie, the one that came later counts offline as it does online. A batch that
    was killed has, when it is made again, the same key unless others have committed; that it is committed
    once is owed to the cursor in the commit.
    """

    def __init__(self, context: RunContext, after: int | None) -> None:
        super().__init__(context.settings, context.ledger, context.run, context.definition, context.root)
        self._key = f"stream-{0 if after is None else after + 1:012d}-{context.run_key}"

    @property
    def run_key(self) -> str:
        return self._key

    def progress(self, done: float, total: float, unit: str = "") -> None:
        """A batch is a moment: the run's progress is told by its time."""

    def read_source(self, name: str, token: str) -> None:
        """Where each batch began is in its commit; the ledger is not written every second."""


@dataclass
class _Online:
    """The views in the online store, and what of the dataset has been written to them.

    Attributes:
        files: of the dataset, whose rows have been written.
        keys: view → rows written since the run began, those included that changed nothing.
        future: rows that were left out, for they are of later times than may be believed.
    """

    dataset: str
    lake: Lake
    views: Sequence[View]
    store: OnlineStore
    files: set[str] = field(default_factory=set)
    keys: dict[str, int] = field(default_factory=dict)
    future: int = 0

    def bring(self, version: int) -> int | None:
        """Write the newest row of every key in the files that a version has and that have not been written;
        at first in all. Gives the newest event time among them, in microseconds.

        Raises:
            FeaturesUnavailable, DefinitionInvalid: as :func:`execute`.
        """
        files = set(self.lake.files(self.dataset, version))
        new = files - self.files
        newest = self._write(self.lake.scan(self.dataset, version, only=[*new])) if new else None
        self.files = files
        return newest

    def metrics(self) -> dict[str, Any]:
        return {"online": dict(self.keys), "future": self.future}

    def _write(self, rows: pl.LazyFrame) -> int | None:
        until = round((datetime.now(UTC).timestamp() + FUTURE_SECONDS) * 1e6)
        times: list[int] = []
        for view in self.views:
            found = asof.newest(side_of(view, rows), until)
            self.keys[view.name] = self.keys.get(view.name, 0) + _patiently(self.store, view, found)
            times += found[asof.TS].top_k(1).to_list()
        self.future += max(_later(view, rows, until) for view in self.views)
        return max(times, default=None)


def _later(view: View, rows: pl.LazyFrame, until: int) -> int:
    assert view.time is not None  # else it is not pushed to: see manifest.py
    at = asof.utc(view.time, rows.collect_schema()[view.time]).to_physical()
    return int(rows.select((at > until).sum()).collect().item())


def _patiently(store: OnlineStore, view: View, rows: pl.DataFrame) -> int:
    """Write, and where the store is down try again for :data:`PATIENCE_SECONDS`."""
    given_up, pause = time.monotonic() + PATIENCE_SECONDS, PAUSE_SECONDS
    while True:
        try:
            return store.write(view, rows)
        except FeaturesUnavailable as error:
            if time.monotonic() + pause > given_up:
                raise
            print(f"manta: {view.name} is not online yet: {error.message}", flush=True)
        time.sleep(pause)
        pause = min(2 * pause, MOST_PAUSE_SECONDS)
