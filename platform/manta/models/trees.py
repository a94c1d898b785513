"""Ensembles of decision trees as ONNX graphs, exactly: a row ends in the leaf where the framework puts it.

A framework that keeps thresholds in double precision compares float32 values with them. ONNX keeps float32
thresholds; one rounded to the next number below sends every float32 value the same way, one rounded to the
nearest does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from manta.models.tabular import wrapped


@dataclass(frozen=True)
class Tree:
    """Arrays of one length, an element for each node; node 0 is the root.

    Attributes:
        feature: what a node compares. threshold: with what; a row goes left where its value is at most that
            (or less, see :func:`graph`).
        left, right: the next node; -1 at leaves.
        value: at leaves, what the tree adds to ``output``, or to each of the outputs, [nodes, k].
        missing_left: whether a row whose value is NaN goes left; None where there are no such rows.
        output: the one to which the tree adds.
    """

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    value: np.ndarray
    missing_left: np.ndarray | None = None
    output: int = 0


def graph(
    trees: Sequence[Tree],
    shape: dict[str, Any],
    *,
    base: float | Sequence[float] = 0.0,
    strict: bool = False,
    of_probability: bool = False,
) -> onnx.ModelProto:
    """``categories`` int64 [n, C], ``numbers`` float32 [n, 2·D] → ``logits`` float32 [n], or [n, k] where
    ``shape`` says that there are k ``outputs``: ``base``, one or one for each of them, plus what the trees
    add. Feature i of a tree is category i, and behind these the numbers.

    Args:
        strict: a row goes left only where its value is less than the threshold.
        of_probability: what the trees add up to are probabilities.
    """
    outputs = shape.get("outputs", 1)
    node = ensemble(trees, "x", "sum", base=base, strict=strict, outputs=outputs)
    width = len(shape["categories"]) + shape["numbers"]
    inner = helper.make_graph(
        [node],
        "trees",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", outputs])],
    )
    return wrapped(inner, shape, "sum", "probability" if of_probability else "margin")


def ensemble(
    trees: Sequence[Tree],
    x: str,
    total: str,
    *,
    base: float | Sequence[float] = 0.0,
    strict: bool = False,
    outputs: int = 1,
) -> onnx.NodeProto:
    """A node: ``base`` plus what the trees add, float32 [n, outputs], of the rows ``x``, float32 [n, w]."""
    bases = [float(base)] * outputs if isinstance(base, int | float) else [float(each) for each in base]
    return helper.make_node(
        "TreeEnsembleRegressor",
        [x],
        [total],
        domain="ai.onnx.ml",
        n_targets=outputs,
        base_values=bases,
        **_attributes(trees, strict),
    )


def _attributes(trees: Sequence[Tree], strict: bool) -> dict[str, Any]:
    found: dict[str, list[Any]] = {name: [] for name in _ATTRIBUTES}
    for number, tree in enumerate(trees):
        leaf = tree.left < 0
        nodes = len(leaf)
        found["nodes_treeids"] += [number] * nodes
        found["nodes_nodeids"] += range(nodes)
        found["nodes_featureids"] += np.where(leaf, 0, tree.feature).tolist()
        found["nodes_values"] += np.where(leaf, 0, _float32(tree.threshold, strict)).tolist()
        modes = np.where(leaf, "LEAF", "BRANCH_LT" if strict else "BRANCH_LEQ")
        found["nodes_modes"] += modes.tolist()
        found["nodes_truenodeids"] += np.where(leaf, 0, tree.left).tolist()
        if tree.missing_left is not None:
            found["nodes_missing_value_tracks_true"] += np.where(leaf, 0, tree.missing_left).tolist()
        found["nodes_falsenodeids"] += np.where(leaf, 0, tree.right).tolist()
        added = tree.value[leaf].astype(np.float32)
        each = added.shape[1] if added.ndim == 2 else 1
        found["target_treeids"] += [number] * added.size
        found["target_nodeids"] += np.flatnonzero(leaf).repeat(each).tolist()
        found["target_ids"] += list(range(each)) * len(added) if each > 1 else [tree.output] * len(added)
        found["target_weights"] += added.ravel().tolist()
    return {name: values for name, values in found.items() if values}


_ATTRIBUTES = (
    "nodes_treeids",
    "nodes_nodeids",
    "nodes_featureids",
    "nodes_values",
    "nodes_modes",
    "nodes_truenodeids",
    "nodes_falsenodeids",
    "nodes_missing_value_tracks_true",
    "target_treeids",
    "target_nodeids",
    "target_ids",
    "target_weights",
)


def _float32(thresholds: np.ndarray, strict: bool) -> np.ndarray:
    """So that a float32 value is on the same side of it."""
    rounded = thresholds.astype(np.float32)
    wide = rounded.astype(np.float64)
    if strict:  # x < t: the next above
        return np.where(wide < thresholds, np.nextafter(rounded, np.float32(np.inf)), rounded)
    return np.where(wide > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)
