"""Classifiers of scikit-learn, and a model by hand, made as a project makes them."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from manta import Fitted

MADE = {
    "logistic": lambda params: LogisticRegression(**params),
    "pipeline": lambda params: make_pipeline(StandardScaler(), LogisticRegression(**params)),
    "network": lambda params: MLPClassifier((8,), **params),
    "histogram": lambda params: HistGradientBoostingClassifier(**params),
    "forest": lambda params: RandomForestClassifier(20, **params),
    "extra": lambda params: ExtraTreesClassifier(20, **params),
    "tree": lambda params: DecisionTreeClassifier(**params),
    "ridge": lambda params: Ridge(**params),
    "pipeline of numbers": lambda params: make_pipeline(StandardScaler(), Ridge(**params)),
    "histogram of numbers": lambda params: HistGradientBoostingRegressor(**params),
    "forest of numbers": lambda params: RandomForestRegressor(20, **params),
    "extra of numbers": lambda params: ExtraTreesRegressor(20, **params),
    "tree of numbers": lambda params: DecisionTreeRegressor(**params),
    "without probabilities": lambda params: LinearSVC(**params),
}


def make(config: dict[str, Any]) -> Any:
    params = dict(config["params"])
    assert len(config["shape"]["categories"]) == 1
    return MADE[params.pop("which")](params)


def by_hand(work: Any) -> Fitted:
    """Logistic regression by gradient descent in NumPy, its graph written by hand. Parameters make it
    misbehave; ``die`` is the file that remembers that it has died once, in the third epoch."""
    params, held = work.params, work.train
    kept = work.kept("weights")
    weights = np.frombuffer(kept) if kept else np.zeros(held.arrays.numbers.shape[1] + 1)
    first = int(work.kept("epoch") or 0)
    work.reported(first)
    for epoch in range(first, params["epochs"]):
        rows = np.hstack([held.arrays.numbers, np.ones((len(held.labels), 1), np.float32)])
        wrong = 1 / (1 + np.exp(-rows @ weights)) - held.labels
        weights = weights - 2.0 * rows.T @ wrong / len(rows)
        work.report({"epoch": epoch + 1, "first": first, "wrong": float(np.abs(wrong).mean())})
        work.keep("weights", weights.tobytes())
        work.keep("epoch", str(epoch + 1).encode())
        if "die" in params and epoch == 2 and not Path(params["die"]).exists():
            Path(params["die"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    logits = work.validation.arrays.numbers.astype(np.float32) @ weights[:-1] + weights[-1]
    answers = 1 / (1 + np.exp(-logits))
    harm = params.get("harm")
    if harm == "nothing":
        return None  # type: ignore[return-value]
    if harm == "other answers":
        answers = answers * 0.999
    if harm == "not-a-number":
        answers = answers * np.nan
    if harm == "too few":
        answers = answers[1:]
    graph = b"no graph" if harm == "no graph" else _graph(weights, "scores" if harm == "names" else "logits")
    return Fitted(graph, answers)


def several(work: Any) -> Fitted:
    """Softmax regression by gradient descent; of a regression, least squares. ``harm`` gives other shapes."""
    outputs, task = work.shape["outputs"], work.training.task

    def rows(part: Any) -> np.ndarray:
        return np.hstack([part.arrays.numbers, np.ones((len(part.labels), 1), np.float32)]).astype(float)

    x = rows(work.train)
    if task == "regression":
        weights = np.linalg.lstsq(x, work.train.labels, rcond=None)[0]
    else:
        weights, truth = np.zeros((x.shape[1], outputs)), np.eye(outputs)[work.train.labels]
        for _ in range(200):
            weights = weights - x.T @ (_softmax(x @ weights) - truth) / len(x)
    answers = rows(work.validation) @ weights
    if task == "multiclass":
        answers = _softmax(answers)
    if work.params.get("harm") == "of one class":
        answers = answers[:, 0]
    if work.params.get("harm") == "other answers":
        answers = answers + 0.02
    if work.params.get("harm") == "logits of one":
        weights = weights[:, 0]
    return Fitted(_graph(weights, "logits"), answers)


def _softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    answered: np.ndarray = raised / raised.sum(axis=1, keepdims=True)
    return answered


def _graph(weights: np.ndarray, output: str) -> bytes:
    held = [
        numpy_helper.from_array(weights[:-1].astype(np.float32), "w"),
        numpy_helper.from_array(weights[-1].astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("MatMul", ["numbers", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], [output]),
    ]
    numbers = helper.make_tensor_value_info("numbers", TensorProto.FLOAT, ["n", len(weights) - 1])
    logits = helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", *weights.shape[1:]])
    graph = helper.make_graph(nodes, "by hand", [numbers], [logits], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    content: bytes = model.SerializeToString()
    return content
