"""Online look-ups of ten features: manta's compiled reader beside Feast's own SDK, on the same store.

Same keys, same values (checked before anything is timed), one process, each side in turn: twenty calls of one
key, or three of a hundred; the ratio is the median over the turns. Behind it stands that of single calls in
turn, where each of ours begins with the processor's caches full of what the SDK needs, as in no service.

What bounds it, in µs of a quiet processor. One key: the store's own answer takes more than half (SQLite 13,
of which the bare statement 12; Redis 23, of which a PING 17; PostgreSQL's `exec_prepared` 23, of which that
of `SELECT 1` 15), the request 3, putting rows into columns 2 to 5, the answer 8. In turn with the SDK, a bare
PING takes a fifth of the SDK's time, and a bare `exec_prepared` of our query too: another process has to
wake. A hundred keys: SQLite's statement 760 of 950, Redis's answer 300 of 460, PostgreSQL's 460 of 850; a
value takes 0.1 to decode and to put in its place.

MANTA_BENCH_KEYS is how many keys are online (20000), MANTA_BENCH_ROUNDS how often each is asked (300),
MANTA_BENCH_STORES where ("sqlite,redis,postgres").
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from manta.features.compiled import service_of
from manta.features.materialize import materialize
from manta.features.online import OnlineReader
from tests.benchmarks._features import AT, STORES, Repository, repository, rows
from tests.benchmarks._measure import compare

FEATURES = 10


def main() -> None:
    keys = int(os.environ.get("MANTA_BENCH_KEYS", "20000"))
    rounds = int(os.environ.get("MANTA_BENCH_ROUNDS", "300"))
    for kind in os.environ.get("MANTA_BENCH_STORES", ",".join(STORES)).split(","):
        with repository(kind, rows(keys, FEATURES), FEATURES) as repo:
            service = service_of(repo.manifest, "wide")
            materialize(service, repo.settings.datasets, {"stats": repo.version}, AT + timedelta(days=1))
            for count in (1, 100):
                _measure(repo, [(number * 197) % keys for number in range(count)], rounds)


def _measure(repo: Repository, users: list[int], rounds: int) -> None:
    reader, at = OnlineReader(repo.manifest, "wide"), [AT + timedelta(hours=1)] * len(users)
    registered = repo.store.get_feature_service("wide")
    asked = [{"user": user} for user in users]

    def ours() -> dict[str, list[Any]]:
        return dict(reader.read({"user": users}, at).values)

    def theirs() -> dict[str, list[Any]]:
        return repo.store.get_online_features(features=registered, entity_rows=asked).to_dict()

    mine, other = ours(), theirs()
    assert all(mine[f"f{n}"] == other[f"f{n}"] for n in range(FEATURES))
    rounds = rounds if len(users) == 1 else max(20, rounds // 5)
    _, _, single = compare(ours, theirs, rounds)
    calls = 20 if len(users) == 1 else 3
    fast, slow, ratio = compare(_times(calls, ours), _times(calls, theirs), max(7, rounds // calls))
    print(
        f"{repo.kind:9} {len(users):>4} keys: {fast / calls * 1e6:8.0f} µs beside the SDK's "
        f"{slow / calls * 1e6:8.0f} µs: {ratio:.1f} x; 4 x is wanted (single calls in turn: {single:.1f} x)",
        flush=True,
    )
    if (bare := _bare(repo)) is not None and len(users) == 1:
        least, _, most = compare(_times(calls, bare), _times(calls, theirs), max(7, rounds // calls))
        print(
            f"{'':9} the bare round trip to the server: {least / calls * 1e6:8.0f} µs; a reader that "
            f"did nothing else would be {most:.1f} x",
            flush=True,
        )


def _bare(repo: Repository) -> Callable[[], Any] | None:
    """The least that can be asked of the store's server; None of a store that has none."""
    if repo.kind == "redis":
        link = socket.create_connection(("127.0.0.1", repo.server.port))
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ping() -> None:
            link.sendall(b"PING\r\n")
            assert link.recv(100) == b"+PONG\r\n"

        return ping
    if repo.kind == "postgres":
        import psycopg

        connection = psycopg.connect(repo.server.url, autocommit=True).pgconn
        connection.prepare(b"bare", b"SELECT 1", [])
        return lambda: connection.exec_prepared(b"bare", [], [], 1)
    return None


def _times(calls: int, function: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            function()

    return run


if __name__ == "__main__":
    main()
