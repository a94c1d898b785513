"""Gradient-boosted trees by LightGBM, in one task with all its CPUs.

Every so many rounds the booster is kept, and an attempt after a kill goes on from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.models import trees
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _boosting, _task
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

MODEL, CHECKPOINT = "model.txt", "checkpoint.txt"
OBJECTIVES: dict[Task, tuple[str, str]] = {  # and the metric that is reported unless another is asked for
    "binary": ("binary", "binary_logloss"),
    "multiclass": ("multiclass", "multi_logloss"),
    "regression": ("regression", "rmse"),
}


def check(job: Job) -> None:
    """Raises:
    ExtraMissing: LightGBM is not installed.
    TrainingInvalid: a parameter that the trainer sets itself, or no number of rounds.
    """
    _boosting.check(job, "lightgbm", "LightGBM", also=("num_threads",))


def fit(job: Job) -> LightGBMModel:
    """Raises:
    TrainingInvalid: LightGBM refused a parameter.
    Unavailable: the process died every time.
    """
    content = _task.run(job, MODEL, train, _boosting.asked(job.params).rounds)
    return LightGBMModel(content, job.shape, reports(job.folder / job.run_key))


def train(work: _task.Work) -> bytes:
    """In the task."""
    import lightgbm

    rounds, patience, params = _boosting.asked(work.params)
    objective, metric = OBJECTIVES[work.training.task]
    own = {"objective": objective, "num_threads": work.threads, "seed": work.training.seed, "verbosity": -1}
    if work.training.task == "multiclass":
        own["num_class"] = work.shape["outputs"]
    given = {"deterministic": True, "force_col_wise": True, "metric": metric, **params, **own}
    before = None
    if (kept := work.kept(CHECKPOINT)) is not None:
        before = lightgbm.Booster(model_str=kept.decode())
    done = before.current_iteration() if before is not None else 0
    work.reported(done)
    train = lightgbm.Dataset(_task.matrix(work.train.arrays), work.train.labels, free_raw_data=False)
    held = lightgbm.Dataset(
        _task.matrix(work.validation.arrays), work.validation.labels, reference=train, free_raw_data=False
    )
    callbacks = [_reports(work)]
    if patience is not None:
        callbacks.append(lightgbm.early_stopping(int(patience), verbose=False))
    booster = lightgbm.train(
        given,
        train,
        rounds - done,
        valid_sets=[train, held],
        valid_names=["train", "validation"],
        init_model=before,
        callbacks=callbacks,
    )
    best = booster.best_iteration
    return booster.model_to_string(num_iteration=best if best > 0 else None).encode()


def _reports(work: _task.Work) -> Callable[[Any], None]:
    def report(state: Any) -> None:
        figures = {
            f"{each[0]}_{each[1].removeprefix('binary_').removeprefix('multi_')}": each[2]
            for each in state.evaluation_result_list
        }
        _boosting.told(
            work, state.iteration + 1, figures, CHECKPOINT, lambda: state.model.model_to_string().encode()
        )

    return report


@dataclass
class LightGBMModel:
    """A booster. ``content``: in LightGBM's own text form."""

    content: bytes
    shape: dict[str, Any]
    reports: list[dict[str, Any]]

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        import lightgbm

        rows = _task.matrix(arrays)
        answered = lightgbm.Booster(model_str=self.content.decode()).predict(rows)
        return np.asarray(answered, dtype=np.float32)

    def graph(self) -> onnx.ModelProto:
        import lightgbm

        told = lightgbm.Booster(model_str=self.content.decode()).dump_model()
        if told.get("average_output"):
            raise TrainingInvalid('boosting="rf" cannot be packaged', hint='boosting="gbdt" is the default')
        several = told["num_tree_per_iteration"]
        grown = [_tree(each["tree_structure"], at % several) for at, each in enumerate(told["tree_info"])]
        return trees.graph(grown, self.shape)

    def files(self) -> dict[str, bytes]:
        return {MODEL: self.content}


def _tree(root: dict[str, Any], output: int) -> trees.Tree:
    nodes: list[dict[str, Any]] = []
    children: list[tuple[int, int]] = []

    def add(node: dict[str, Any]) -> int:
        at = len(nodes)
        nodes.append(node)
        children.append((-1, -1))
        if "left_child" in node:
            if node["decision_type"] != "<=":
                raise TrainingInvalid(
                    "splits by sets of categories cannot be packaged",
                    hint="leave out `categorical_feature`: categories come as indices by frequency",
                )
            children[at] = (add(node["left_child"]), add(node["right_child"]))
        return at

    add(root)
    left, right = np.array(children, dtype=np.int64).T
    return trees.Tree(
        feature=np.array([node.get("split_feature", 0) for node in nodes], dtype=np.int64),
        threshold=np.array([node.get("threshold", 0.0) for node in nodes], dtype=np.float64),
        left=left,
        right=right,
        value=np.array([node.get("leaf_value", 0.0) for node in nodes], dtype=np.float64),
        output=output,
    )
