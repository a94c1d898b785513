"""The torch trainer on a real cluster: resumes, ends clearly, and does not wait for what cannot come."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from manta.definitions import Examples, TimeSplit, Torch, Training
from manta.errors import TrainingInvalid, Unavailable
from manta.training import encoder
from manta.training.evaluate import measure
from manta.training.progress import Stage
from manta.training.trainers import Job, Part, trainer
from tests.integration.training.conftest import Bench
from tests.integration.training.test_task_trainers import answered

pytestmark = pytest.mark.ray


def job(bench: Bench, definition: dict[str, Any] | None = None, **params: Any) -> Job:
    random = np.random.default_rng(5)
    count = 2_003
    rows = pl.DataFrame(
        {"carrier": random.choice(["UA", "AA", "DL"], count), "wind": random.normal(5, 2, count)}
    )
    encoding = encoder.fit(rows)
    training = Training(
        model="delay",
        examples=Examples(dataset="flights", label="late", time="at"),
        features="delay_v1",
        split=TimeSplit(test_from=datetime(2013, 11, 1)),
        **{"fn": "training_loops:train", "module": "training_loops:Net", "trainer": Torch(workers=2)}
        | (definition or {}),
    )
    part = Part(encoder.encode(encoding, rows), _labels(rows, training.task))
    return Job(
        run_key="test-1",
        folder=bench.settings.home / "training",
        root=Path(__file__).parent,
        training=training,
        params={"epochs": 3} | params,
        shape=encoding.shape | {"outputs": 3 if training.task == "multiclass" else 1},
        train=part,
        validation=part,
        stage=Stage(bench.begin(training), 2, 7),
    )


def _labels(rows: pl.DataFrame, task: str) -> np.ndarray:
    wind, american = rows["wind"].to_numpy(), (rows["carrier"] == "AA").to_numpy()
    if task == "multiclass":
        return np.digitize(np.where(american, -wind, wind), [0, 5]).astype(np.int64)
    if task == "regression":
        return (0.1 * wind + american).astype(np.float32)
    return ((wind > 5) ^ american).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "loss", "metric", "least"),
    [("multiclass", "several", "accuracy", 0.9), ("regression", "number", "r2", 0.9)],
)
def test_classes_and_numbers_are_learnt_and_their_graph_answers_the_same(
    ray_cluster: None, bench: Bench, task: Any, loss: str, metric: str, least: float
) -> None:
    definition = {"trainer": Torch(workers=1), "task": task}
    given = job(bench, definition, loss=loss, epochs=6, rate=0.02)
    trainer("torch").check(given)
    model = trainer("torch").fit(given)
    known = model.probabilities(given.train.arrays)
    assert measure(metric, given.train.labels, known) > least
    assert np.abs(answered(model, given.train.arrays, task) - known).max() < 1e-5


def test_a_loop_that_raises_is_the_users_error(ray_cluster: None, bench: Bench) -> None:
    with pytest.raises(TrainingInvalid, match=r"ValueError: the loss is not what it was"):
        trainer("torch").fit(job(bench, {"trainer": Torch(workers=1)}, **{"raise": True}))


def test_workers_that_can_never_fit_are_refused_at_once(ray_cluster: None, bench: Bench) -> None:
    with pytest.raises(TrainingInvalid, match="99 workers with 1 CPU each can never run") as error:
        trainer("torch").check(job(bench, {"trainer": Torch(workers=99)}))
    assert error.value.hint
    with pytest.raises(TrainingInvalid, match="1 GPU"):
        trainer("torch").check(job(bench, {"trainer": Torch(workers=1, use_gpu=True)}))


def test_no_room_now_is_said_in_time(
    ray_cluster: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")

    @ray.remote(num_cpus=4)
    class Greedy:
        def here(self) -> None: ...

    greedy = Greedy.remote()
    ray.get(greedy.here.remote())
    try:
        with pytest.raises(Unavailable, match="no room for 2 workers with 1 CPU each"):
            trainer("torch").fit(job(bench))
    finally:
        ray.kill(greedy)


@pytest.mark.parametrize(
    ("definition", "match"),
    [
        ({"module": "training_loops:Wide"}, "squeeze"),
        ({"module": "training_loops:Wide", "task": "regression"}, "squeeze"),
        ({"module": "training_loops:Wide", "task": "multiclass"}, "of shape [n, 3]: shape['outputs']"),
        ({"module": "training_loops:train"}, "cannot be built"),
    ],
)
def test_a_module_that_cannot_work_is_refused_before_training(
    ray_cluster: None, bench: Bench, definition: dict[str, Any], match: str
) -> None:
    with pytest.raises(TrainingInvalid) as error:
        trainer("torch").check(job(bench, definition))
    assert match in error.value.message + error.value.hint


def test_an_unknown_trainer() -> None:
    with pytest.raises(TrainingInvalid, match="no trainer 'abacus'"):
        trainer("abacus")


def test_a_broken_checkpoint_falls_back_to_the_one_before(
    ray_cluster: None, bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Between two attempts a disk loses the end of the newest; then half of Ray Train's own list."""
    one = {"trainer": Torch(workers=1)}
    folder = bench.settings.home / "training" / "test-1"
    trainer("torch").fit(job(bench, one, epochs=2))
    newest = sorted(folder.glob("checkpoint_2*"))[-1]
    content = (newest / "model.pt").read_bytes()
    (newest / "model.pt").write_bytes(content[:-10])
    again = trainer("torch").fit(job(bench, one, epochs=2))
    assert f"checkpoint {newest.name} is broken" in caplog.text
    assert [(each["epoch"], each["first"]) for each in again.reports] == [(1, 1), (2, 1), (2, 2)]

    caplog.clear()
    (folder / "finished.json").unlink()
    snapshot = folder / "checkpoint_manager_snapshot.json"
    snapshot.write_text(snapshot.read_text()[:100])
    more = trainer("torch").fit(job(bench, one, epochs=3))
    assert "list of checkpoints was cut off" in caplog.text
    assert [(each["epoch"], each["first"]) for each in more.reports[3:]] == [(3, 3)]


def test_ray_trains_own_controller_may_die(ray_cluster: None, bench: Bench, tmp_path: Path) -> None:
    """In the second epoch; the training goes on from the first one's checkpoint, under another controller."""
    given = job(bench, {"trainer": Torch(workers=1)}, hold=str(tmp_path / "go"))

    def kill() -> None:
        reported = given.folder / given.run_key / "reports.jsonl"
        while not reported.exists() or not reported.read_text():
            time.sleep(0.05)
        (controller,) = (
            process
            for process in psutil.Process().children(recursive=True)
            if "TrainController" in " ".join(process.cmdline())
        )
        controller.kill()
        (tmp_path / "go").touch()

    with ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        model = trainer("torch").fit(given)
        killed.result()
    assert [(each["epoch"], each["first"]) for each in model.reports] == [(1, 1), (2, 2), (3, 2)]
