"""Classifiers of scikit-learn, made as a project makes them."""

from __future__ import annotations

from typing import Any

from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier

MADE = {
    "logistic": lambda params: LogisticRegression(**params),
    "pipeline": lambda params: make_pipeline(StandardScaler(), LogisticRegression(**params)),
    "network": lambda params: MLPClassifier((8,), **params),
    "histogram": lambda params: HistGradientBoostingClassifier(**params),
    "forest": lambda params: RandomForestClassifier(20, **params),
    "extra": lambda params: ExtraTreesClassifier(20, **params),
    "tree": lambda params: DecisionTreeClassifier(**params),
    "without probabilities": lambda params: LinearSVC(**params),
}


def make(config: dict[str, Any]) -> Any:
    params = dict(config["params"])
    assert len(config["shape"]["categories"]) == 1
    return MADE[params.pop("which")](params)
