"""A model of Keras 3, fitted in one task on the backend that the definition names.

The project's function builds and compiles it; the epochs are gone over here. After each a checkpoint is kept:
weights, optimizer and the layers' random numbers, in one file. The order of the rows is the epoch's own, so
that what goes on after a kill is what would have been.

Weights are the same on every backend. They are packaged, and asked for what the framework answers, on torch,
which is always installed; the task's own answers to the validation rows are held against that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from math import isfinite
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from manta.definitions import Keras
from manta.errors import ExtraMissing, TrainingInvalid
from manta.training import tasks
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _epochs, _keras, _task
from manta.training.trainers._epochs import Asked, Progress
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

FITTED, CHECKPOINT, WEIGHTS = "fitted.safetensors", "checkpoint.safetensors", "model.safetensors"
COMPARED_ROWS = 10_000
TOLERANCE = 1e-4  # between backends, of the larger of 1 and the logit


def check(job: Job) -> None:
    """Build the model, and run it on two rows.

    Raises:
        ExtraMissing: Keras, or the library of its backend, is not installed.
        TrainingInvalid: the function makes no such model, or a parameter makes no sense.
    """
    backend = _how(job.training).backend
    keras = _keras.here()
    if find_spec(backend) is None:
        raise ExtraMissing(
            f'Keras(backend="{backend}") needs {backend}, which is not installed',
            hint=f"pip install {backend}",
        )
    _epochs.asked(job.params)
    _keras.require_logits(keras, _keras.made(keras, job), job)


def fit(job: Job) -> KerasModel:
    """Raises:
    TrainingInvalid: the model cannot be fitted, or answers otherwise where it is packaged.
    Unavailable: the process died every time.
    """
    backend = _how(job.training).backend
    here = _epochs.environment(job.training) | {"KERAS_BACKEND": backend}
    if not _how(job.training).gpus:
        here["KERAS_TORCH_DEVICE"] = "cpu"
    following = replace(job, meanwhile=lambda: _load_exporter(job))
    content = _task.run(following, FITTED, train, _epochs.asked(job.params).epochs, here)
    held, _ = _epochs.unpacked(content)
    model = _keras.made(_keras.here(), job)
    _assign(model.weights, held["weights"])
    found = KerasModel(model, job, reports(job.folder / job.run_key))
    _require_same(found, held["answers"]["logits"])
    return found


def train(work: _task.Work) -> bytes:
    """In the task."""
    backend, wanted = _how(work.training).backend, _epochs.asked(work.params)
    keras = _keras.keras(backend)
    if backend == "torch":
        import torch

        torch.set_num_threads(work.threads)
    model = _keras.made(keras, work)
    if not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    progress, best = Progress(), dict[str, np.ndarray]()
    if (kept := work.kept(CHECKPOINT)) is not None:
        groups, progress = _epochs.unpacked(kept)
        _assign(model.variables, groups["model"])
        _assign(model.optimizer.variables, groups["optimizer"])
        best = groups.get("best", {})
    work.reported(progress.epoch)
    if progress.over(wanted):
        # As after the last epoch: where the optimizer averages the weights, the averages are the model.
        model.optimizer.finalize_variable_values(model.trainable_weights)
    else:
        best = _fit(keras, model, work, wanted, progress, best)
    if wanted.patience is not None:
        _assign(model.weights, best)
    few = work.validation.arrays.take(np.arange(min(COMPARED_ROWS, len(work.validation.labels))))
    with _exactly(backend):
        answers = _keras.logits(model, few)
    return _epochs.packed({"weights": _named(model.weights), "answers": {"logits": answers}}, progress)


def _fit(
    keras: Any,
    model: Any,
    work: _task.Work,
    wanted: Asked,
    progress: Progress,
    best: dict[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Go on from ``progress`` to the end; gives the weights of the best epoch, if it may end early."""
    seed, labels = work.training.seed, work.train.labels

    class Rows(keras.utils.PyDataset):  # type: ignore[misc, name-defined]
        """The training rows, in the order of one epoch."""

        def take(self, epoch: int) -> None:
            self.order = _epochs.order(seed, epoch, len(labels))

        def __len__(self) -> int:
            return -(-len(labels) // wanted.batch)

        def __getitem__(self, at: int) -> Any:
            rows = self.order[at * wanted.batch : (at + 1) * wanted.batch]
            return _keras.inputs(work.train.arrays.take(rows)), labels[rows]

    class Epochs(keras.callbacks.Callback):  # type: ignore[misc, name-defined]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            rows.take(epoch)
            # What is random and keeps no count of its own begins anew in each epoch.
            keras.utils.set_random_seed(int(np.random.default_rng([seed, epoch]).integers(2**31)))

        def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
            nonlocal progress, best
            progress = progress.after(float((logs or {})["val_loss"]))
            groups = {"model": _named(model.variables), "optimizer": _named(model.optimizer.variables)}
            if wanted.patience is not None:
                best = _named(model.weights) if progress.gained else best
                groups["best"] = best
            work.report({"epoch": progress.epoch, **_figures(logs or {})})
            work.keep(CHECKPOINT, _epochs.packed(groups, progress))
            model.stop_training = progress.over(wanted)

    rows = Rows()
    rows.take(progress.epoch)
    model.fit(
        rows,
        validation_data=(_keras.inputs(work.validation.arrays), work.validation.labels),
        validation_batch_size=_epochs.MOST_ROWS,
        epochs=wanted.epochs,
        initial_epoch=progress.epoch,
        callbacks=[Epochs()],
        shuffle=False,
        verbose=0,
    )
    return best


def _figures(logs: Mapping[str, Any]) -> dict[str, float]:
    """Under the names that other trainers give them. A metric may be no number: of one class, say."""
    found = {}
    for name, value in logs.items():
        part, of = ("validation", name.removeprefix("val_")) if name.startswith("val_") else ("train", name)
        if isfinite(value):
            found[f"{part}_{of}"] = float(value)
    return found


def _how(training: Any) -> Keras:
    return cast(Keras, training.trainer)


@contextmanager
def _exactly(backend: str) -> Iterator[None]:
    """In float32 on GPUs too, which else round what they multiply to fewer digits."""
    if backend == "jax":
        import jax

        with jax.default_matmul_precision("highest"):
            yield
        return
    if backend == "tensorflow":
        import tensorflow

        tensorflow.config.experimental.enable_tensor_float_32_execution(False)
    yield


def _named(variables: Sequence[Any]) -> dict[str, np.ndarray]:
    """Copies of their values, by their paths."""
    import keras

    names = _epochs.unique([each.path for each in variables])
    return {
        name: np.array(keras.ops.convert_to_numpy(each)) for name, each in zip(names, variables, strict=True)
    }


def _assign(variables: Sequence[Any], held: Mapping[str, np.ndarray]) -> None:
    """Raises:
    TrainingInvalid: these are other variables: the function makes another model each time.
    """
    names = _epochs.unique([each.path for each in variables])
    shapes = {name: tuple(each.shape) for name, each in zip(names, variables, strict=True)}
    if shapes != {name: value.shape for name, value in held.items()}:
        differ = sorted(set(shapes.items()) ^ {(name, value.shape) for name, value in held.items()})
        raise TrainingInvalid(
            f"the model is made with other weights than before: {differ[:4]}",
            hint="fn(config) must make the same model whenever it is called with the same config",
        )
    for name, each in zip(names, variables, strict=True):
        each.assign(held[name])


def _require_same(model: KerasModel, theirs: np.ndarray) -> None:
    """Raises:
    TrainingInvalid: what the task answered is not what is answered here.
    """
    job = model.job
    ours = _keras.logits(model.model, job.validation.arrays.take(np.arange(len(theirs))))
    apart = float(np.max(np.abs(ours - theirs) / np.maximum(1, np.abs(theirs)), initial=0))
    if not apart <= TOLERANCE:  # not-a-number is not within it
        raise TrainingInvalid(
            f"the model of {job.training.fn} answers otherwise on {_keras.HOME}, which packages it, than on "
            f"{_how(job.training).backend}, which trained it: logits differ by {apart:.2g}; "
            f"{TOLERANCE:g} is allowed",
            hint="layers of one's own compute with keras.ops, and the same whenever they are asked",
        )


def _load_exporter(job: Job) -> None:
    import importlib

    for name in ("torch.onnx", "onnxscript", "torch._dynamo"):
        importlib.import_module(name)
    job.meanwhile()


@dataclass
class KerasModel:
    """A fitted model, on torch and the CPU. ``job``: what it was fitted for."""

    model: Any
    job: Job
    reports: list[dict[str, Any]]

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        return tasks.answers(self.job.training.task, _keras.logits(self.model, arrays))

    def graph(self) -> onnx.ModelProto:
        import torch

        from manta.training.trainers.torch import _export

        outputs = self.job.shape.get("outputs", 1)

        class Flat(torch.nn.Module):
            def __init__(self, model: Any) -> None:
                super().__init__()
                self.model = model

            def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
                logits: torch.Tensor = self.model({"categories": categories, "numbers": numbers})
                return logits.reshape(-1) if outputs == 1 else logits

        return _export(Flat(self.model), self.job.shape)

    def files(self) -> dict[str, bytes]:
        return {WEIGHTS: _epochs.written(_named(self.model.weights))}
