"""Ten features over HTTP, 16 connections: manta's look-up door beside Feast's own feature server.

The same SQLite store, the same request, the same answer (checked before anything is timed); each server is
one process, the client another, which sends bytes that are made once and counts whole answers, so it costs
both the same. Feast's is what `feast serve` starts: one gunicorn worker. Ours is the door without Ray,
`python -m manta.serving.lookup`, and asks for no key; keys are remembered, and cost a look into a dict.

Beside requests/s it prints each server's own CPU time a request, which a busy machine blurs less.

What bounds ours, by profile: with 100 keys, SQLite's rows (two fifths) and decoding their values (half), the
HTTP side being a tenth; with one key, uvicorn and the fixed cost of ten columns, no part of which is large.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import psutil

from manta.features.apply import register
from manta.features.compiled import service_of
from manta.features.materialize import materialize
from manta.features.repo import open_store, parse
from manta.settings import Settings
from tests.benchmarks._features import repository, rows

KEYS, FEATURES = 20_000, 10
CONNECTIONS = 16
SECONDS = float(os.environ.get("MANTA_BENCH_SECONDS", "4"))
ROUNDS = int(os.environ.get("MANTA_BENCH_ROUNDS", "3"))


def main() -> None:
    at = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
    frame = rows(KEYS, FEATURES).with_columns(at=pl.lit(at))
    with ExitStack() as stack:
        held = stack.enter_context(repository("sqlite", frame, FEATURES))
        service = service_of(held.manifest, "wide")
        materialize(service, held.settings.datasets, {"stats": held.version})
        applied = register(parse(held.root, held.settings), held.root, held.settings)
        ours = ("-m", "manta.serving.lookup", str(applied.catalog), "--port", "{port}")
        theirs = ("-m", "tests.benchmarks.features_http", "serve", str(held.root), "{port}")
        doors = [stack.enter_context(_server(*each, cwd=held.root)) for each in (ours, theirs)]
        for keys in (1, 100):
            _compare(keys, *doors)


def _compare(keys: int, ours: Served, theirs: Served) -> None:
    users = [(number * 197) % KEYS for number in range(keys)]
    body = {"entities": {"user": users}, "features": [f"stats:f{number}" for number in range(FEATURES)]}
    assert _values(ours, body) == _values(theirs, body)
    rates: list[tuple[float, float]] = []
    costs: list[tuple[float, float]] = []
    for _ in range(ROUNDS):
        (fast, cheap), (slow, dear) = (_load(each, body) for each in (ours, theirs))
        rates.append((fast, slow))
        costs.append((cheap, dear))
    fast, slow = map(statistics.median, zip(*rates, strict=True))
    cheap, dear = map(statistics.median, zip(*costs, strict=True))
    ratio = statistics.median(a / b for a, b in rates)
    work = statistics.median(b / a for a, b in costs)
    print(
        f"{keys:>4} keys: {fast:7.0f} requests/s beside Feast's {slow:6.0f}: {ratio:.1f} x; "
        f"CPU {cheap * 1e6:6.0f} µs a request beside {dear * 1e6:6.0f} µs: {work:.1f} x",
        flush=True,
    )


def _values(served: Served, body: dict[str, Any]) -> dict[str, Any]:
    answer = httpx.post(f"{served.url}/get-online-features", json=body, timeout=30).raise_for_status().json()
    names, results = answer["metadata"]["feature_names"], answer["results"]
    found = {name: (each["values"], each["statuses"]) for name, each in zip(names, results, strict=True)}
    assert all(set(statuses) == {"PRESENT"} for _, statuses in found.values())
    return found


class Served:
    """A server, and the processes that answer in it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self._process = psutil.Process(process.pid)

    def cpu(self) -> float:
        family = [self._process, *self._process.children(recursive=True)]
        return sum(sum(each.cpu_times()[:2]) for each in family)


@contextmanager
def _server(*arguments: str, cwd: Path) -> Iterator[Served]:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *(each.format(port=port) for each in arguments)]
    process = subprocess.Popen(command, cwd=cwd, env=os.environ | {"PYTHONPATH": path})
    try:
        until = time.monotonic() + 120
        while True:
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            assert process.poll() is None, command
            assert time.monotonic() < until, command
            time.sleep(0.1)
        yield Served(process, port)
    finally:
        process.terminate()
        process.wait(timeout=30)


def _load(served: Served, body: dict[str, Any]) -> tuple[float, float]:
    """Requests/s, and the server's CPU seconds for each, while a process of its own asks as it can."""
    before = served.cpu()
    asker = str(Path(__file__).with_name("_asking.py"))
    command = [sys.executable, asker, str(served.port), str(CONNECTIONS), str(SECONDS), json.dumps(body)]
    asked = subprocess.run(command, capture_output=True, text=True, check=True)
    count, seconds = json.loads(asked.stdout)
    return count / seconds, (served.cpu() - before) / count


def _serve_feast(root: Path, port: int) -> None:
    from feast.feature_server import start_server

    os.chdir(root)
    sys.path.insert(0, str(root))
    start_server(
        open_store(root, Settings(project="bench", root=root, home=root / ".manta")._resolved()),
        host="127.0.0.1",
        port=port,
        no_access_log=True,
        workers=1,
        worker_connections=1000,
        max_requests=0,
        max_requests_jitter=0,
        keep_alive_timeout=30,
        registry_ttl_sec=600,
        tls_key_path="",
        tls_cert_path="",
        metrics=False,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        _serve_feast(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
