"""Whole trainings on a real cluster, against a real MLflow: promoted, refused, killed and executed again."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import onnx
import pytest

from manta.definitions import AtLeast, AtMost, BeatsChampion, Examples, TimeSplit, Torch, Training
from manta.errors import GateFailed, TrainingInvalid, Unavailable
from manta.models import package
from manta.models.registry import Registry
from manta.training import packaging
from manta.training import run as training_run
from tests.integration.training.conftest import Bench

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

GOOD = Training(
    model="delay",
    fn="training_loops:train",
    module="training_loops:Net",
    trainer=Torch(workers=2),
    examples=Examples(dataset="flights", label="late", time="at"),
    features="weather_v1",
    split=TimeSplit(test_from=datetime(2013, 2, 20)),
    params={"epochs": 3, "rate": 0.03},
    baseline="wind",
    gates=(AtLeast("roc_auc", 0.85), AtMost("ece", 0.15), BeatsChampion("roc_auc")),
)


def test_promoted_then_refused_then_executed_again(
    ray_cluster: None, bench: Bench, mlflow_server: str, tmp_path: Path
) -> None:
    registry = Registry(mlflow_server, bench.settings.project)

    # A training that loses a worker on the way, and is promoted.
    first = bench.begin(GOOD, die_once=str(tmp_path / "died"))
    training_run.execute(first)
    assert (tmp_path / "died").exists()
    (made,) = first.outputs
    assert (made.kind, made.name, made.version) == ("model", "delay", "1")
    assert first.metrics["roc_auc"] > 0.9 > first.metrics["baseline_roc_auc"] > 0.6
    assert first.metrics["parity"] < 1e-5
    assert first.metrics["baseline"] == "wind"
    assert [gate["passed"] for gate in first.metrics["gates"]] == [True, True, True]
    assert bench.ledger.aliases.get("test", "delay", "champion") == "1"
    json.dumps(first.metrics, allow_nan=False)
    assert {str(version.ref) for version in bench.ledger.run(first.run.id).inputs} == {
        "dataset:flights",
        "dataset:weather",
        "features:weather_v1",
    }
    progress = bench.ledger.run(first.run.id).progress
    assert progress is not None
    assert progress.done == progress.total

    # What it made answers, and is what was registered.
    model = package.load(made.detail["location"], made.detail["digest"])
    assert model.inputs == {"sky": "string", "wind": "float32"}
    encoding = json.loads((Path(made.detail["location"]) / "encoding.json").read_text())
    assert sorted(encoding["vocabularies"]["sky"]) == ["clear", "cloudy", "rain"]  # hail came later
    calm, storm = model.predict({"sky": ["clear", "rain"], "wind": [2.0, 9.0]})
    assert calm < 0.2 < 0.8 < storm
    _check_mlflow(registry, made.detail["mlflow_run"], first.metrics)

    # Killed after all was done but before the ledger said so: executed again, it ends in the same state,
    # without training anew.
    again = bench.context(bench.ledger.run(first.run.id))
    training_run.execute(again)
    assert again.outputs == first.outputs
    assert again.metrics["roc_auc"] == first.metrics["roc_auc"]
    assert again.metrics["seconds"]["training"] < 5
    assert len(_versions(registry)) == 1
    bench.succeeded(again)

    # A worse one: recorded, not registered, and the champion stays.
    worse = bench.begin(GOOD.replace(trainer=Torch(workers=1)), epochs=1, rate=1e-6)
    with pytest.raises(GateFailed) as refused:
        training_run.execute(worse)
    assert "roc_auc >= 0.85: roc_auc is 0." in refused.value.message
    assert "not below the champion's (version 1)" in refused.value.message
    assert "champion stays version 1" in refused.value.hint
    assert worse.outputs == []
    assert worse.metrics["champion"] == "1"
    assert worse.metrics["champion_roc_auc"] == pytest.approx(first.metrics["roc_auc"])
    assert worse.metrics["gates"][2]["margin"] == pytest.approx(
        worse.metrics["roc_auc"] - worse.metrics["champion_roc_auc"]
    )
    assert bench.ledger.aliases.get("test", "delay", "champion") == "1"
    assert len(_versions(registry)) == 1
    recorded = _client(registry).get_run(worse.metrics["mlflow_run"])
    assert recorded.data.tags["manta.gates"] == "failed"
    assert recorded.data.metrics["roc_auc"] == pytest.approx(worse.metrics["roc_auc"])

    # Somebody else was promoted between the two: an attempt that had registered withdraws.
    stale = bench.context(bench.ledger.run(worse.run.id))
    registry.register("delay", worse.metrics["mlflow_run"], {})
    assert len(_versions(registry)) == 2
    with pytest.raises(GateFailed):
        training_run.execute(stale)
    assert len(_versions(registry)) == 1


def _client(registry: Registry) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(registry.url, registry.url)


def _versions(registry: Registry) -> list[Any]:
    return list(_client(registry).search_model_versions("name = 'test.delay'"))


def _check_mlflow(registry: Registry, run_id: str, metrics: dict[str, Any]) -> None:
    import mlflow
    import pandas as pd

    client = _client(registry)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["roc_auc"] == pytest.approx(metrics["roc_auc"])
    assert run.data.params["epochs"] == "3"
    assert [point.step for point in client.get_metric_history(run_id, "loop/loss")] == [1, 2, 3]
    # The second epoch was cut short and done again, from the first one's checkpoint.
    assert [point.value for point in client.get_metric_history(run_id, "loop/first")] == [1, 2, 2]
    figures = {file.path for file in client.list_artifacts(run_id, "figures")}
    drawn = ("roc", "precision_recall", "calibration", "confusion")
    assert figures == {f"figures/{name}.png" for name in drawn}
    assert client.get_model_version_by_alias("test.delay", "champion").version == "1"

    mlflow.set_tracking_uri(registry.url)
    loaded = mlflow.pyfunc.load_model("models:/test.delay@champion")
    rows = pd.DataFrame({"sky": ["clear", None], "wind": [2.0, None]})
    assert loaded.predict(rows).shape == (2,)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"baseline": "sky"}, "baseline 'sky'"),
        ({"categories": ("cloud",)}, "cloud"),
        ({"examples": Examples(dataset="flights", label="delayed", time="at")}, "delayed"),
        ({"split": TimeSplit(test_from=datetime(2020, 1, 1))}, "no example falls into test"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_ray_and_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], match: str
) -> None:
    monkeypatch.setattr(Registry, "check", lambda self: None)
    with pytest.raises(TrainingInvalid, match=match):
        training_run.execute(bench.begin(GOOD.replace(**change)))
    assert not (bench.settings.home / "training").exists()


def test_without_mlflow_nothing_is_trained(bench: Bench) -> None:
    with pytest.raises(Unavailable, match="MLflow") as error:
        training_run.execute(bench.begin(GOOD))
    assert "manta up" in error.value.hint


def test_a_package_that_computes_something_else_is_refused(bench: Bench) -> None:
    from manta.training.trainers.torch import TorchModel
    from tests.integration.training.training_loops import Net

    context = bench.begin(GOOD)
    examples, parts = training_run._examples(context, GOOD)
    features, _ = training_run._features(context, GOOD, examples.rows)
    data = training_run._encoded(GOOD, features, examples, parts)
    shape = data.shape

    class Drifted(TorchModel):
        def graph(self) -> onnx.ModelProto:
            return TorchModel(Net(shape).eval(), shape, []).graph()

    model = Drifted(Net(shape).eval(), shape, [])
    with pytest.raises(TrainingInvalid, match="differs from the trained one"):
        packaging.write(context, GOOD, data, model, {})
    assert not (bench.settings.home / "models").exists()
