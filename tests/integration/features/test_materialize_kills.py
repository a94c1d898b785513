"""A small piece of tests/soak/features.py: killed twice on each store, nothing is skewed or noticed."""

from __future__ import annotations

import time

import pytest

from tests.soak.features import STORES, Lane


@pytest.mark.parametrize("kind", STORES)
def test_killed_and_made_again(kind: str) -> None:
    lane = Lane(kind, seed=3, keys=200)
    lane.soak(kills=2, until=time.monotonic() + 240)
    assert lane.findings == []
    assert lane.met.total() == 2
    assert lane.reads > 0
