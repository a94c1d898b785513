"""Gradient-boosted trees by XGBoost, in one task with all its CPUs.

Every so many rounds the booster is kept, and an attempt after a kill goes on from there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manta.errors import TrainingInvalid
from manta.models import trees
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _boosting, _task
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

MODEL, CHECKPOINT = "model.ubj", "checkpoint.ubj"


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
    content = _task.run(job, MODEL, train, _boosting.asked(job.params).rounds)
    return XGBoostModel(content, job.shape, reports(job.folder / job.run_key))


def train(work: _task.Work) -> bytes:
    """In the task."""
    import xgboost

    rounds, patience, params = _boosting.asked(work.params)
    own = {"objective": "binary:logistic", "nthread": work.threads, "seed": work.training.seed}
    given = {"tree_method": "hist", "eval_metric": "logloss", "validate_parameters": True, **params, **own}
    before = None
    if (kept := work.kept(CHECKPOINT)) is not None:
        before = xgboost.Booster(model_file=bytearray(kept))
    done = before.num_boosted_rounds() if before is not None else 0
    work.reported(done)
    parts = {
        name: xgboost.DMatrix(_task.matrix(part.arrays), part.labels, nthread=work.threads)
        for name, part in (("train", work.train), ("validation", work.validation))
    }
    callbacks: list[Any] = [_reports(work)]
    if patience is not None:
        callbacks.append(
            xgboost.callback.EarlyStopping(int(patience), data_name="validation", save_best=True)
        )
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
        share = float(learner["learner_model_param"]["base_score"].strip("[]"))
        return trees.graph(
            [_tree(each) for each in boosted["model"]["trees"]],
            self.shape,
            base=float(np.log(share / (1 - share))),
            strict=True,
        )

    def files(self) -> dict[str, bytes]:
        return {MODEL: self.content}


def _tree(told: dict[str, Any]) -> trees.Tree:
    # float32, written in few digits; a leaf's value stands there too.
    value = np.asarray(told["split_conditions"], dtype=np.float32).astype(np.float64)
    return trees.Tree(
        feature=np.asarray(told["split_indices"], dtype=np.int64),
        threshold=value,
        left=np.asarray(told["left_children"], dtype=np.int64),
        right=np.asarray(told["right_children"], dtype=np.int64),
        value=value,
    )
