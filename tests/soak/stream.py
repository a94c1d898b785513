"""A stream under kills: the lane `stream` of tests/soak/features.py.

Messages come all the time: newer ones, late ones, the same again. The stream's process is killed (SIGKILL) at
random moments and its run made again, as another attempt or as another run; or Redis or PostgreSQL is killed
under it, and it goes on. A reader asks for all keys all the time.

Checked at the end of each round, after a last batch: the dataset has each message once; every key has online
the value of its newest event time. And the reader never sees an error while the store is up, nor a value
older than one it has seen.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import pkgutil
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from manta.connectors.kafka import Kafka
from manta.data.lake import Lake
from manta.definitions import Column, Contract, Definition, FeatureRepo, StreamFeatures, from_json
from manta.features import apply, stream
from manta.features.compiled import read_manifest
from manta.ledger.context import RunContext
from manta.ledger.runs import State
from manta.ledger.store import Ledger
from manta.settings import Settings
from manta.testing.connectors import run_of
from tests.benchmarks._features import AT, Repository, repository
from tests.brokers import broker, make, produce
from tests.soak.features import FEATURES, RUN_SECONDS, SERVER_SHARE, Lane, spawned

HOUR = timedelta(hours=1)
CONTRACT = Contract(
    columns={
        "user": Column(type="int64", nullable=True),
        **{f"f{n}": Column(type="float64", nullable=True) for n in range(FEATURES)},
        "at": Column(type="timestamp", nullable=True),
    }
)


def work(root: str, settings: dict[str, Any], run: int, deadly: Callable[[], None] | None = None) -> None:
    """One attempt of a run, in a process of its own; ``deadly`` is called before it begins."""
    os.chdir(root)
    sys.path.insert(0, root)
    known = Settings(**settings)
    ledger = Ledger(known.ledger_url)
    begun = ledger.run(run)
    context = RunContext(known, ledger, begun, from_json(begun.definition), Path(root))
    stream.small = _here
    if deadly:
        deadly()
    with contextlib.redirect_stdout(io.StringIO()):
        stream.execute(context)
    ledger.move(begun, State.SUCCEEDED, outputs=context.outputs, metrics=context.metrics)


def _here(
    function: Callable[[Any], Any], items: Sequence[Any], *, tasks: int | None = None, name: str = ""
) -> Iterator[tuple[int, Any]]:
    """In place of Ray, which has no part in this soak, for the several pieces that wait on a slow machine.
    Tasks that are killed are the matter of tests/soak/data.py."""
    return ((index, function(item)) for index, item in enumerate(items))


class Die:
    """For :func:`work`: kills its process before or after the given call of a function of manta's, which the
    module or class ``owner`` has."""

    def __init__(self, owner: str, name: str, *, call: int = 1, after: bool = False) -> None:
        self._owner, self._name, self._call, self._after = owner, name, call, after

    def __call__(self) -> None:
        owner = pkgutil.resolve_name(self._owner)
        original, calls = getattr(owner, self._name), itertools.count(1)

        def deadly(*given: Any, **named: Any) -> Any:
            last = next(calls) == self._call
            if not last or self._after:
                made = original(*given, **named)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return made

        setattr(owner, self._name, deadly)


def listens() -> None:
    """For :func:`work`: ends at a SIGTERM as a worker does."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))


def applied(settings: Settings) -> dict[str, dict[str, Any]]:
    """Apply the features by a run; gives each service's manifest."""
    context = run_of(settings, FeatureRepo())
    with contextlib.redirect_stdout(io.StringIO()):
        apply.execute(context)
    context.ledger.move(context.run, State.SUCCEEDED, outputs=context.outputs)
    return {v.name: read_manifest(v.detail["manifest"]) for v in context.outputs if "manifest" in v.detail}


class Stream(Lane):
    """One kind of online store; keys are users, and the time of a row is its round."""

    def soak(self, kills: int, until: float) -> None:
        self._grow(0, range(self._keys))
        with (
            broker() as self._broker,
            repository(self.kind, self._frame(), FEATURES, append="yes", pushed=True) as repo,
        ):
            self._topic = f"t{secrets.token_hex(6)}"
            make(self._broker, self._topic)
            applied(repo.settings)
            self._rounds(repo, kills, until)

    def _first(self, repo: Repository) -> None:
        for _ in range(2):  # the first also waits for what runs are forked from
            self._finish(repo)

    def _round(self, repo: Repository, number: int) -> None:
        self._send(number)
        run = run_of(repo.settings, self._stream(seconds=RUN_SECONDS)).run.id
        for _ in range(self._chance.randint(1, 3)):  # attempts
            process = self._begin(repo, run)
            self._disturb(repo, process, number)
            process.kill()
            process.join(RUN_SECONDS)
        self._finish(repo)
        self._check(repo, f"round {number}")
        found = Counter(Lake(repo.settings.datasets).read("stats").select("user", "f0").rows())
        if found != Counter((user, float(of)) for user, of in self._rows):
            self.findings.append(f"round {number}: the dataset is not what was sent")

    def _disturb(self, repo: Repository, process: Any, number: int) -> None:
        """Returns when the process is to be killed; messages come meanwhile."""
        until = time.monotonic() + self._chance.uniform(0, 2) * self._seconds
        server = repo.server is not None and self._chance.random() < SERVER_SHARE
        while time.monotonic() < until:
            self._send(number)
            time.sleep(self._chance.uniform(0, 0.1))
        if server:
            self._down.set()
            repo.server.kill()
            self._send(number)
            repo.server.start()
            self._down.clear()
        lived = process.is_alive()
        self.met["store and run" if server else "run" if lived else "run, after its end"] += 1

    def _send(self, number: int) -> None:
        """Rows of this round; late ones, maybe of keys that there were not; and some of them twice."""
        chance = self._chance
        some = [(user, number) for user in chance.sample(range(self._keys), self._keys // 20)]
        late = [(self._keys + chance.randrange(50), chance.randrange(number + 1)) for _ in range(5)]
        late += [(chance.randrange(self._keys), chance.randrange(number + 1)) for _ in range(5)]
        both = some + late + chance.sample(some, len(some) // 5)
        values = [
            {"user": user, "at": (AT + of * HOUR).isoformat(), **{f"f{n}": of for n in range(FEATURES)}}
            for user, of in both
        ]
        produce(self._broker, self._topic, values)
        for user, of in both:
            self._grow(of, [user])

    # --- runs -----------------------------------------------------------------------------------------

    def _stream(self, seconds: float) -> Definition:
        source = Kafka(servers=self._broker, topic=self._topic)
        return StreamFeatures(
            dataset="stats",
            source=source,
            contract=CONTRACT,
            features="wide",
            poll_seconds=0.05,
            seconds=seconds,
        )

    def _begin(self, repo: Repository, run: int) -> Any:
        given = (str(repo.root), repo.settings.model_dump(mode="json"), run)
        process = spawned.Process(target=work, args=given, daemon=True)
        process.start()
        return process

    def _finish(self, repo: Repository) -> None:
        """A last batch, by a run that ends well."""
        began = time.monotonic()
        process = self._begin(repo, run_of(repo.settings, self._stream(seconds=0)).run.id)
        process.join(RUN_SECONDS)
        if process.exitcode != 0:
            raise RuntimeError(f"the run ended with {process.exitcode}")
        self._seconds = time.monotonic() - began
