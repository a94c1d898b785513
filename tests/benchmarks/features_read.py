"""Online look-ups of ten features: manta's compiled reader beside Feast's own SDK, on the same store.

Same keys, same values (checked before anything is timed), one process, each side in turn. The SDK spends its
time on protobuf objects, one a value, and on the registry. Ours: one key takes the store's own answer (SQLite
some 15 µs, Redis 25, PostgreSQL 60) and 15 µs here; of a hundred keys a value takes about 0.5 µs to decode
and to put in its place.

MANTA_BENCH_KEYS is how many keys are online (20000), MANTA_BENCH_ROUNDS how often each is asked (300),
MANTA_BENCH_STORES where ("sqlite,redis,postgres").
"""

from __future__ import annotations

import os
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
    fast, slow, ratio = compare(ours, theirs, rounds if len(users) == 1 else max(20, rounds // 5))
    print(
        f"{repo.kind:9} {len(users):>4} keys: {fast * 1e6:8.0f} µs beside the SDK's {slow * 1e6:8.0f} µs: "
        f"{ratio:.1f} x; 4 x is wanted",
        flush=True,
    )


if __name__ == "__main__":
    main()
