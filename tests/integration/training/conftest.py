"""What a training needs around it: MLflow as `manta up` starts it, datasets, a registered feature service."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manta.control import parts
from manta.data.lake import Lake
from manta.definitions import Training, from_json
from manta.features.compiled import FORMAT, Feature, Key, Service, View
from manta.ledger.actor import OWNER
from manta.ledger.context import RunContext
from manta.ledger.runs import EndReason, Run, State, Version
from manta.ledger.store import Ledger
from manta.settings import Settings

HERE = Path(__file__).parent
START = datetime(2013, 1, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def project_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker does with the project's folder."""
    monkeypatch.syspath_prepend(str(HERE))


@pytest.fixture
def mlflow_server(settings: Settings) -> Iterator[str]:
    """Its address."""
    spec = parts.mlflow(settings)
    settings.home.mkdir(parents=True, exist_ok=True)
    spec.prepare()
    with (settings.home / "mlflow.log").open("w") as log:
        process = subprocess.Popen(
            spec.command(), env=parts.everybodys_env(settings) | spec.env, stdout=log, stderr=log
        )
    try:
        until = time.monotonic() + 120
        while not spec.answers():
            assert time.monotonic() < until, (settings.home / "mlflow.log").read_text()
            assert process.poll() is None, (settings.home / "mlflow.log").read_text()
            time.sleep(0.2)
        spec.settle()
        yield spec.address
    finally:
        process.terminate()
        process.wait(20)


class Bench:
    """A ledger with what trainings read, and the worker's part in running one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.ledger = Ledger(settings.ledger_url)
        self.ledger.create()
        self._keys = iter(range(1_000))

    def start(self, kind: str, job: str, definition: dict[str, Any], **params: Any) -> Run:
        key = str(next(self._keys))
        run = self.ledger.submit(
            key=key,
            project=self.settings.project,
            job=job,
            kind=kind,
            definition=definition,
            fingerprint=key,
            package="",
            by=OWNER,
            params=params,
        )
        return self.ledger.move(self.ledger.start(run, f"run-{run.id}-1"), State.RUNNING)

    def context(self, run: Run) -> RunContext:
        return RunContext(self.settings, self.ledger, run, from_json(run.definition), HERE)

    def begin(self, training: Training, **params: Any) -> RunContext:
        return self.context(self.start("training", training.name, training.to_json(), **params))

    def succeeded(self, context: RunContext) -> None:
        self.ledger.move(
            self.ledger.run(context.run.id),
            State.SUCCEEDED,
            end_reason=EndReason.DONE,
            outputs=context.outputs,
            metrics=context.metrics,
        )

    def produced(self, *versions: Version) -> None:
        run = self.start("ingest", "given", {})
        self.ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE, outputs=versions)


@pytest.fixture
def bench(settings: Settings) -> Bench:
    """Examples whose label is mostly told by wind and carrier, and the service ``weather_v1``."""
    bench = Bench(settings)
    random = np.random.default_rng(11)
    days, daily = 60, 40
    times = [START + timedelta(days=day, minutes=12 * at) for day in range(days) for at in range(daily)]
    count = len(times)
    airports = random.choice(["EWR", "JFK", "LGA"], count)
    weather = pl.DataFrame(
        {
            "origin": [airport for airport in ("EWR", "JFK", "LGA") for _ in range(days * 24)],
            "at": [START + timedelta(hours=hour) for _ in range(3) for hour in range(days * 24)],
            "wind": pl.Series(random.normal(5, 2, 3 * days * 24)),
            "sky": random.choice(["clear", "cloudy", "rain"], 3 * days * 24),
        }
    ).with_columns(wind=pl.when(pl.int_range(pl.len()) % 50 == 0).then(None).otherwise("wind"))
    flights = pl.DataFrame({"origin": airports, "at": times}).sort("at")
    known = flights.join_asof(weather.sort("at"), on="at", by="origin", check_sortedness=False)
    # What is first seen in the held-out days must not be known to the model.
    hail = (pl.col("at") >= START + timedelta(days=50)) & (pl.int_range(pl.len()) % 10 == 0)
    weather = weather.with_columns(sky=pl.when(hail).then(pl.lit("hail")).otherwise("sky"))
    noise = pl.Series(random.normal(0, 0.7, count))
    late = (known["wind"].fill_null(5) - 5 + 2.0 * (known["sky"] == "rain") - 0.7 + noise) > 0
    flights = flights.with_columns(late=pl.when(pl.int_range(pl.len()) % 97 == 0).then(None).otherwise(late))
    lake = Lake(settings.datasets)
    made = [
        Version(kind="dataset", name=name, version=str(lake.replace(name, frame, run_key="given")))
        for name, frame in {"flights": flights, "weather": weather}.items()
    ]
    service = Service(
        name="weather_v1",
        project=settings.project,
        views=(
            View(
                name="weather",
                table="weather",
                dataset="weather",
                time="at",
                created=None,
                ttl_seconds=7200.0,
                keys=(Key("origin", "origin", "string"),),
                features=(Feature("wind", "float32", "wind"), Feature("sky", "string", "sky")),
            ),
        ),
        on_demand=(),
        features=(("weather", "wind"), ("weather", "sky")),
    )
    manifest = settings.home / "manifests" / "weather.json"
    manifest.parent.mkdir(parents=True, exist_ok=True)
    manifest.write_text(json.dumps({"format": FORMAT, "service": asdict(service)}))
    made.append(
        Version(kind="features", name="weather_v1", version="abc", detail={"manifest": str(manifest)})
    )
    bench.produced(*made)
    assert os.environ.get("MANTA_SETTINGS") is None
    return bench
