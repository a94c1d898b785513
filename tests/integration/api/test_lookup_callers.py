"""Who may use the look-up door: keys and roles of a real server, remembered for seconds."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from manta.errors import Forbidden, MantaError, NotFound, TooMany, Unauthenticated, Unavailable
from manta.ledger.roles import Role
from manta.serving.lookup import callers
from manta.serving.lookup.callers import Callers

from .conftest import ADMIN, Served

T = TypeVar("T")


def allowed(served: Served, *asked: tuple[str, Role], project: str = "flights") -> list[type | None]:
    """What comes of asking one after the other: None where it is allowed."""

    async def each(door: Callers) -> list[type | None]:
        return [await outcome(door, key, role) for key, role in asked]

    return with_door(served, each, project)


async def outcome(door: Callers, key: str, role: Role = Role.VIEWER) -> type | None:
    [refused] = await asyncio.gather(
        door.require(f"Bearer {key}" if key else "", role), return_exceptions=True
    )
    assert refused is None or (isinstance(refused, MantaError) and refused.hint)
    return None if refused is None else type(refused)


def with_door(served: Served, work: Callable[[Callers], Awaitable[T]], project: str = "flights") -> T:
    async def run() -> T:
        door = Callers(served.url, project)
        try:
            return await work(door)
        finally:
            await door.close()

    return asyncio.run(run())


def test_each_role_may_what_it_may(served: Served) -> None:
    viewer = served.person("user:v", flights="viewer")
    developer = served.person("user:d", flights="developer")
    elsewhere = served.person("user:e", hotels="admin")
    nobody = served.person("user:n")
    assert allowed(
        served,
        (viewer, Role.VIEWER),
        (viewer, Role.DEVELOPER),
        (developer, Role.DEVELOPER),
        (elsewhere, Role.VIEWER),
        (nobody, Role.VIEWER),
        (served.owner_key, Role.DEVELOPER),
        ("", Role.VIEWER),
        ("nonsense", Role.VIEWER),
        (viewer[:-1] + ("A" if viewer[-1] != "A" else "B"), Role.VIEWER),
    ) == [None, Forbidden, None, NotFound, NotFound, None, Unauthenticated, Unauthenticated, Unauthenticated]


def test_the_server_is_asked_once_for_a_key_also_by_many_at_once(served: Served) -> None:
    key = served.person("user:v", flights="viewer")

    async def many(door: Callers) -> int:
        asked = 0
        get = door._http.get

        async def counted(*given: object, **more: object) -> object:
            nonlocal asked
            asked += 1
            return await get(*given, **more)  # type: ignore[arg-type]

        door._http.get = counted  # type: ignore[assignment, method-assign]
        assert set(await asyncio.gather(*(outcome(door, key) for _ in range(50)))) == {None}
        assert [await outcome(door, key) for _ in range(50)] == [None] * 50
        return asked

    assert with_door(served, many) == 1


def aged(door: Callers, key: str, seconds: float) -> None:
    """As if the server had said it so long ago."""
    door._known[hashlib.sha256(f"Bearer {key}".encode()).digest()].at -= seconds


def test_what_is_revoked_or_taken_away_opens_nothing_once_the_time_is_over(served: Served) -> None:
    revoked, demoted = served.person("user:r", flights="viewer"), served.person("user:d", flights="viewer")

    async def work(door: Callers) -> None:
        assert [await outcome(door, key) for key in (revoked, demoted)] == [None, None]
        served.platform.ledger.access.revoke_key(revoked.split("_")[1], by=ADMIN)
        served.platform.ledger.access.take_away("user:d", "flights", by=ADMIN)
        assert [await outcome(door, key) for key in (revoked, demoted)] == [None, None]  # remembered
        for key in (revoked, demoted):
            aged(door, key, callers.REMEMBERED)
        assert [await outcome(door, key) for key in (revoked, demoted)] == [Unauthenticated, NotFound]

    with_door(served, work)


def test_a_key_in_use_is_asked_for_again_before_its_time_is_over(served: Served) -> None:
    key = served.person("user:r", flights="viewer")

    async def work(door: Callers) -> None:
        assert await outcome(door, key) is None
        served.platform.ledger.access.revoke_key(key.split("_")[1], by=ADMIN)
        aged(door, key, callers.ASKED_AGAIN)
        assert await outcome(door, key) is None  # not waited for
        await asyncio.gather(*door._asking.values())
        assert await outcome(door, key) is Unauthenticated

    with_door(served, work)


def test_a_key_that_was_right_outlives_the_server_for_a_while(served: Served) -> None:
    right, new = served.person("user:r", flights="viewer"), served.person("user:n", flights="viewer")

    async def work(door: Callers) -> None:
        assert await outcome(door, right) is None
        door._http.base_url = "http://127.0.0.1:9"  # type: ignore[assignment]
        aged(door, right, callers.REMEMBERED)
        assert await outcome(door, right) is None
        assert await outcome(door, new) is Unavailable
        aged(door, right, callers.GRACE)
        assert await outcome(door, right) is Unavailable

    with_door(served, work)


def test_guessing_at_the_door_is_locked_out_and_locks_out_nobody_who_was_right(
    serve: Callable[..., Served],
) -> None:
    served = serve(failures_per_minute=3)
    right = served.person("user:r", flights="viewer")

    async def work(door: Callers) -> None:
        assert await outcome(door, right) is None
        wrong = [await outcome(door, f"guess {n}") for n in range(10)]
        assert wrong[0] is Unauthenticated
        assert wrong[-1] is TooMany
        aged(door, right, callers.REMEMBERED)
        assert await outcome(door, right) is None

    with_door(served, work)


@pytest.mark.parametrize("header", ["", "Basic dTpw", "Bearer", "Bearer   ", "manta_key"])
def test_what_is_no_bearer_is_refused_without_asking(header: str) -> None:
    async def work() -> None:
        with pytest.raises(Unauthenticated):
            await Callers("http://127.0.0.1:9", "flights").require(header, Role.VIEWER)

    asyncio.run(work())
