"""Idempotency keys over both databases: done once, answered alike, and never stuck."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from sqlalchemy import text

from manta.api.idempotency import Claim, Idempotency, Kept, request_digest, strict_json
from manta.errors import InProgress, KeyReused, RequestInvalid
from manta.ledger.database import Database
from manta.ledger.store import Ledger


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    ledger.create()
    yield ledger
    ledger.close()


def begun(idempotency: Idempotency, key: str = "k", request: str = "r") -> Claim:
    claim = idempotency.begin("user:ada", key, request)
    assert isinstance(claim, Claim)
    return claim


def test_an_answer_is_given_again(ledger: Ledger) -> None:
    idempotency = Idempotency(ledger.requests)
    claim = begun(idempotency)
    with pytest.raises(InProgress) as at_work:
        idempotency.begin("user:ada", "k", "r")
    assert at_work.value.detail == {"retry_after": 1}
    idempotency.end(claim, 201, b'{"id":1}', ())
    assert idempotency.begin("user:ada", "k", "r") == Kept(201, b'{"id":1}')
    with pytest.raises(KeyReused):
        idempotency.begin("user:ada", "k", "another")
    assert isinstance(idempotency.begin("user:bob", "k", "another"), Claim)  # his own


def test_what_failed_may_be_sent_again(ledger: Ledger) -> None:
    idempotency = Idempotency(ledger.requests)
    for status in (404, 422, 500, 503):
        idempotency.end(begun(idempotency), status, b"{}", ())
    idempotency.end(begun(idempotency, request="corrected"), 200, b"{}", ())


def test_of_many_at_once_one_is_executed(ledger: Ledger) -> None:
    servers = [Idempotency(ledger.requests) for _ in range(2)]

    def send(number: int) -> bool:
        try:
            return isinstance(servers[number % 2].begin("user:ada", "k", "r"), Claim)
        except InProgress:
            return False

    with ThreadPoolExecutor(16) as pool:
        assert sum(pool.map(send, range(50))) == 1


def test_a_request_whose_server_died_is_taken_over_by_one(ledger: Ledger, ledger_url: str) -> None:
    dies = (
        "import os, sys\nfrom manta.api.idempotency import Idempotency\n"
        "from manta.ledger.store import Ledger\n"
        "Idempotency(Ledger(sys.argv[1]).requests).begin('user:ada', 'k', 'r'); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", dies, ledger_url]).returncode == 9
    idempotency = Idempotency(ledger.requests)
    with pytest.raises(KeyReused):
        idempotency.begin("user:ada", "k", "another")

    def send(_: int) -> Claim | None:
        try:
            claim = idempotency.begin("user:ada", "k", "r")
        except InProgress:
            return None
        assert isinstance(claim, Claim)
        return claim

    with ThreadPoolExecutor(8) as pool:
        claims = [claim for claim in pool.map(send, range(16)) if claim]
    assert len(claims) == 1
    idempotency.end(claims[0], 200, b"{}", ())
    assert idempotency.begin("user:ada", "k", "r") == Kept(200, b"{}")


def test_a_request_whose_end_could_not_be_written_is_not_stuck(ledger: Ledger) -> None:
    idempotency = Idempotency(ledger.requests)
    claim = begun(idempotency)
    idempotency._at_work.discard(claim.holder)  # as when the ledger is down at its end
    again = begun(idempotency)
    idempotency.end(claim, 200, b'"late"', ())  # the first no longer counts
    idempotency.end(again, 200, b'"second"', ())
    assert idempotency.begin("user:ada", "k", "r") == Kept(200, b'"second"')


def test_what_is_shown_once_is_not_kept(ledger: Ledger, ledger_url: str) -> None:
    idempotency = Idempotency(ledger.requests)
    idempotency.end(begun(idempotency), 201, b'{"key":"manta_secret","prefix":"p"}', ("key",))
    kept = idempotency.begin("user:ada", "k", "r")
    assert isinstance(kept, Kept)
    assert b"manta_secret" not in kept.content
    assert b'"key": null' in kept.content
    assert b"is kept nowhere" in kept.content
    database = Database(ledger_url)
    with database.read() as db:
        assert "manta_secret" not in str(db.execute(text("select * from requests")).all())
    database.close()


def test_old_requests_are_purged(ledger: Ledger) -> None:
    idempotency = Idempotency(ledger.requests)
    idempotency.end(begun(idempotency), 200, b"{}", ())
    ledger.requests.purge(timedelta(hours=1))
    assert isinstance(idempotency.begin("user:ada", "k", "r"), Kept)
    ledger.requests.purge(timedelta(0))
    begun(idempotency)


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 129, "a\n"])
def test_what_is_no_key_is_refused(ledger: Ledger, key: str) -> None:
    with pytest.raises(RequestInvalid):
        Idempotency(ledger.requests).begin("user:ada", key, "r")


def test_requests_differ_by_all_that_they_are() -> None:
    requests = [
        ("POST", "/a", b"", b"{}"),
        ("PUT", "/a", b"", b"{}"),
        ("POST", "/b", b"", b"{}"),
        ("POST", "/a", b"x=1", b"{}"),
        ("POST", "/a", b"", b"[]"),
    ]
    assert len({request_digest(*each) for each in requests}) == len(requests)


@pytest.mark.parametrize("body", [b'{"a": NaN}', b"{", b'"\\u0000"', b'"\\ud800"', b"[" * 100_000, b"\xff"])
def test_json_that_not_every_part_can_hold_is_refused(body: bytes) -> None:
    with pytest.raises(RequestInvalid):
        strict_json(body)


@pytest.mark.parametrize("body", [b'{"a": 1}', '"é"'.encode(), b'"\\ud83d\\ude00"', b'"\\\\u0000"'])
def test_json_that_all_can_hold_is_taken(body: bytes) -> None:
    strict_json(body)
