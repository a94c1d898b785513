"""Searches on a real cluster by Ray Tune: to a model version, ended early, killed and executed again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from manta.definitions import (
    ASHA,
    AtLeast,
    BeatsChampion,
    Choice,
    Examples,
    Integers,
    LogUniform,
    Search,
    TimeSplit,
    Torch,
    Training,
    XGBoost,
)
from manta.errors import ExtraMissing, TrainingInvalid
from manta.models import package
from manta.models.searches import PARENT_TAG, Searches
from manta.training import search as search_run
from manta.training import search_records as records
from manta.training import search_trials
from manta.training.search_records import Tried
from manta.training.trainers import Job
from manta.training.trainers._reports import reports
from tests.integration.training.conftest import Bench
from tests.integration.training.test_task_trainers import job as task_job
from tests.integration.training.test_task_trainers import training as task_training
from tests.integration.training.test_torch_trainer import job as torch_job

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

HERE = Path(__file__).parents[3]
SPACE: dict[str, Any] = {"learning_rate": LogUniform(0.01, 0.5), "max_depth": Integers(2, 6)}
DELAY = Training(
    model="delay",
    trainer=XGBoost(),
    examples=Examples(dataset="flights", label="late", time="at"),
    features="weather_v1",
    split=TimeSplit(test_from=datetime(2013, 2, 20)),
    params={"rounds": 30},
    baseline="wind",
    gates=(AtLeast("roc_auc", 0.8), BeatsChampion("roc_auc")),
)


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """MLflow without a server; making its tables takes seconds, so all tests share them."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def with_mlflow(bench: Bench, mlflow_store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bench:
    monkeypatch.chdir(tmp_path)  # where MLflow without a server keeps artifacts
    bench.settings = bench.settings.model_copy(update={"mlflow_url": mlflow_store})
    return bench


def job_of(bench: Bench, **params: Any) -> Job:
    made = task_job(bench, "xgboost", task_training("xgboost"), **params)
    return replace(made, folder=bench.settings.home / "searches" / "test-1")


def searched(search: Search, job: Job, trials: int, concurrent: int = 1) -> list[Tried]:
    return search_trials.run(search, job, trials, concurrent, lambda one, ended: None)


def test_from_trials_to_the_champion_and_executed_again(ray_cluster: None, with_mlflow: Bench) -> None:
    bench = with_mlflow
    search = Search(training=DELAY, space=SPACE, trials=3)
    context = bench.context(bench.start("search", search.name, search.to_json(), concurrent=2))
    search_run.execute(context)

    (made,) = context.outputs
    assert (made.kind, made.name, made.version) == ("model", "delay", "1")
    assert bench.ledger.aliases.get("test", "delay", "champion") == "1"
    assert [gate["passed"] for gate in context.metrics["gates"]] == [True, True]
    found = context.metrics["search"]
    folder = bench.settings.home / "searches" / context.run_key
    tried = records.read(folder)
    assert [each.state for each in tried] == ["done"] * 3
    winner = records.best(tried, "roc_auc")
    assert winner is not None
    assert (found["best"], found["params"], found["trials"]) == (winner.number, winner.params, 3)
    assert found["validation_roc_auc"] == winner.metrics["roc_auc"]
    assert found["validation_roc_auc"] != context.metrics["roc_auc"], "which is of the held-out rows"

    # The model is that of the best trial, trained once more from the beginning.
    inner = package.load(made.detail["location"], made.detail["digest"])
    assert inner.inputs == {"sky": "string", "wind": "float32"}
    of_trial = reports(folder / f"{winner.number:04d}")
    assert of_trial == reports(bench.settings.home / "training" / context.run_key)

    registry = Searches(bench.settings.mlflow_url, "test")
    with registry._answering() as client:
        parent = client.get_run(made.detail["mlflow_run"])
        (experiment,) = {parent.info.experiment_id}
        nested = client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")
        assert {run.data.tags["manta.trial"] for run in nested} == {"0", "1", "2"}
        for run in nested:
            one = tried[int(run.data.tags["manta.trial"])]
            assert float(run.data.params["learning_rate"]) == one.params["learning_rate"]
            assert run.data.metrics["validation_roc_auc"] == pytest.approx(one.metrics["roc_auc"])
            assert len(client.get_metric_history(run.info.run_id, "loop/validation_logloss")) == 30
        assert parent.data.params["max_depth"] == str(winner.params["max_depth"])
        figures = {Path(file.path).name for file in client.list_artifacts(parent.info.run_id, "figures")}
    assert {"search_history.png", "search_parallel.png", "search_importance.png", "roc.png"} <= figures

    # Killed before the ledger said so: executed again, no trial is run, and all ends in the same state.
    again = bench.context(bench.ledger.run(context.run.id))
    search_run.execute(again)
    assert again.outputs == context.outputs
    assert again.metrics["search"] == found
    assert records.read(folder) == tried
    bench.succeeded(again)
    with registry._answering() as client:
        assert len(client.search_runs([experiment], f"tags.`{PARENT_TAG}` = '{parent.info.run_id}'")) == 3


def test_the_scheduler_ends_trials_that_lag_and_failed_ones_say_why(ray_cluster: None, bench: Bench) -> None:
    search = Search(
        training=DELAY,
        space={"learning_rate": Choice(1e-6, 0.3, -1.0)},
        scheduler=ASHA("validation_logloss", grace=5, most=400, reduction=2),
        seed=65,  # with which they are proposed in this order
    )
    tried = searched(search, job_of(bench, rounds=1_500, max_depth=2), 3)
    assert [(each.params["learning_rate"], each.state) for each in tried] == [
        (0.3, "done"),
        (1e-6, "ended early"),
        (-1.0, "failed"),
    ]
    assert len(reports(bench.settings.home / "searches/test-1/0001")) < 1_500
    assert "learning_rate" in tried[2].message
    assert records.best(tried, "roc_auc") == tried[0]


KILLED = """
import pickle, sys
import ray
from manta.training import search_trials

ray.init(address=sys.argv[1], log_to_driver=False, namespace="killed")
search, job = pickle.load(open(sys.argv[2], "rb"))
search_trials.run(search, job, 3, 1, lambda one, ended: print("ended", ended, flush=True))
"""


def test_killed_it_goes_on_with_the_trial_that_was_at_work(
    ray_cluster: None, bench: Bench, tmp_path: Path
) -> None:
    import pickle

    import ray

    search = Search(training=DELAY, space=SPACE)
    job = job_of(bench, rounds=300)
    given = tmp_path / "given"
    given.write_bytes(pickle.dumps((search, replace(job, stage=None, meanwhile=search_trials._nothing))))
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, ray.get_runtime_context().gcs_address, str(given)],
        **{"stdout": subprocess.PIPE, "text": True, "cwd": HERE},
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert process.stdout is not None
    try:
        while "ended 1" not in process.stdout.readline():
            assert process.poll() is None
        until = time.monotonic() + 60
        while not (job.folder / "0001/checkpoint.ubj").exists():  # the second is at work
            assert time.monotonic() < until
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    before = records.read(job.folder)
    assert before[0].state == "done"
    stamp = (job.folder / "0000.json").stat().st_mtime_ns
    tried = searched(search, job, 3)
    assert [each.state for each in tried] == ["done"] * 3
    assert (job.folder / "0000.json").stat().st_mtime_ns == stamp, "it was not run again"
    assert [each.params for each in tried[: len(before)]] == [each.params for each in before]
    rounds = [report["round"] for report in reports(job.folder / "0001")]
    assert rounds == list(range(1, 301)), "it went on from its checkpoint, or had come to its end"


def test_a_trial_of_several_torch_workers_leaves_them_their_cpus(ray_cluster: None, bench: Bench) -> None:
    job = torch_job(bench, {"trainer": Torch(workers=2)}, epochs=2)
    job = replace(job, folder=bench.settings.home / "searches" / "torch")
    search = Search(training=job.training, space={"rate": LogUniform(1e-3, 0.1)}, metric="log_loss")
    assert search_run._together(job, 4) == 2
    (tried,) = searched(search, job, 1, concurrent=2)
    assert tried.state == "done"
    assert 0 < tried.metrics["log_loss"] < 1
    assert len(reports(job.folder / "0000")) == 2


def test_what_cannot_be_searched_is_said(
    ray_cluster: None, with_mlflow: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = with_mlflow
    search = Search(training=DELAY, space={"learning_rate": Choice(-1.0)}, trials=1)

    def context(search: Search) -> Any:
        return bench.context(bench.start("search", search.name, search.to_json()))

    with pytest.raises(TrainingInvalid, match=r"none of 1 trials came to its end: xgboost failed") as error:
        search_run.execute(context(search))
    assert error.value.hint
    unknown = search.replace(
        space={"learning_rate": Choice(0.1)}, scheduler=ASHA("validation_auc", grace=1, most=9)
    )
    with pytest.raises(TrainingInvalid, match="'validation_auc', which is not reported"):
        search_run.execute(context(unknown))
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ExtraMissing, match="a search needs optuna") as missing:
        search_run.execute(context(search))
    assert missing.value.hint == "pip install 'manta-ml[search]'"
