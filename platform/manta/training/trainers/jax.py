"""Pure functions of JAX, trained in one task.

The project's function gives what makes the parameters, what computes logits of them, and an optimizer; the
epochs are gone over here. After each a checkpoint is kept: parameters and the optimizer's state, in one file.
The order of the rows and the random keys are the epoch's own, so that what goes on after a kill is what would
have been.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from manta.definitions import load_function
from manta.definitions.metrics import Task
from manta.definitions.sources import driver
from manta.errors import TrainingInvalid
from manta.training import tasks
from manta.training.encoder import Arrays
from manta.training.trainers import Job, Part, _epochs, _pytrees, _task
from manta.training.trainers._epochs import Progress
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

EXTRA = "jax"
FITTED, CHECKPOINT, WEIGHTS = "fitted.safetensors", "checkpoint.safetensors", "model.safetensors"
HINT = "fn(config) returns manta.Pure(init, apply, optimizer)"


@dataclass(frozen=True)
class Pure:
    """What a function of the trainer `Jax` returns.

    Attributes:
        init: ``init(key)`` makes the parameters: dicts, lists and tuples of arrays, or any other pytree.
        apply: ``apply(params, categories, numbers)`` gives logits, [n], [n, 1] or [n, outputs], of categories
            int32 [n, C] and numbers float32 [n, 2·D]. If it takes ``key``, that is a random key in training,
            for dropout, and otherwise left out.
        optimizer: of optax, or anything with ``init(params)`` and ``update(gradients, state, params)``, which
            gives what to add to the parameters, and the next state.
        loss: ``loss(logits, labels)`` gives one float per row, [n]; of logits [n] or [n, outputs]. None takes
            cross-entropy, of a regression the square of the difference.
    """

    init: Callable[..., Any]
    apply: Callable[..., Any]
    optimizer: Any
    loss: Callable[..., Any] | None = None


def check(job: Job) -> None:
    """Make the parameters, and go through a step of training without computing it.

    Raises:
        ExtraMissing: JAX, or its exporter, is not installed.
        TrainingInvalid: the functions do not fit together, or a parameter makes no sense.
    """
    _here()
    driver("jax2onnx", EXTRA, "the trainer Jax")
    _epochs.asked(job.params)
    import jax

    network = _made(job)
    params, state = network.begun()
    try:
        jax.eval_shape(network.step, params, state, network.key(0, 0), *_batch(job.train, np.arange(2)))
    except Exception as error:
        raise TrainingInvalid(
            f"a step of training with {job.training.fn} fails: {type(error).__name__}: {error}",
            hint="the optimizer is optax's, or has its init and update; the loss is of logits and labels",
        ) from error


def fit(job: Job) -> JaxModel:
    """Raises:
    TrainingInvalid: the functions cannot be trained with.
    Unavailable: the process died every time.
    """
    _here()
    following = replace(job, meanwhile=lambda: _load_exporter(job))
    here = _epochs.environment(job.training)
    content = _task.run(following, FITTED, train, _epochs.asked(job.params).epochs, here)
    held, _ = _epochs.unpacked(content)
    network = _made(job)
    params = _pytrees.filled(network.begun()[0], held["params"], "parameters")
    return JaxModel(network, params, held["params"], reports(job.folder / job.run_key))


def train(work: _task.Work) -> bytes:
    """In the task."""
    network, wanted = _made(work), _epochs.asked(work.params)
    params, state = network.begun()
    best, progress = params, Progress()
    if (kept := work.kept(CHECKPOINT)) is not None:
        groups, progress = _epochs.unpacked(kept)
        params = _pytrees.filled(params, groups["params"], "parameters")
        state = _pytrees.filled(state, groups.get("state", {}), "optimizer's state")
        best = _pytrees.filled(params, groups["best"], "parameters") if "best" in groups else params
    work.reported(progress.epoch)
    step, losses = network.compiled()
    while not progress.over(wanted):
        order = _epochs.order(work.training.seed, progress.epoch, len(work.train.labels))
        total = 0.0
        for at, rows in enumerate(np.split(order, range(wanted.batch, len(order), wanted.batch))):
            key = network.key(progress.epoch, at)
            params, state, loss = step(params, state, key, *_batch(work.train, rows))
            total += loss * len(rows)  # an array: nothing waits for it here
        validation = _mean(losses, params, work.validation)
        progress = progress.after(validation)
        best = params if progress.gained else best
        groups = {"params": _pytrees.named(params), "state": _pytrees.named(state)}
        if wanted.patience is not None:
            groups["best"] = _pytrees.named(best)
        figures = {"train_loss": float(total) / len(order), "validation_loss": validation}
        work.report({"epoch": progress.epoch, **figures})
        work.keep(CHECKPOINT, _epochs.packed(groups, progress))
    found = params if wanted.patience is None else best
    return _epochs.packed({"params": _pytrees.named(found)}, progress)


def _mean(losses: Callable[..., Any], params: Any, part: Part) -> float:
    """Over all rows of a part."""
    rows = np.arange(len(part.labels))
    parts = np.split(rows, range(_epochs.MOST_ROWS, len(rows), _epochs.MOST_ROWS))
    return float(sum(float(losses(params, *_batch(part, each)).sum()) for each in parts) / len(rows))


def _batch(part: Part, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """JAX has integers of 32 bits, unless it is told otherwise."""
    labels = part.labels[rows]
    return (
        part.arrays.categories[rows].astype(np.int32),
        part.arrays.numbers[rows],
        labels.astype(np.int32) if labels.dtype.kind == "i" else labels,
    )


def _here() -> None:
    """JAX in the process that packages: on the CPU, for GPUs are the task's.

    Raises:
        ExtraMissing: it is not installed.
    """
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    driver("jax", EXTRA, "the trainer Jax")


def _load_exporter(job: Job) -> None:
    import jax2onnx

    # It looks for all that it can write when it first writes something, for seconds.
    jax2onnx.to_onnx(lambda rows: rows + 1, [("n", 1)])
    job.meanwhile()


@dataclass(frozen=True)
class Network:
    """The project's functions, for one training. ``path`` names what gave them."""

    path: str
    pure: Pure
    shape: Mapping[str, Any]
    task: Task
    seed: int

    @property
    def outputs(self) -> int:
        found: int = self.shape.get("outputs", 1)
        return found

    def key(self, epoch: int, step: int) -> Any:
        import jax

        return jax.random.fold_in(jax.random.fold_in(jax.random.key(self.seed), epoch + 1), step)

    def begun(self) -> tuple[Any, Any]:
        """Parameters, and the optimizer's state, before the first step; arrays all of them.

        Raises:
            TrainingInvalid: they cannot be made, or hold what is no array.
        """
        import jax

        try:
            params = self.pure.init(jax.random.key(self.seed))
        except Exception as error:
            raise TrainingInvalid(
                f"init of {self.path} fails: {type(error).__name__}: {error}",
                hint="init(key) makes the parameters; key is a jax.random.key",
            ) from error
        params = _pytrees.arrays(params, f"the parameters of {self.path}")
        try:
            state = self.pure.optimizer.init(params)
        except Exception as error:
            raise TrainingInvalid(
                f"the optimizer of {self.path} cannot begin: {type(error).__name__}: {error}",
                hint="an optimizer of optax, or what has its init and update",
            ) from error
        return params, _pytrees.arrays(state, f"the optimizer's state of {self.path}")

    def logits(self, params: Any, categories: Any, numbers: Any, key: Any = None) -> Any:
        """[n], or [n, outputs]."""
        given = {"key": key} if key is not None and self.takes_key else {}
        found = self.pure.apply(params, categories, numbers, **given)
        return found.reshape(-1) if self.outputs == 1 else found

    @property
    def takes_key(self) -> bool:
        try:
            return "key" in inspect.signature(self.pure.apply).parameters
        except (TypeError, ValueError):
            return False

    def losses(self, params: Any, categories: Any, numbers: Any, labels: Any, key: Any = None) -> Any:
        """[n]."""
        import jax
        import jax.numpy as jnp

        logits = self.logits(params, categories, numbers, key)
        if self.pure.loss is not None:
            found = self.pure.loss(logits, labels)
            if found.shape != labels.shape:
                raise ValueError(f"the loss has shape {list(found.shape)}, not one number for each row")
            return found
        if self.task == "regression":
            return (logits - labels) ** 2
        if self.outputs > 1:
            chances = jax.nn.log_softmax(logits)
            return -jnp.take_along_axis(chances, labels[:, None], axis=1)[:, 0]
        return jnp.logaddexp(0, logits) - logits * labels

    def step(
        self, params: Any, state: Any, key: Any, categories: Any, numbers: Any, labels: Any
    ) -> tuple[Any, Any, Any]:
        """Parameters, state and the mean loss, one step later."""
        import jax

        def loss(params: Any) -> Any:
            return self.losses(params, categories, numbers, labels, key).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        updates, state = self.pure.optimizer.update(gradients, state, params)
        params = jax.tree.map(lambda held, more: (held + more).astype(held.dtype), params, updates)
        return params, state, value

    def compiled(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """``step`` and ``losses``."""
        import jax

        return jax.jit(self.step), jax.jit(self.losses)


def _made(held: Job | _task.Work) -> Network:
    """Raises:
    TrainingInvalid: the project's function does not give functions that make logits of such rows.
    """
    import jax

    path = held.training.fn or ""
    make = load_function(path)
    try:
        pure = make(_epochs.config(held))
    except Exception as error:
        raise TrainingInvalid(f"{path} fails: {type(error).__name__}: {error}", hint=HINT) from error
    if not isinstance(pure, Pure):
        raise TrainingInvalid(f"{path} returned a {type(pure).__name__}", hint=HINT)
    network = Network(path, pure, held.shape, held.training.task, held.training.seed)
    rows = 2
    few = _batch(held.train, np.arange(rows))[:2]
    params, _ = network.begun()
    try:
        found = tuple(jax.eval_shape(pure.apply, params, *few).shape)
    except Exception as error:
        raise TrainingInvalid(
            f"apply of {path} fails on rows of shape {dict(held.shape)}: {type(error).__name__}: {error}",
            hint="apply(params, categories int32 [n, C], numbers float32 [n, 2·D]) returns logits",
        ) from error
    allowed = _epochs.shapes(rows, network.outputs)
    if found not in allowed:
        raise TrainingInvalid(
            f"apply of {path} gives shape {list(found)} for {rows} rows, "
            f"not {' or '.join(str(list(each)) for each in allowed)}",
            hint="logits: one per row, or as many as config['shape'] says that there are outputs",
        )
    return network


@dataclass
class JaxModel:
    """Trained functions, on the CPU. ``weights``: the parameters by their names."""

    network: Network
    params: Any
    weights: Mapping[str, np.ndarray]
    reports: list[dict[str, Any]]

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        import jax

        answer, rows = jax.jit(self.network.logits), np.arange(len(arrays.numbers))
        parts = np.split(rows, range(_epochs.MOST_ROWS, len(rows), _epochs.MOST_ROWS))
        logits = np.concatenate(
            [
                np.asarray(
                    answer(self.params, arrays.categories[each].astype(np.int32), arrays.numbers[each])
                )
                for each in parts
            ]
        )
        return tasks.answers(self.network.task, logits)

    def graph(self) -> onnx.ModelProto:
        return _export(self.network, self.params)

    def files(self) -> dict[str, bytes]:
        return {WEIGHTS: _epochs.written(self.weights)}


def _export(network: Network, params: Any) -> onnx.ModelProto:
    """Raises:
    TrainingInvalid: the functions compute with what cannot be written as ONNX.
    """
    import jax
    import jax2onnx

    from manta.models.graph import OPSET

    width, numbers = len(network.shape["categories"]), network.shape["numbers"]

    def logits(categories: Any, numbers: Any) -> Any:
        return network.logits(params, categories, numbers)

    given = [
        jax.ShapeDtypeStruct(("n", width), np.int32),
        jax.ShapeDtypeStruct(("n", numbers), np.float32),
    ]
    try:
        made: onnx.ModelProto = jax2onnx.to_onnx(
            logits, given, opset=OPSET, input_names=["categories", "numbers"], output_names=["logits"]
        )
    except Exception as error:  # its errors share no base below Exception
        raise TrainingInvalid(
            f"apply of {network.path} cannot be written as ONNX: {type(error).__name__}: {error}",
            hint="operations that jax2onnx knows, and no fixed number of rows",
        ) from error
    return _of_int64(made)


def _of_int64(model: onnx.ModelProto) -> onnx.ModelProto:
    """That takes categories as all other graphs do."""
    from onnx import TensorProto, helper

    for node in model.graph.node:
        node.input[:] = ["categories/int32" if name == "categories" else name for name in node.input]
    (categories,) = [each for each in model.graph.input if each.name == "categories"]
    categories.type.tensor_type.elem_type = TensorProto.INT64
    cast = helper.make_node("Cast", ["categories"], ["categories/int32"], to=TensorProto.INT32)
    model.graph.node.insert(0, cast)
    return model
