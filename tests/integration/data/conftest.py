"""A project in a folder of its own, with a ledger, whose definitions are executed in this process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import pytest

from manta.data.lake import Lake
from manta.definitions import Definition
from manta.ledger.actor import OWNER
from manta.ledger.context import RunContext
from manta.ledger.runs import State
from manta.ledger.store import Ledger
from manta.settings import Settings


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.datasets)


@pytest.fixture
def context_of(settings: Settings) -> Callable[[Definition], RunContext]:
    """A run of the definition, as the worker would begin it."""
    settings.home.mkdir()
    ledger = Ledger(settings.ledger_url)
    ledger.create()
    keys = count()

    def context(definition: Definition) -> RunContext:
        run = ledger.submit(
            key=str(next(keys)),
            project=settings.project,
            job=definition.name,
            kind=definition.kind,
            definition=definition.to_json(),
            fingerprint="f",
            package="p",
            by=OWNER,
        )
        run = ledger.move(ledger.start(run, f"s-{run.id}"), State.RUNNING)
        return RunContext(settings, ledger, run, definition, settings.root)

    return context


@pytest.fixture
def succeed() -> Callable[[RunContext], None]:
    """What the worker does when ``execute`` has returned."""

    def move(context: RunContext) -> None:
        run = context.ledger.run(context.run.id)
        context.ledger.move(run, State.SUCCEEDED, outputs=context.outputs, metrics=context.metrics)

    return move
