"""A project in a folder of its own, with a ledger, whose definitions are executed in this process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from manta.data.lake import Lake
from manta.definitions import Definition
from manta.ledger.context import RunContext
from manta.ledger.runs import State
from manta.settings import Settings
from manta.testing.connectors import run_of


@pytest.fixture
def lake(settings: Settings) -> Lake:
    return Lake(settings.datasets)


@pytest.fixture
def context_of(settings: Settings) -> Callable[[Definition], RunContext]:
    """A run of the definition, as the worker would begin it."""
    return partial(run_of, settings)


@pytest.fixture
def succeed() -> Callable[[RunContext], None]:
    """What the worker does when ``execute`` has returned."""

    def move(context: RunContext) -> None:
        run = context.ledger.run(context.run.id)
        context.ledger.move(run, State.SUCCEEDED, outputs=context.outputs, metrics=context.metrics)

    return move
