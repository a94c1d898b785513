"""Keras in this process, and the project's model: made, asked, and refused where it cannot be trained."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from manta.definitions import load_function
from manta.definitions.sources import driver
from manta.errors import TrainingInvalid
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _epochs, _task

EXTRA = "keras"
HOME = "torch"  # the backend that packages
OF_PROBABILITIES = ("binary_crossentropy", "categorical_crossentropy", "sparse_categorical_crossentropy")
HINT = (
    'fn(config) returns a compiled keras.Model with Inputs named "categories" and "numbers", or a subclass '
    "whose call(inputs) gets a dict of both"
)


def here() -> Any:
    """Keras in the process that packages: on torch and the CPU, for GPUs are the task's."""
    return keras(HOME, {"KERAS_TORCH_DEVICE": "cpu"})


def keras(backend: str, environment: Mapping[str, str] | None = None) -> Any:
    """Keras on this backend, in this process: it can be on one only.

    Raises:
        ExtraMissing: it is not installed.
        TrainingInvalid: it has been imported on another before.
    """
    if "keras" in sys.modules:
        keras = sys.modules["keras"]
    else:
        with _environment({"KERAS_BACKEND": backend, **(environment or {})}):
            keras = driver("keras", EXTRA, "the trainer Keras")
    found: str = keras.config.backend()
    if found != backend:
        raise TrainingInvalid(
            f"Keras is already on {found} in this process, and {backend} is needed",
            hint="import keras inside of the functions that use it, not at the head of a file",
        )
    return keras


@contextmanager
def _environment(told: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in told}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def made(keras: Any, held: Job | _task.Work) -> Any:
    """The project's model with all of its variables, as the training's seed makes it.

    Raises:
        TrainingInvalid: it is no compiled model that gives logits of such rows.
    """
    path = held.training.fn or ""
    make = load_function(path)
    keras.backend.clear_session(free_memory=False)  # names of layers are counted anew: they name the weights
    keras.utils.set_random_seed(held.training.seed)
    try:
        model = make(_epochs.config(held))
    except Exception as error:
        raise TrainingInvalid(
            f"{path} cannot make a model: {type(error).__name__}: {error}", hint=HINT
        ) from error
    if not isinstance(model, keras.Model):
        raise TrainingInvalid(f"{path} made a {type(model).__name__}, not a keras.Model", hint=HINT)
    if not model.compiled or model.optimizer is None:
        raise TrainingInvalid(
            f"{path} made a model that is not compiled",
            hint="model.compile(optimizer=…, loss=…), the loss with from_logits=True",
        )
    few = held.train.arrays.take(np.arange(min(2, len(held.train.labels))))
    try:
        found = model(inputs(few))  # which makes what had not been made yet
    except Exception as error:
        raise TrainingInvalid(
            f"the model of {path} fails on rows of shape {held.shape}: {type(error).__name__}: {error}",
            hint=HINT,
        ) from error
    allowed = _epochs.shapes(len(few.categories), held.shape.get("outputs", 1))
    shape = tuple(getattr(found, "shape", ()))
    if shape not in allowed:
        raise TrainingInvalid(
            f"the model of {path} gives shape {list(shape)} for {len(few.categories)} rows, "
            f"not {' or '.join(str(list(each)) for each in allowed)}",
            hint="its last layer: Dense(config['shape'].get('outputs', 1))",
        )
    _require_float32(path, model)
    return model


def _require_float32(path: str, model: Any) -> None:
    """Raises:
    TrainingInvalid: it computes in something else.
    """
    kinds = {layer.name: str(layer.compute_dtype) for layer in (model, *model.layers)}
    strange = [f"{name} ({kind})" for name, kind in kinds.items() if "float" in kind and kind != "float32"]
    if strange:
        raise TrainingInvalid(
            f"the model of {path} computes in another type than float32: {', '.join(strange[:5])}",
            hint="a dtype policy of float32, which is the default: packages answer in it",
        )
    _epochs.require_kept({one.path: str(one.dtype) for one in model.weights}, f"the weights of {path}")


def require_logits(keras: Any, model: Any, job: Job) -> None:
    """That a sigmoid or softmax is put behind it once: by manta, and not by the model or its loss too.

    Raises:
        TrainingInvalid: it would be twice.
    """
    if job.training.task == "regression":
        return
    path, loss = job.training.fn, getattr(model, "loss", None)
    loss = keras.losses.get(loss) if isinstance(loss, str) else loss
    settings = loss.get_config() if isinstance(loss, keras.Loss) else {}
    named = getattr(loss, "__name__", "")
    if settings.get("from_logits") is False or named in OF_PROBABILITIES:
        name = type(loss).__name__ if settings else "BinaryCrossentropy"
        raise TrainingInvalid(
            f"the loss of {path}'s model takes probabilities, and the model must give logits",
            hint=f"keras.losses.{name}(from_logits=True)",
        )
    ends = _last_activation(keras, model)
    if ends in ("sigmoid", "softmax"):
        raise TrainingInvalid(
            f"the model of {path} ends with {ends}, and must give logits",
            hint="leave the last activation out: manta puts it into the package",
        )


def _last_activation(keras: Any, model: Any) -> str:
    """Of a model made of layers; empty where it cannot be told."""
    if not hasattr(model, "outputs"):
        return ""
    last = model.layers[-1]
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    return getattr(getattr(last, "activation", None), "__name__", "")


def inputs(arrays: Arrays) -> dict[str, np.ndarray]:
    return {"categories": arrays.categories, "numbers": arrays.numbers}


def logits(model: Any, arrays: Arrays) -> np.ndarray:
    """float32 [n], or [n, k]."""
    found = np.asarray(model.predict(inputs(arrays), batch_size=_epochs.MOST_ROWS, verbose=0), np.float32)
    return found[:, 0] if found.ndim == 2 and found.shape[1] == 1 else found
