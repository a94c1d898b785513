"""Leases: one holder at a time, and none for ever."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from manta.ledger.store import Ledger


def test_one_of_many_takes_it_and_keeps_it(ledger: Ledger) -> None:
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(lambda n: ledger.leases.take("leader", f"h{n}", 60), range(8)))
    assert taken.count(True) == 1
    holder = f"h{taken.index(True)}"
    assert ledger.leases.holder("leader") == holder
    assert ledger.leases.take("leader", holder, 60)
    assert not ledger.leases.take("leader", "another", 60)
    assert ledger.leases.take("other lease", "another", 60)


def test_what_has_run_out_is_free(ledger: Ledger) -> None:
    assert ledger.leases.take("leader", "a", -1)
    assert ledger.leases.holder("leader") is None
    assert ledger.leases.take("leader", "b", 60)
    assert not ledger.leases.take("leader", "a", 60)


def test_only_its_holder_gives_it_back(ledger: Ledger) -> None:
    ledger.leases.take("leader", "a", 60)
    ledger.leases.release("leader", "b")
    assert ledger.leases.holder("leader") == "a"
    ledger.leases.release("leader", "a")
    assert ledger.leases.take("leader", "b", 60)
