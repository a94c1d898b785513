"""Whole trainings whose gates measure, fit again and slice; and the report of each, refused ones too."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from manta.definitions import (
    AtLeast,
    BeatsChampion,
    Calibrated,
    Examples,
    Invariant,
    Latency,
    Memory,
    Monotone,
    NoLeakage,
    Signature,
    TimeSplit,
    Training,
    XGBoost,
)
from manta.errors import GateFailed, TrainingInvalid
from manta.models.registry import Registry
from manta.training import run as training_run
from manta.training.trainers import Job, xgboost
from tests.integration.training.conftest import Bench

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

EVIL = "<script>alert(1)</script>"
GATES = (
    AtLeast("roc_auc", 0.8),
    AtLeast("roc_auc", 0.8, by="origin", min_rows=50),
    AtLeast("roc_auc", 0.7, by="week", min_rows=50),
    AtLeast("roc_auc", 0.8, any_seed=True),
    BeatsChampion("roc_auc", tolerance=0.05, confidence=0.95),
    Calibrated(offset=0.2),
    Invariant("sky", at_most=0.99, values=("rain", None)),
    Monotone("wind", "up", step=2, share=0.8),
    NoLeakage(rows=1_000, params={"rounds": 10}),
    Latency(p95_ms=10_000),
    Memory(mb=10_000),
    Signature(),
)
TRAINING = Training(
    model="delay",
    trainer=XGBoost(),
    examples=Examples(dataset="flights", label="late", time="at"),
    features="weather_v1",
    split=TimeSplit(test_from=datetime(2013, 2, 20)),
    params={"rounds": 30, "max_depth": 3, "subsample": 0.5},
    baseline="wind",
    repeats=3,
    gates=GATES,
    card=f"Tells late flights. {EVIL}",
)


@pytest.fixture
def registry(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """MLflow without a server."""
    monkeypatch.chdir(tmp_path)  # where it keeps artifacts
    url = f"sqlite:///{tmp_path}/mlflow.db"
    bench.settings = bench.settings.model_copy(update={"mlflow_url": url})
    return Registry(url, bench.settings.project)


def kept(registry: Registry, run: str) -> str:
    """The report, as MLflow has it."""
    with registry._answering() as client:
        return Path(client.download_artifacts(run, "report.html")).read_text()


def test_every_gate_then_a_refusal_and_their_reports(
    ray_cluster: None, bench: Bench, registry: Registry
) -> None:
    first = bench.begin(TRAINING)
    training_run.execute(first)
    table = first.metrics["gates"]
    assert [gate["passed"] for gate in table] == [True] * len(GATES), table
    json.dumps(first.metrics, allow_nan=False)
    assert [piece["name"] for piece in table[2]["pieces"]] == ["2013-W08", "2013-W09"]
    assert {piece["name"] for piece in table[1]["pieces"]} == {"EWR", "JFK", "LGA"}

    # Three seeds: the first is the model, and their spread is kept.
    spread = first.metrics["spread"]["roc_auc"]
    assert len(spread["values"]) == 3
    assert spread["values"][0] == first.metrics["roc_auc"]
    assert table[3]["value"] == spread["at_least"] < min(spread["values"])
    folder = bench.settings.home / "training"
    seeds = sorted(path.name.removeprefix(first.run_key) for path in folder.glob(f"{first.run_key}*"))
    assert seeds == ["", "-seed-8", "-seed-9", "-shuffled-8"]

    # The report: in the run's folder and in MLflow, with what was measured, and nothing that runs.
    report = (folder / first.run_key / "report.html").read_text()
    run = first.metrics["mlflow_run"]
    assert kept(registry, run) == report
    assert f"passed {len(GATES)} gates" in report
    assert "mean ± deviation of 3 seeds" in report
    assert report.count("data:image/png;base64,") == 4
    assert "<script" not in report
    assert "&lt;script&gt;alert(1)" in report
    with registry._answering() as client:
        assert client.get_run(run).data.metrics["roc_auc_deviation"] == pytest.approx(spread["deviation"])
    bench.succeeded(first)

    # Refused for one slice: named with its figure, at the terminal and in the report.
    strict = TRAINING.replace(
        repeats=1,
        gates=(
            AtLeast("roc_auc", 0.999, by="origin", min_rows=50),
            BeatsChampion("roc_auc", confidence=0.9999999),
            BeatsChampion("roc_auc", tolerance=0.1, confidence=0.9),
        ),
        params={"rounds": 3, "max_depth": 3},
    )
    second = bench.begin(strict)
    with pytest.raises(GateFailed, match=r"0\.\d{4} in (EWR|JFK|LGA) \(\d+ rows\)") as refused:
        training_run.execute(second)
    assert "report.html" in refused.value.hint
    assert [gate["passed"] for gate in second.metrics["gates"]] == [False, False, True]
    report = kept(registry, second.metrics["mlflow_run"])
    assert "refused: 2 of 3 gates failed" in report
    assert "champion: version 1" in report
    assert bench.ledger.aliases.get("test", "delay", "champion") == "1"

    # Killed when all was done, and executed again: it finds everything, and says the same.
    before = [path.stat().st_mtime_ns for path in folder.glob(f"{second.run_key}*/model.ubj")]
    again = bench.context(bench.ledger.run(second.run.id))
    with pytest.raises(GateFailed):
        training_run.execute(again)
    assert again.metrics["gates"] == second.metrics["gates"]
    assert [path.stat().st_mtime_ns for path in folder.glob(f"{second.run_key}*/model.ubj")] == before


def test_a_trainer_that_gets_its_labels_elsewhere_is_refused(
    ray_cluster: None, bench: Bench, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loop that reads the labels from a file, say, whatever it was given."""
    true: list[Any] = []
    fit: Callable[[Job], Any] = xgboost.fit

    def leaking(job: Job) -> Any:
        true.append(job.train)
        return fit(dataclasses.replace(job, train=true[0], validation=true[0]))

    monkeypatch.setattr(xgboost, "fit", leaking)
    training = TRAINING.replace(gates=(NoLeakage(rows=1_000),), repeats=1)
    with pytest.raises(GateFailed, match="where chance gives at most"):
        training_run.execute(bench.begin(training))


def test_killed_in_a_further_fit_it_goes_on_there(
    ray_cluster: None, bench: Bench, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fit: Callable[[Job], Any] = xgboost.fit

    class Killed(BaseException):
        pass

    def dying(job: Job) -> Any:
        if job.run_key.endswith("-seed-8") and "killed" not in done:
            done.append("killed")
            raise Killed
        model = fit(job)
        done.append(job.run_key.rpartition("-")[2])
        return model

    monkeypatch.setattr(xgboost, "fit", dying)
    context = bench.begin(TRAINING.replace(gates=(AtLeast("roc_auc", 0.5, any_seed=True),)))
    with pytest.raises(Killed):
        training_run.execute(context)
    model = bench.settings.home / "training" / context.run_key / "model.ubj"
    written = model.stat().st_mtime_ns
    again = bench.context(bench.ledger.run(context.run.id))
    training_run.execute(again)
    assert model.stat().st_mtime_ns == written
    assert done[1:] == ["killed", done[0], "8", "9"]
    assert len(again.metrics["spread"]["roc_auc"]["values"]) == 3


@pytest.mark.parametrize(
    ("gate", "match"),
    [
        (AtLeast("roc_auc", 0.5, by="airline"), "airline"),
        (Invariant("sky", at_most=0.1, values=(1,)), "sky is of type String"),
        (Monotone("sky", "up", step=1), "sky is a category"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_the_training(
    bench: Bench, registry: Registry, gate: Any, match: str
) -> None:
    with pytest.raises(TrainingInvalid, match=match):
        training_run.execute(bench.begin(TRAINING.replace(gates=(gate,), repeats=1)))
    assert not (bench.settings.home / "training").exists()
