"""From a dataset to the online store: manta's materialization beside Feast's own engine, on the same rows.

Both read the same Delta table through the same offline store and write the same layout; what is there
afterwards is compared. Each round begins with an empty store. Beside the seconds stand those of CPU of this
process: what Redis and PostgreSQL themselves take is in the seconds alone.

What bounds it, of 200,000 keys × 5 float64 features: into SQLite the statement, 10 of 20 µs a key (one for
all features of a key, in the order of the primary key), and the texts that Feast keeps beside numbers, 2.5
µs; into Redis the script on the server, some 6 µs a key beside 4 µs here, which overlap; into PostgreSQL the
server's insertion into the primary key and the log, five rows a key, beside 8 µs here.

MANTA_BENCH_KEYS is how many keys (200000), MANTA_BENCH_ROUNDS how often (3), MANTA_BENCH_STORES where
("sqlite,redis,postgres"), MANTA_BENCH_FOLDER is where the stores' files are (/tmp).
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from datetime import timedelta
from statistics import median
from typing import NamedTuple

from manta.features.compiled import service_of
from manta.features.materialize import materialize
from manta.features.online import OnlineReader
from tests.benchmarks._features import AT, STORES, Repository, repository, rows

FEATURES = 5
WANTED = {"sqlite": 3, "redis": 8, "postgres": 5}


class Cost(NamedTuple):
    seconds: float
    cpu: float


def main() -> None:
    keys = int(os.environ.get("MANTA_BENCH_KEYS", "200000"))
    rounds = int(os.environ.get("MANTA_BENCH_ROUNDS", "3"))
    for kind in os.environ.get("MANTA_BENCH_STORES", ",".join(STORES)).split(","):
        pairs = []
        for number in range(rounds):
            sides = [manta, feast] if number % 2 else [feast, manta]
            costs = {side: side(kind, keys) for side in sides}
            pairs.append((costs[manta], costs[feast]))
        ours, theirs = min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)
        ratio = median(other.seconds / mine.seconds for mine, other in pairs)
        work = median(other.cpu / mine.cpu for mine, other in pairs)
        print(
            f"{kind:9} {keys / ours.seconds:9,.0f} keys/s ({ours.cpu:.1f} s of CPU) beside Feast's "
            f"{keys / theirs.seconds:8,.0f} ({theirs.cpu:.1f} s): {ratio:.1f} x, {work:.1f} x the CPU; "
            f"{WANTED[kind]} x is wanted",
            flush=True,
        )


def manta(kind: str, keys: int) -> Cost:
    with repository(kind, rows(keys, FEATURES), FEATURES) as repo:
        service = service_of(repo.manifest, "wide")
        began, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            materialize(service, repo.settings.datasets, {"stats": repo.version}, AT + timedelta(days=1))
        cost = Cost(time.perf_counter() - began, time.process_time() - cpu)
        _check(repo, keys)
        return cost


def feast(kind: str, keys: int) -> Cost:
    with repository(kind, rows(keys, FEATURES), FEATURES) as repo:
        began, cpu = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            repo.store.materialize(AT - timedelta(days=1), AT + timedelta(days=1))
        cost = Cost(time.perf_counter() - began, time.process_time() - cpu)
        _check(repo, keys)
        return cost


def _check(repo: Repository, keys: int) -> None:
    users = list(range(0, keys, max(1, keys // 1000)))
    looked = OnlineReader(repo.manifest, "wide").read({"user": users}, [AT] * len(users))
    feature = f"f{FEATURES - 1}"
    wanted = repo.store.get_online_features(
        [f"stats:{feature}"], [{"user": user} for user in users]
    ).to_dict()
    assert looked.values[feature] == wanted[feature]
    assert None not in looked.values[feature]


if __name__ == "__main__":
    main()
