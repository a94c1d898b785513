"""XGBoost models that others have trained: read here, checked, and written anew.

XGBoost trusts the files that it loads: a child or a feature out of range is read from wherever it points, and
JSON that is deep enough ends the process. So it is only ever given what :meth:`Booster.to_json` writes, of
numbers that were checked here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from manta.errors import ModelRefused
from manta.models import ubjson
from manta.models.formats import File, parsed_json, refused
from manta.models.graph import IR_VERSION, ML_OPSET, OPSET, OUTPUT
from manta.models.trees import Tree, ensemble

MOST_TREES = 100_000
OBJECTIVES = ("binary:logistic", "reg:logistic")


@dataclass(frozen=True)
class Booster:
    """Checked: trees without cycles, of features that there are.

    Attributes:
        features: names, in the order in which the trees count them.
        trees: with ``missing_left``; thresholds and values are float32 numbers.
        share: the probability that they start from.
    """

    name: str
    features: tuple[str, ...]
    trees: tuple[Tree, ...]
    share: float

    def graph(self) -> onnx.ModelProto:
        """Inputs: float32 [n], one per feature, by its name; NaN and infinite values are missing. Output:
        ``probability`` float32 [n]."""
        held: dict[str, np.ndarray] = {
            "foreign/column": np.array([-1, 1], dtype=np.int64),
            "foreign/flat": np.array([-1], dtype=np.int64),
            "foreign/missing": np.array(np.nan, dtype=np.float32),
        }
        columns = [f"foreign/{at}" for at in range(len(self.features))]
        nodes = [
            *(
                helper.make_node("Reshape", [name, "foreign/column"], [column])
                for name, column in zip(self.features, columns, strict=True)
            ),
            helper.make_node("Concat", columns, ["foreign/raw"], axis=1),
            helper.make_node("IsInf", ["foreign/raw"], ["foreign/infinite"]),
            helper.make_node("Where", ["foreign/infinite", "foreign/missing", "foreign/raw"], ["foreign/x"]),
            ensemble(self.trees, "foreign/x", "foreign/sum", base=self.margin, strict=True),
            helper.make_node("Sigmoid", ["foreign/sum"], ["foreign/p"]),
            helper.make_node("Reshape", ["foreign/p", "foreign/flat"], [OUTPUT]),
        ]
        made = helper.make_graph(
            nodes,
            "booster",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in self.features],
            [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n"])],
            initializer=[numpy_helper.from_array(value, name) for name, value in held.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        whole = helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="manta")
        onnx.checker.check_model(whole, full_check=True)
        return whole

    @property
    def margin(self) -> float:
        return float(np.log(self.share / (1 - self.share)))

    def to_json(self) -> bytes:
        """As XGBoost loads it."""
        width = str(len(self.features))
        trees = [_written(tree, number, width) for number, tree in enumerate(self.trees)]
        model = {
            "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(trees))},
            "iteration_indptr": list(range(len(trees) + 1)),
            "tree_info": [0] * len(trees),
            "trees": trees,
        }
        learner = {
            "attributes": {},
            "feature_names": list(self.features),
            "feature_types": ["float"] * len(self.features),
            "gradient_booster": {"name": "gbtree", "model": model},
            "learner_model_param": {
                "base_score": repr(self.share),
                "boost_from_average": "1",
                "num_class": "0",
                "num_feature": width,
                "num_target": "1",
            },
            "objective": {"name": OBJECTIVES[0], "reg_loss_param": {"scale_pos_weight": "1"}},
        }
        return json.dumps({"learner": learner, "version": [3, 0, 0]}).encode()


def read(file: File) -> Booster:
    """Raises:
    ModelRefused: it is no XGBoost model, or none that answers one probability from named numbers.
    """
    try:
        if file.content.startswith(b"{L"):
            document = ubjson.decode(file.content)
        else:
            document = parsed_json(file.name, file.content)
        return _booster(file.name, document["learner"])
    except ModelRefused:
        raise
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError) as error:
        why = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise refused(file.name, f"is no XGBoost model: {why:.200}") from None


def _booster(name: str, learner: dict[str, Any]) -> Booster:
    objective, param = learner["objective"]["name"], learner["learner_model_param"]
    if objective not in OBJECTIVES or int(param["num_class"]) > 1 or int(param.get("num_target", 1)) != 1:
        raise refused(
            name,
            f"has the objective {objective!s:.80}, which gives no probability of one class",
            f"train with objective={OBJECTIVES[0]!r}",
        )
    boosted = learner["gradient_booster"]
    if boosted["name"] != "gbtree":
        raise refused(name, f"has booster={boosted['name']!s:.80}", 'booster="gbtree" is the default')
    features = tuple(learner.get("feature_names") or ())
    width = int(param["num_feature"])
    if len(features) != width or len(set(features)) != width or not width:
        raise refused(
            name,
            f"names {len(set(features))} of its {width} features",
            "train from a frame with column names, or DMatrix(…, feature_names=…)",
        )
    if not all(isinstance(feature, str) for feature in features) or OUTPUT in features:
        raise refused(name, "has features whose names cannot be used")
    if "c" in (learner.get("feature_types") or ()):
        raise refused(name, "splits by sets of categories", "train it on numbers")
    share = float(np.float32(str(param["base_score"]).strip("[]")))
    if not 0 < share < 1:
        raise ValueError(f"its base score is {share}")
    told = boosted["model"]["trees"]
    if not 1 <= len(told) <= MOST_TREES:
        raise ValueError(f"it has {len(told)} trees")
    return Booster(name, features, tuple(_tree(each, width) for each in told), share)


def _tree(told: dict[str, Any], width: int) -> Tree:
    """Its reachable nodes, counted anew.

    Raises:
        ValueError: it is no tree.
    """
    if int(told["tree_param"].get("size_leaf_vector", 1)) > 1:
        raise ValueError("its leaves hold several values")
    fields = ("left_children", "right_children", "split_indices", "split_conditions", "default_left")
    left, right, feature, value, missing_left = (_numbers(told[name]) for name in fields)
    nodes = len(left)
    if not nodes or {len(right), len(feature), len(value), len(missing_left)} != {nodes}:
        raise ValueError("a tree has fields of different lengths")
    if "split_type" in told and np.any(_numbers(told["split_type"])):
        raise ValueError("a tree splits by sets of categories")
    if not np.array_equal(left < 0, right < 0) or np.isnan(value).any():
        raise ValueError("a tree has half a split, or a value that is no number")
    order, seen, at = [0], {0}, 0
    while at < len(order):
        node = order[at]
        at += 1
        if left[node] < 0:
            continue
        if not 0 <= feature[node] < width:
            raise ValueError(f"a tree asks for feature {feature[node]:.0f} of {width}")
        for child in (int(left[node]), int(right[node])):
            if not 0 < child < nodes or child in seen:
                raise ValueError(f"a tree goes on at node {child}, which is not there or not below")
            seen.add(child)
            order.append(child)
    kept = np.array(order)
    anew = np.full(nodes, -1)
    anew[kept] = np.arange(len(kept))
    leaf = left[kept] < 0
    below = [
        np.where(leaf, -1, anew[np.where(leaf, 0, side[kept]).astype(np.int64)]) for side in (left, right)
    ]
    values = value[kept].astype(np.float32).astype(np.float64)
    if not np.isfinite(values[leaf]).all():
        raise ValueError("a leaf holds no finite number")
    splits = np.where(leaf, 0, feature[kept]).astype(np.int64)
    return Tree(splits, values, below[0], below[1], values, missing_left[kept].astype(np.int64))


def _numbers(values: Any) -> np.ndarray:
    found = np.asarray(values)
    if found.ndim != 1 or found.dtype.kind not in "iufb":
        raise ValueError("a tree has a field that is no list of numbers")
    return found.astype(np.float64)


def _written(tree: Tree, number: int, width: str) -> dict[str, Any]:
    nodes = len(tree.left)
    parents = np.full(nodes, 2**31 - 1)
    for side in (tree.left, tree.right):
        parents[side[side >= 0]] = np.flatnonzero(side >= 0)
    assert tree.missing_left is not None
    zeros = [0.0] * nodes
    return {
        "base_weights": zeros,
        "categories": [],
        "categories_nodes": [],
        "categories_segments": [],
        "categories_sizes": [],
        "default_left": tree.missing_left.tolist(),
        "id": number,
        "left_children": tree.left.tolist(),
        "loss_changes": zeros,
        "parents": parents.tolist(),
        "right_children": tree.right.tolist(),
        "split_conditions": tree.threshold.tolist(),
        "split_indices": tree.feature.tolist(),
        "split_type": [0] * nodes,
        "sum_hessian": zeros,
        "tree_param": {
            "num_deleted": "0",
            "num_feature": width,
            "num_nodes": str(nodes),
            "size_leaf_vector": "1",
        },
    }
