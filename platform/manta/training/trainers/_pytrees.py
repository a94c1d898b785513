"""Pytrees of JAX as arrays with names, and back: what is kept of parameters and of an optimizer's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from manta.errors import TrainingInvalid
from manta.training.trainers import _epochs


def arrays(tree: Any, what: str) -> Any:
    """All leaves as arrays.

    Raises:
        TrainingInvalid: one is none, or of a type that cannot be kept.
    """
    import jax
    import jax.numpy as jnp

    def array(path: Any, leaf: Any) -> Any:
        try:
            return jnp.asarray(leaf)
        except TypeError as error:
            raise TrainingInvalid(
                f"{what} hold {_name(path)}, a {type(leaf).__name__}, which is no array",
                hint="keep functions and settings out of them (equinox: eqx.partition(model, eqx.is_array))",
            ) from error

    found = jax.tree_util.tree_map_with_path(array, tree)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    _epochs.require_kept({_name(path): str(leaf.dtype) for path, leaf in leaves}, what)
    return found


def _name(path: Any) -> str:
    import jax

    found: str = jax.tree_util.keystr(path, simple=True, separator="/")
    return found or "params"


def _names(tree: Any) -> list[str]:
    import jax

    return _epochs.unique([_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)])


def named(tree: Any) -> dict[str, np.ndarray]:
    import jax

    leaves = jax.tree.leaves(tree)
    return {name: np.asarray(leaf) for name, leaf in zip(_names(tree), leaves, strict=True)}


def filled(tree: Any, held: Mapping[str, np.ndarray], what: str) -> Any:
    """The tree with other leaves.

    Raises:
        TrainingInvalid: it has others: the project's function gives another one each time.
    """
    import jax
    import jax.numpy as jnp

    leaves, form = jax.tree.flatten(tree)
    shapes = {name: leaf.shape for name, leaf in zip(_names(tree), leaves, strict=True)}
    if shapes != {name: value.shape for name, value in held.items()}:
        differ = sorted(set(shapes.items()) ^ {(name, value.shape) for name, value in held.items()})
        raise TrainingInvalid(
            f"the {what} are made in another shape than before: {differ[:4]}",
            hint="fn(config) must give the same functions whenever it is called with the same config",
        )
    return jax.tree.unflatten(form, [jnp.asarray(held[name]) for name in shapes])
