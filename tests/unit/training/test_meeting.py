"""How the workers of a group learn of each other, without a library that they would then connect."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from manta.training.trainers._group import NotMet
from manta.training.trainers._meeting import Meeting, Member, joined

WORKERS = 3


@pytest.fixture
def meeting() -> Iterator[Meeting]:
    with Meeting("127.0.0.1", WORKERS) as meeting:
        yield meeting


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(WORKERS) as pool:
        yield pool


def all_of(meeting: Meeting, pool: ThreadPoolExecutor) -> list[Member]:
    coming = [pool.submit(Member, meeting.told, rank, f"10.0.0.{rank}:1") for rank in (2, 0, 1)]
    members = [each.result(10) for each in coming]
    return [members[at] for at in (1, 2, 0)]


def test_each_is_told_all_addresses_by_rank(meeting: Meeting, pool: ThreadPoolExecutor) -> None:
    for member in all_of(meeting, pool):
        assert member.addresses == ["10.0.0.0:1", "10.0.0.1:1", "10.0.0.2:1"]


def test_what_the_first_says_the_others_hear(meeting: Meeting, pool: ThreadPoolExecutor) -> None:
    first, *others = all_of(meeting, pool)
    for word in (False, False, True):
        first.say(word)
    for other in others:
        assert [other.hear() for _ in range(3)] == [False, False, True]
    first.close()
    for other in others:
        with pytest.raises(NotMet):
            other.hear()


def test_strangers_disturb_nobody(meeting: Meeting, pool: ThreadPoolExecutor) -> None:
    place = (meeting.told["host"], meeting.told["port"])
    for hello in ("", "{", "[]\n", json.dumps({"rank": 0, "address": "x", "word": "guessed"}) + "\n"):
        with socket.create_connection(place) as stranger:
            stranger.sendall(hello.encode())
    assert all_of(meeting, pool)[0].addresses[0] == "10.0.0.0:1"


def test_when_it_is_over_nobody_waits() -> None:
    with ThreadPoolExecutor(1) as pool, Meeting("127.0.0.1", WORKERS) as meeting:
        alone = pool.submit(Member, meeting.told, 1, "10.0.0.1:1")
        meeting.__exit__()
        with pytest.raises(NotMet):
            alone.result(10)
    with pytest.raises(NotMet):
        Member(meeting.told, 0, "10.0.0.0:1")


def test_a_port_is_held_until_all_have_met(pool: ThreadPoolExecutor) -> None:
    def member(rank: int) -> tuple[int, list[str]]:
        with joined(meeting.told, rank, "127.0.0.1") as (member, port), socket.socket() as free:
            free.bind(("", port))
            return port, member.addresses

    with Meeting("127.0.0.1", 2) as meeting:
        first = pool.submit(member, 0)
        second = pool.submit(member, 1)
        (one, addresses), (other, _) = first.result(10), second.result(10)
    assert one != other
    assert addresses == [f"127.0.0.1:{one}", f"127.0.0.1:{other}"]
