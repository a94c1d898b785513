"""Gradient-boosted trees by XGBoost, in one task with all its CPUs or in several that share the rows.

Every so many rounds the booster is kept, and an attempt after a kill goes on from there.

Several workers add up their histograms in each level of a tree (XGBoost's own collective), so all grow the
same trees. These are those of one worker but for two things: sums of floats in another order, and, of
features with more distinct values than bins, bounds of bins that are merged from the workers' own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from manta.definitions import XGBoost
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.models import trees
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _boosting, _group, _task
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

MODEL, CHECKPOINT = "model.ubj", "checkpoint.ubj"
OBJECTIVES: dict[Task, tuple[str, str]] = {  # and the metric that is reported unless another is asked for
    "binary": ("binary:logistic", "logloss"),
    "multiclass": ("multi:softprob", "mlogloss"),
    "regression": ("reg:squarederror", "rmse"),
}
MEETING_SECONDS = 300  # for all workers to meet, and for a word from one that does not close its connections


def check(job: Job) -> None:
    """Raises:
    ExtraMissing: XGBoost is not installed.
    TrainingInvalid: a parameter that the trainer sets itself, or no number of rounds.
    """
    _boosting.check(job, "xgboost", "XGBoost")


def fit(job: Job) -> XGBoostModel:
    """Raises:
    TrainingInvalid: XGBoost refused a parameter.
    Unavailable: the process died every time.
    """
    how = cast(XGBoost, job.training.trainer)
    rounds = _boosting.asked(job.params).rounds
    if how.workers == 1:
        content = _task.run(job, MODEL, train, rounds)
    else:
        content = _group.run(job, MODEL, train, how.workers, _meeting, rounds)
    return XGBoostModel(content, job.shape, reports(job.folder / job.run_key), job.training.task)


@contextmanager
def _meeting(workers: int) -> Iterator[dict[str, Any]]:
    """XGBoost's tracker, in this process: it tells the workers of each other."""
    import ray
    import xgboost
    from xgboost.tracker import RabitTracker

    address = ray.util.get_node_ip_address()
    tracker = RabitTracker(n_workers=workers, host_ip=address, sortby="task", timeout=MEETING_SECONDS)
    tracker.start()
    try:
        yield tracker.worker_args()
    finally:
        with suppress(xgboost.core.XGBoostError):  # it says once more that a worker is gone
            tracker.free()


@contextmanager
def _together(work: _task.Work) -> Iterator[None]:
    """Among the other workers, where there are any."""
    from xgboost import collective

    if work.workers == 1:
        yield
        return
    collective.init(**work.meeting, dmlc_task_id=f"{work.rank:08}", dmlc_timeout=MEETING_SECONDS)
    yield
    # Not after an error: it would wait for peers that may be gone.
    collective.finalize()


def train(work: _task.Work) -> bytes:
    """In the task. What is kept is read before the workers meet: after that, the first may write anew."""
    import xgboost

    rounds, patience, params = _boosting.asked(work.params)
    objective, metric = OBJECTIVES[work.training.task]
    own: dict[str, Any] = {"objective": objective, "nthread": work.threads, "seed": work.training.seed}
    if work.training.task == "multiclass":
        own["num_class"] = work.shape["outputs"]
    given = {"tree_method": "hist", "eval_metric": metric, "validate_parameters": True, **params, **own}
    before = None
    if (kept := work.kept(CHECKPOINT)) is not None:
        before = xgboost.Booster(model_file=bytearray(kept))
    done = before.num_boosted_rounds() if before is not None else 0
    work.reported(done)
    callbacks: list[Any] = [_reports(work)]
    if patience is not None:
        callbacks.append(
            xgboost.callback.EarlyStopping(int(patience), data_name="validation", save_best=True)
        )
    with _together(work):
        parts = {
            name: xgboost.DMatrix(_task.matrix(part.arrays), part.labels, nthread=work.threads)
            for name, part in (("train", work.train), ("validation", work.validation))
        }
        booster = xgboost.train(
            given,
            parts["train"],
            rounds - done,
            evals=[(matrix, name) for name, matrix in parts.items()],
            xgb_model=before,
            callbacks=callbacks,
            verbose_eval=False,
        )
    return bytes(booster.save_raw("ubj"))


def _reports(work: _task.Work) -> Any:
    from xgboost.callback import TrainingCallback

    class Reports(TrainingCallback):  # type: ignore[misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            figures = {
                f"{part}_{metric}": values[-1]
                for part, log in evals_log.items()
                for metric, values in log.items()
            }
            rounds = model.num_boosted_rounds()
            _boosting.told(work, rounds, figures, CHECKPOINT, lambda: bytes(model.save_raw("ubj")))
            return False

    return Reports()


@dataclass
class XGBoostModel:
    """A booster. ``content``: in XGBoost's own binary form."""

    content: bytes
    shape: dict[str, Any]
    reports: list[dict[str, Any]]
    task: Task = "binary"

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        import xgboost

        booster = xgboost.Booster(model_file=bytearray(self.content))
        rows = _task.matrix(arrays)
        answered: np.ndarray = booster.predict(xgboost.DMatrix(rows))
        return answered

    def graph(self) -> onnx.ModelProto:
        import xgboost

        booster = xgboost.Booster(model_file=bytearray(self.content))
        learner = json.loads(bytes(booster.save_raw("json")))["learner"]
        boosted = learner["gradient_booster"]
        if boosted["name"] != "gbtree":
            raise TrainingInvalid(
                f"booster={boosted['name']} cannot be packaged", hint='booster="gbtree" is the default'
            )
        told, outputs = boosted["model"], boosted["model"]["tree_info"]
        return trees.graph(
            [_tree(each, output) for each, output in zip(told["trees"], outputs, strict=True)],
            self.shape,
            base=self._base(learner["learner_model_param"]["base_score"]),
            strict=True,
        )

    def _base(self, told: str) -> list[float]:
        """What each output starts from; of a binary model it is told as a probability."""
        held = np.array([float(each) for each in told.strip("[]").split(",")])
        if self.task == "binary":
            held = np.log(held / (1 - held))
        return [float(each) for each in np.broadcast_to(held, self.shape.get("outputs", 1))]

    def files(self) -> dict[str, bytes]:
        return {MODEL: self.content}


def _tree(told: dict[str, Any], output: int) -> trees.Tree:
    # float32, written in few digits; a leaf's value stands there too.
    value = np.asarray(told["split_conditions"], dtype=np.float32).astype(np.float64)
    return trees.Tree(
        feature=np.asarray(told["split_indices"], dtype=np.int64),
        threshold=value,
        left=np.asarray(told["left_children"], dtype=np.int64),
        right=np.asarray(told["right_children"], dtype=np.int64),
        value=value,
        output=output,
    )
