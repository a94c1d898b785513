"""Any classifier or regressor of scikit-learn, fitted in one task.

The function of the definition makes it, unfitted. Trees and their ensembles are written as ONNX here, so that
every row ends in the same leaf; all others by skl2onnx.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manta.definitions import load_function
from manta.definitions.metrics import Task
from manta.definitions.sources import driver
from manta.errors import TrainingInvalid
from manta.models import trees
from manta.training.encoder import Arrays
from manta.training.evaluate import measure
from manta.training.trainers import Job, _task
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

EXTRA = "sklearn"
MODEL = "estimator.pkl"  # read by this run alone, which has written it; no package has it
LINEAR = ("squared_error", "absolute_error", "quantile")  # losses whose trees add up to the answer itself


def check(job: Job) -> None:
    """Raises:
    ExtraMissing: skl2onnx is not installed.
    TrainingInvalid: the function makes no classifier, or, for a regression, no regressor.
    """
    driver("skl2onnx", EXTRA, "the trainer Sklearn")
    _made(job.training.fn or "", job.params, job.shape, job.training.task)


def fit(job: Job) -> SklearnModel:
    """Raises:
    TrainingInvalid: the estimator cannot be fitted.
    Unavailable: the process died every time.
    """
    content = _task.run(job, MODEL, train, 1)
    told = reports(job.folder / job.run_key)
    return SklearnModel(pickle.loads(content), job.shape, told, job.training.task)


def train(work: _task.Work) -> bytes:
    """In the task."""
    task = work.training.task
    estimator = _made(work.training.fn or "", work.params, work.shape, task)
    _seeded(estimator, work.training.seed)
    labels = work.train.labels if task == "regression" else work.train.labels.astype(np.int64)
    estimator.fit(_task.matrix(work.train.arrays), labels)
    metric = "rmse" if task == "regression" else "log_loss"
    name = "rmse" if task == "regression" else "loss"
    figures = {}
    for part, held in (("train", work.train), ("validation", work.validation)):
        answered = _answered(estimator, held.arrays, task, work.shape.get("outputs", 1))
        figures[f"{part}_{name}"] = measure(metric, held.labels, answered)
    work.reported(0)
    work.report(figures)
    return pickle.dumps(estimator)


def _made(path: str, params: Any, shape: dict[str, Any], task: Task) -> Any:
    from sklearn.base import is_classifier, is_regressor

    wanted = "regressor" if task == "regression" else "classifier"
    try:
        estimator = load_function(path)({"params": dict(params), "shape": shape})
    except Exception as error:
        raise TrainingInvalid(
            f"{path} cannot make a {wanted}: {type(error).__name__}: {error}",
            hint=f'fn(config) gets {{"params", "shape"}} and returns a {wanted}, unfitted',
        ) from error
    if task == "regression" and not is_regressor(estimator):
        raise TrainingInvalid(
            f"{path} made a {type(estimator).__name__}, which is no regressor",
            hint="return a regressor, such as Ridge()",
        )
    if task != "regression" and not (is_classifier(estimator) and hasattr(estimator, "predict_proba")):
        raise TrainingInvalid(
            f"{path} made a {type(estimator).__name__}, which gives no probabilities",
            hint="return a classifier with predict_proba, such as LogisticRegression()",
        )
    return estimator


def _answered(estimator: Any, arrays: Arrays, task: Task, outputs: int) -> np.ndarray:
    """float32 [n], or [n, outputs]: a class that was not among the labels has a probability of 0."""
    rows = _task.matrix(arrays)
    if task == "regression":
        answered: np.ndarray = np.asarray(estimator.predict(rows)).reshape(len(rows))
        return answered.astype(np.float32)
    found: np.ndarray = estimator.predict_proba(rows)
    if task == "binary":
        return found[:, 1].astype(np.float32)
    answered = np.zeros((len(rows), outputs), dtype=np.float32)
    answered[:, estimator.classes_] = found
    return answered


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
    task: Task = "binary"

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        return _answered(self.estimator, arrays, self.task, self.shape.get("outputs", 1))

    def graph(self) -> onnx.ModelProto:
        from sklearn import ensemble, tree

        held, outputs = self.estimator, self.shape.get("outputs", 1)
        if isinstance(held, ensemble.HistGradientBoostingClassifier):
            base = held._baseline_prediction.ravel()
            return trees.graph(_boosted(held, outputs), self.shape, base=_two(base, outputs))
        if isinstance(held, ensemble.HistGradientBoostingRegressor) and held.loss in LINEAR:
            base = held._baseline_prediction.ravel()
            return trees.graph(_boosted(held, 1), self.shape, base=float(base[0]))
        if isinstance(held, tree.DecisionTreeClassifier | tree.DecisionTreeRegressor):
            grown = [_decision(held.tree_, 1, self.task)]
            return trees.graph(grown, self.shape, of_probability=self.task != "regression")
        if isinstance(
            held,
            ensemble.RandomForestClassifier
            | ensemble.ExtraTreesClassifier
            | ensemble.RandomForestRegressor
            | ensemble.ExtraTreesRegressor,
        ):
            grown = [_decision(each.tree_, len(held.estimators_), self.task) for each in held.estimators_]
            return trees.graph(grown, self.shape, of_probability=self.task != "regression")
        return _converted(held, self.shape, self.task)

    def files(self) -> dict[str, bytes]:
        return {}


def _boosted(estimator: Any, outputs: int) -> list[trees.Tree]:
    """Of two classes there is one tree in each round: it adds to the second's logit, and the first's is 0."""
    last = outputs - 1
    return [
        _histogram(grown, at if len(several) > 1 else last)
        for several in estimator._predictors
        for at, grown in enumerate(several)
    ]


def _two(base: np.ndarray, outputs: int) -> list[float]:
    """A base for each output, where two classes have one between them."""
    return [0.0] * (outputs - len(base)) + [float(each) for each in base]


def _histogram(predictor: Any, output: int) -> trees.Tree:
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
        output=output,
    )


def _decision(tree: Any, of: int, task: Task) -> trees.Tree:
    """One of ``of`` trees whose answers are averaged."""
    held = tree.value[:, 0, :]
    if task == "regression":
        value = held[:, 0]
    else:
        shares = held / held.sum(axis=1, keepdims=True)
        value = shares[:, 1] if task == "binary" else shares
    return trees.Tree(
        feature=tree.feature,
        threshold=tree.threshold,
        left=tree.children_left,
        right=tree.children_right,
        value=value / of,
    )


def _converted(estimator: Any, shape: dict[str, Any], task: Task) -> onnx.ModelProto:
    """By skl2onnx."""
    from skl2onnx import to_onnx

    from manta.models.graph import OPSET
    from manta.models.tabular import wrapped

    width = len(shape["categories"]) + shape["numbers"]
    try:
        made = to_onnx(
            estimator,
            np.zeros((1, width), dtype=np.float32),
            options=None if task == "regression" else {"zipmap": False},
            target_opset={"": OPSET, "ai.onnx.ml": 3},
        )
    except Exception as error:  # its errors share no base below Exception
        kind = "Regressor" if task == "regression" else "Classifier"
        raise TrainingInvalid(
            f"{type(estimator).__name__} cannot be written as ONNX: {error}",
            hint=f"take an estimator that skl2onnx knows, or HistGradientBoosting{kind}",
        ) from error
    if task == "regression":
        return wrapped(made.graph, shape, made.graph.output[0].name, "margin")
    return wrapped(made.graph, shape, made.graph.output[1].name, "probabilities")
