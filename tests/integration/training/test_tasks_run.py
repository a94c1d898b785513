"""Several classes, and numbers: from a dataset to an answered request, by the parts that a project runs."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manta.data.lake import Lake
from manta.definitions import (
    AtLeast,
    AtMost,
    BeatsChampion,
    Endpoint,
    Examples,
    Invariant,
    LightGBM,
    Monotone,
    NoLeakage,
    Signature,
    TimeSplit,
    Training,
    XGBoost,
)
from manta.errors import GateFailed, ModelUnavailable, TrainingInvalid
from manta.features.stores.sqlite import create_table, seconds_kept, writable
from manta.features.wire import key_encoder, value_encoder
from manta.ledger.runs import Version
from manta.models import package
from manta.models.registry import Registry
from manta.serving import core
from manta.serving.http import Asked
from manta.serving.protocols import Call, predict
from manta.training import run as training_run
from tests.integration.training.conftest import Bench

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

CLASSES = ("breeze", "calm", "storm")
COMMON: dict[str, Any] = {
    "features": "weather_v1",
    "split": TimeSplit(test_from=datetime(2013, 2, 20)),
}
FORCE = Training(
    model="force",
    task="multiclass",
    trainer=XGBoost(),
    examples=Examples(dataset="graded", label="force", time="at"),
    params={"rounds": 30, "max_depth": 3, "subsample": 0.7},
    repeats=2,
    gates=(
        AtLeast("macro_f1", 0.6),
        AtLeast("accuracy", 0.6, by="origin", min_rows=50),
        AtLeast("roc_auc", 0.7, any_seed=True),
        AtMost("ece", 0.3),
        BeatsChampion("log_loss", confidence=0.95),
        Invariant("sky", at_most=0.999),
        NoLeakage(rows=1_000, params={"rounds": 10}),
        Signature(),
    ),
    **COMMON,
)
MINUTES = Training(
    model="minutes",
    task="regression",
    trainer=LightGBM(),
    examples=Examples(dataset="graded", label="minutes", time="at"),
    params={"rounds": 60, "num_leaves": 7, "learning_rate": 0.2},
    baseline="wind",
    gates=(
        AtMost("rmse", 30),
        AtLeast("r2", 0.7),
        AtMost("mae", 30, by="week", min_rows=50),
        BeatsChampion("rmse", confidence=0.95),
        Invariant("sky", at_most=500),
        Monotone("wind", "up", step=2, share=0.7),
        NoLeakage(rows=1_000, params={"rounds": 10}),
    ),
    **COMMON,
)


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server; making its tables takes seconds, so all tests share them."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def graded(bench: Bench, mlflow_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """The examples with a class and a number instead of yes and no, and the features online as well."""
    monkeypatch.chdir(tmp_path)  # where MLflow without a server keeps artifacts
    lake = Lake(bench.settings.datasets)
    flights, weather = lake.read("flights"), lake.read("weather")
    # A project of its own: in MLflow, which the tests share, runs are told apart by it.
    bench.settings = bench.settings.model_copy(
        update={"mlflow_url": mlflow_store, "project": tmp_path.name[:40]}
    )
    known = flights.sort("at").join_asof(weather.sort("at"), on="at", by="origin", check_sortedness=False)
    gusts = known["wind"].fill_null(5) + pl.Series(np.random.default_rng(3).normal(0, 0.5, known.height))
    rain = (known["sky"] == "rain").cast(pl.Int64)
    force = pl.select(
        pl.when(gusts + 2 * rain < 4)
        .then(pl.lit("calm"))
        .when(gusts + 2 * rain < 7)
        .then(pl.lit("breeze"))
        .otherwise(pl.lit("storm"))
    ).to_series()
    rows = known.select("origin", "at").with_columns(force=force, minutes=100 + 20 * gusts + 60 * rain)
    lake = Lake(bench.settings.datasets)
    versions = {
        name: lake.replace(name, frame, run_key="given")
        for name, frame in {"graded": rows, "weather": weather}.items()
    }
    service = manifest(bench)
    body = json.loads(service.read_text())
    body["service"]["store"] = {"kind": "sqlite", "path": str(tmp_path / "online.db")}
    service.write_text(json.dumps(body))
    bench.produced(
        *(Version(kind="dataset", name=name, version=str(at)) for name, at in versions.items()),
        Version(kind="features", name="weather_v1", version="abc", detail={"manifest": str(service)}),
    )
    with writable(str(tmp_path / "online.db")) as connection:
        create_table(connection, "weather")
        key = key_encoder([("origin", "string")])(["JFK"])
        for name, kind, value in (("wind", "float32", 9.5), ("sky", "string", "rain")):
            connection.execute(
                "INSERT INTO weather (entity_key, feature_name, value, event_ts) VALUES (?, ?, ?, ?)",
                (key, name, value_encoder(kind)(value), seconds_kept(datetime.now(UTC))),
            )
    return bench


def manifest(bench: Bench) -> Path:
    """Of the feature service."""
    return bench.settings.home / "manifests" / "weather.json"


async def unread() -> bytes:
    raise AssertionError("the body is there already")


def asked(bench: Bench, version: Version, body: dict[str, Any]) -> list[dict[str, Any]]:
    """Its predictions, as an endpoint of it answers a request."""
    endpoint = Endpoint(model=version.name, features="weather_v1")
    config = {**version.detail, "version": version.version, "manifest": str(manifest(bench))}
    loaded = core.load(endpoint, config)
    asking = Asked("POST", "predict", {"content-type": "application/json"}, "", unread)
    answered = predict.answer(Call(endpoint, loaded, asking, "predict", json.dumps(body).encode(), "r"))
    found: list[dict[str, Any]] = json.loads(answered.content)["predictions"]
    return found


def test_several_classes_to_an_answered_request(ray_cluster: None, graded: Bench) -> None:
    first = graded.begin(FORCE)
    training_run.execute(first)
    assert [gate["passed"] for gate in first.metrics["gates"]] == [True] * len(FORCE.gates), first.metrics[
        "gates"
    ]
    json.dumps(first.metrics, allow_nan=False)
    (made,) = first.outputs
    assert first.metrics["accuracy"] > first.metrics["baseline_accuracy"] + 0.2
    assert first.metrics["baseline"] == "constant"
    assert first.metrics["parity"] < 1e-5
    card = package.load(made.detail["location"], made.detail["digest"]).card
    assert (card["task"], tuple(card["classes"]), card["output"]) == (
        "multiclass",
        CLASSES,
        {"probabilities": "float32"},
    )
    report = (graded.settings.home / "training" / first.run_key / "report.html").read_text()
    assert f"passed {len(FORCE.gates)} gates" in report
    assert "A probability of each of 3 classes of force: breeze, calm, storm." in report
    assert report.count("data:image/png;base64,") == 3

    [by_keys] = asked(graded, made, {"keys": {"origin": "JFK"}})
    rows = [{"wind": 9.5, "sky": "rain"}, {"wind": 1.0, "sky": "clear"}, {"wind": None, "sky": None}]
    storm, calm, unknown = asked(graded, made, {"rows": rows})
    assert by_keys == storm
    assert (storm["prediction"], calm["prediction"]) == ("storm", "calm")
    assert tuple(storm["probabilities"]) == tuple(unknown["probabilities"]) == CLASSES
    assert sum(unknown["probabilities"].values()) == pytest.approx(1, abs=1e-6)

    # MLflow shows it, with a column for each class.
    registry = Registry(graded.settings.mlflow_url, graded.settings.project)
    with registry._answering() as client:
        run = client.get_run(made.detail["mlflow_run"])
        assert run.data.params["manta.task"] == "multiclass"
        assert run.data.metrics["macro_f1"] == pytest.approx(first.metrics["macro_f1"])
        assert run.data.metrics["log_loss_deviation"] >= 0
    graded.succeeded(first)

    # A worse one is told so on the same rows; one of another task, or of other classes, cannot be compared.
    worse = graded.begin(
        FORCE.replace(params={"rounds": 1}, repeats=1, gates=(BeatsChampion("log_loss", confidence=0.9),))
    )
    with pytest.raises(GateFailed, match=r"90 % sure at least -"):
        training_run.execute(worse)
    other = FORCE.replace(
        task="regression", examples=MINUTES.examples, repeats=1, gates=(BeatsChampion("rmse"),)
    )
    with pytest.raises(GateFailed, match="it is a multiclass model, and this one a regression model"):
        training_run.execute(graded.begin(other))
    assert graded.ledger.aliases.get(graded.settings.project, "force", "champion") == "1"
    with pytest.raises(ModelUnavailable, match="has a threshold"):
        core.load(
            Endpoint(model="force", features="weather_v1", threshold=0.9),
            {
                **made.detail,
                "version": "1",
                "manifest": str(manifest(graded)),
            },
        )


def test_a_number_to_an_answered_request(ray_cluster: None, graded: Bench) -> None:
    first = graded.begin(MINUTES)
    training_run.execute(first)
    assert [gate["passed"] for gate in first.metrics["gates"]] == [True] * len(MINUTES.gates), first.metrics[
        "gates"
    ]
    json.dumps(first.metrics, allow_nan=False)
    (made,) = first.outputs
    assert first.metrics["rmse"] < 0.5 * first.metrics["baseline_rmse"]
    assert first.metrics["baseline"] == "wind"
    loaded = package.load(made.detail["location"], made.detail["digest"])
    assert (loaded.task, loaded.classes, loaded.card["output"]) == (
        "regression",
        (),
        {"prediction": "float32"},
    )
    [by_keys] = asked(graded, made, {"keys": {"origin": "JFK"}})
    storm, calm = asked(graded, made, {"rows": [{"wind": 9.5, "sky": "rain"}, {"wind": 2, "sky": "clear"}]})
    assert by_keys == storm
    assert storm == {"prediction": pytest.approx(100 + 20 * 9.5 + 60, abs=40)}
    assert calm == {"prediction": pytest.approx(140, abs=30)}
    graded.succeeded(first)

    worse = graded.begin(MINUTES.replace(params={"rounds": 2}, gates=(BeatsChampion("rmse"),)))
    with pytest.raises(GateFailed, match="rmse not above the champion's"):
        training_run.execute(worse)
    assert worse.metrics["champion_rmse"] == pytest.approx(first.metrics["rmse"])


def test_labels_that_are_not_what_is_predicted_are_refused_before_ray(graded: Bench) -> None:
    label = Examples(dataset="graded", label="minutes", time="at")
    with pytest.raises(TrainingInvalid, match="Float64, which names no classes"):
        training_run.execute(graded.begin(FORCE.replace(examples=label)))
    label = Examples(dataset="graded", label="force", time="at")
    with pytest.raises(TrainingInvalid, match="which is no number"):
        training_run.execute(graded.begin(MINUTES.replace(examples=label)))
    with pytest.raises(TrainingInvalid, match="neither boolean nor 0/1") as error:
        training_run.execute(graded.begin(FORCE.replace(examples=label, task="binary", gates=())))
    assert "multiclass" in error.value.hint
