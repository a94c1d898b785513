"""A ledger to test: once in SQLite, once in a real PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from manta.ledger.store import Ledger


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    ledger.create()
    yield ledger
    ledger.close()
