"""Any classifier of scikit-learn, fitted in one task.

The function of the definition makes it, unfitted. Trees and their ensembles are written as ONNX here, so that
every row ends in the same leaf; all others by skl2onnx.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manta.definitions import load_function
from manta.definitions.sources import driver
from manta.errors import TrainingInvalid
from manta.models import trees
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _task
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

EXTRA = "sklearn"
MODEL = "estimator.pkl"  # read by this run alone, which has written it; no package has it


def check(job: Job) -> None:
    """Raises:
    ExtraMissing: skl2onnx is not installed.
    TrainingInvalid: the function makes no classifier.
    """
    driver("skl2onnx", EXTRA, "the trainer Sklearn")
    _made(job.training.fn or "", job.params, job.shape)


def fit(job: Job) -> SklearnModel:
    """Raises:
    TrainingInvalid: the classifier cannot be fitted.
    Unavailable: the process died every time.
    """
    content = _task.run(job, MODEL, train, 1)
    return SklearnModel(pickle.loads(content), job.shape, reports(job.folder / job.run_key))


def train(work: _task.Work) -> bytes:
    """In the task."""
    from sklearn.metrics import log_loss

    estimator = _made(work.training.fn or "", work.params, work.shape)
    _seeded(estimator, work.training.seed)
    estimator.fit(_task.matrix(work.train.arrays), work.train.labels.astype(np.int64))
    losses = {
        f"{name}_loss": float(log_loss(part.labels, estimator.predict_proba(_task.matrix(part.arrays))[:, 1]))
        for name, part in (("train", work.train), ("validation", work.validation))
    }
    work.reported(0)
    work.report(losses)
    return pickle.dumps(estimator)


def _made(path: str, params: Any, shape: dict[str, Any]) -> Any:
    from sklearn.base import is_classifier

    try:
        estimator = load_function(path)({"params": dict(params), "shape": shape})
    except Exception as error:
        raise TrainingInvalid(
            f"{path} cannot make a classifier: {type(error).__name__}: {error}",
            hint='fn(config) gets {"params", "shape"} and returns a classifier, unfitted',
        ) from error
    if not (is_classifier(estimator) and hasattr(estimator, "predict_proba")):
        raise TrainingInvalid(
            f"{path} made a {type(estimator).__name__}, which gives no probabilities",
            hint="return a classifier with predict_proba, such as LogisticRegression()",
        )
    return estimator


def _seeded(estimator: Any, seed: int) -> None:
    """What is random and has no seed of its own gets the training's."""
    own = {
        name: seed
        for name, value in estimator.get_params().items()
        if name.split("__")[-1] == "random_state" and value is None
    }
    estimator.set_params(**own)


@dataclass
class SklearnModel:
    estimator: Any
    shape: dict[str, Any]
    reports: list[dict[str, Any]]

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        rows = _task.matrix(arrays)
        answered: np.ndarray = self.estimator.predict_proba(rows)[:, 1]
        return answered.astype(np.float32)

    def graph(self) -> onnx.ModelProto:
        from sklearn.ensemble import (
            ExtraTreesClassifier,
            HistGradientBoostingClassifier,
            RandomForestClassifier,
        )
        from sklearn.tree import DecisionTreeClassifier

        held = self.estimator
        if isinstance(held, HistGradientBoostingClassifier):
            grown = [_histogram(each) for (each,) in held._predictors]
            return trees.graph(grown, self.shape, base=float(held._baseline_prediction.ravel()[0]))
        if isinstance(held, DecisionTreeClassifier):
            return trees.graph([_decision(held.tree_, 1)], self.shape, of_probability=True)
        if isinstance(held, RandomForestClassifier | ExtraTreesClassifier):
            grown = [_decision(each.tree_, len(held.estimators_)) for each in held.estimators_]
            return trees.graph(grown, self.shape, of_probability=True)
        return _converted(held, self.shape)

    def files(self) -> dict[str, bytes]:
        return {}


def _histogram(predictor: Any) -> trees.Tree:
    nodes = predictor.nodes
    if nodes["is_categorical"].any():
        raise TrainingInvalid(
            "splits by sets of categories cannot be packaged",
            hint="leave out `categorical_features`: categories come as indices by frequency",
        )
    leaf = nodes["is_leaf"] == 1
    return trees.Tree(
        feature=nodes["feature_idx"],
        threshold=nodes["num_threshold"],
        left=np.where(leaf, -1, nodes["left"].astype(np.int64)),
        right=np.where(leaf, -1, nodes["right"].astype(np.int64)),
        value=nodes["value"],
    )


def _decision(tree: Any, of: int) -> trees.Tree:
    """One of ``of`` trees whose probabilities are averaged."""
    counts = tree.value[:, 0, :]
    return trees.Tree(
        feature=tree.feature,
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        value=counts[:, 1] / counts.sum(axis=1) / of,
    )


def _converted(estimator: Any, shape: dict[str, Any]) -> onnx.ModelProto:
    """By skl2onnx."""
    from skl2onnx import to_onnx

    from manta.models.graph import OPSET
    from manta.models.tabular import wrapped

    width = len(shape["categories"]) + shape["numbers"]
    try:
        made = to_onnx(
            estimator,
            np.zeros((1, width), dtype=np.float32),
            options={"zipmap": False},
            target_opset={"": OPSET, "ai.onnx.ml": 3},
        )
    except Exception as error:  # its errors share no base below Exception
        raise TrainingInvalid(
            f"{type(estimator).__name__} cannot be written as ONNX: {error}",
            hint="take an estimator that skl2onnx knows, or HistGradientBoostingClassifier",
        ) from error
    return wrapped(made.graph, shape, made.graph.output[1].name, "probabilities")
