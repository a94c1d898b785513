"""The same question by other frameworks: the examples, features, split and gates of jobs/delay.py.

`manta apply` leaves these alone. `manta run delay-xgboost --wait` trains one of them, which becomes the
champion if it passes the gates, and `manta leaderboard delay` ranks what has been trained. The search tries
parameters of the trees, and trains the best of them in full.
"""

from __future__ import annotations

from typing import Any

from jobs.delay import delay
from manta import ASHA, Integers, LightGBM, LogUniform, Search, Sklearn, Uniform, XGBoost

by_xgboost = delay.replace(
    name="delay-xgboost",
    fn=None,
    module=None,
    trainer=XGBoost(cpus=2),
    params={"rounds": 300, "early_stopping_rounds": 30, "learning_rate": 0.1, "max_depth": 7},
    on_apply=False,
)

by_lightgbm = delay.replace(
    name="delay-lightgbm",
    fn=None,
    module=None,
    trainer=LightGBM(cpus=2),
    params={"rounds": 300, "early_stopping_rounds": 30, "learning_rate": 0.1, "num_leaves": 63},
    on_apply=False,
)


def histogram(config: dict[str, Any]) -> Any:
    """Gradient-boosted trees by scikit-learn, which need no extra library to be trained."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(**config["params"])


by_sklearn = delay.replace(
    name="delay-sklearn",
    fn=histogram,
    module=None,
    trainer=Sklearn(cpus=2),
    params={"max_iter": 300, "learning_rate": 0.1, "max_leaf_nodes": 63},
    on_apply=False,
)

search = Search(
    name="delay-search",
    training=by_xgboost,
    space={
        "learning_rate": LogUniform(0.02, 0.3),
        "max_depth": Integers(4, 10),
        "min_child_weight": LogUniform(1, 100),
        "subsample": Uniform(0.5, 1.0),
    },
    trials=20,
    metric="roc_auc",
    scheduler=ASHA("validation_logloss", grace=25, most=300),
)
