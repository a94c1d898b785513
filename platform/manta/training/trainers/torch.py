"""Distributed torch through Ray Train: by manta's own loop (:mod:`manta.training.torch_loop`), or by the
project's, which the training names as ``fn``.

The model is the last checkpoint that the loop reports. A loop that looks at `ray.train.get_checkpoint()` goes
on from there when an attempt was killed; one that does not starts again.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from manta.definitions import Torch, load_function
from manta.definitions.metrics import Task
from manta.errors import MantaError, ModelRefused, TrainingInvalid, Unavailable
from manta.training import tasks, whole
from manta.training.checkpoints import broken, mend
from manta.training.encoder import Arrays
from manta.training.loop import Dealt, Reports, run_loop
from manta.training.torch_loop.asked import asked
from manta.training.trainers import Job, Part
from manta.training.trainers._reports import REPORTS, followed, reports

if TYPE_CHECKING:
    import onnx
    import ray.data
    import torch

log = logging.getLogger(__name__)

CHECKPOINT_FILE = "model.pt"
WEIGHTS_FILE = "model.safetensors"
BLOCK_ROWS = 16_384
OWN_LOOP = "manta.training.torch_loop.loop:train"
# Of a worker's rows: up to this it holds them, beyond it streams them. Of the rows alone, and not of the
# machine: the two shuffle in other ways, and a training made again elsewhere must do the same.
IN_MEMORY_BYTES = 2 * 2**30
TRIES = 3  # of one attempt, when worker processes die; a loop that raises is not tried again
START_SECONDS = "90"  # for all workers to be placed, twice

# Ray Train's own settings; what the environment already says stands.
RAY_TRAIN = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": START_SECONDS,
    # How often reports are looked at: the loop waits for it, and the default of 2 s can outlast an epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}


def check(job: Job) -> None:
    """Build the module, run it on two rows, and see that the cluster can hold the workers.

    Raises:
        TrainingInvalid: one of them does not work; or manta's own loop does not take the params, or has no
            GPU for fp16.
    """
    if job.training.fn is None:
        asked(job.params)
    _checkable(job)
    resources = _resources(job)
    if _how(job).precision == "fp16" and "GPU" not in resources:
        raise TrainingInvalid(
            "precision='fp16' needs GPUs, and the cluster has not enough of them",
            hint="precision='bf16', which CPUs have too",
        )


def fit(job: Job) -> TorchModel:
    """Raises:
    TrainingInvalid: the loop raised, or reported no checkpoint of ``module(shape)``.
    Unavailable: the cluster had no room for the workers, or they kept dying.
    """
    finished = job.folder / job.run_key / "finished.json"
    if not finished.exists() or broken(_named_in(finished)):
        checkpoint = _run(job)
        whole.write(finished, json.dumps({"checkpoint": checkpoint.name}).encode())
    return _load(job, _named_in(finished))


def _named_in(finished: Path) -> Path:
    checkpoint: str = json.loads(finished.read_text())["checkpoint"]
    return finished.parent / checkpoint


def _how(job: Job) -> Torch:
    return cast(Torch, job.training.trainer)


def _run(job: Job) -> Path:
    import ray
    from ray.exceptions import RayActorError
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    for name, value in RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    if len(ray.nodes()) == 1:
        # It watches for nodes that are about to go: a process that a single machine can spare.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    training, how = job.training, _how(job)
    folder = job.folder / job.run_key
    folder.mkdir(parents=True, exist_ok=True)
    resources = _resources(job)
    trainer = TorchTrainer(
        run_loop,
        train_loop_config={
            "fn": training.fn or OWN_LOOP,
            "root": str(job.root),
            "seed": training.seed,
            "given": {"params": dict(job.params), "shape": job.shape} | _told(job),
        },
        datasets={
            "train": _dataset(job.train, how.workers, np.random.default_rng(training.seed)),
            "validation": _dataset(job.validation, how.workers, None),
        },
        dataset_config=Dealt(),
        scaling_config=ScalingConfig(
            num_workers=how.workers, use_gpu="GPU" in resources, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=job.run_key,
            storage_path=str(job.folder),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),  # type: ignore[call-arg]
            callbacks=[Reports(folder / REPORTS)],  # type: ignore[list-item]
        ),
    )
    for tries_left in reversed(range(TRIES)):
        try:
            mend(folder)
            with followed(job, folder, _epochs(job), _load_exporter):
                result = trainer.fit()
        except (TrainingFailedError, RayActorError) as error:
            died = _died(error)
            if not (died and tries_left):
                raise _named(error, job, resources) from error
            log.warning("%s died; going on from the last checkpoint", died)
            continue
        if result.checkpoint is None:
            raise TrainingInvalid(
                f"{_loop(job)} reported no checkpoint",
                hint="ray.train.report(metrics, checkpoint=…) with a folder that holds model.pt",
            )
        return Path(result.checkpoint.path)
    raise AssertionError("the last try returns or raises")


def _loop(job: Job) -> str:
    return job.training.fn or "manta's own loop"


def _told(job: Job) -> dict[str, Any]:
    """What manta's own loop is told besides params and shape."""
    training, how = job.training, _how(job)
    if training.fn is not None:
        return {}
    held = (job.train.arrays.categories, job.train.arrays.numbers, job.train.labels)
    return {
        "module": training.module,
        "task": training.task,
        "how": how,
        "seed": training.seed,
        "in_memory": sum(each.nbytes for each in held) / how.workers <= IN_MEMORY_BYTES,
        "rows": {
            "train": len(job.train.labels) // how.workers,
            "validation": len(job.validation.labels) // how.workers,
        },
        "scale": _scale(job),
    }


def _scale(job: Job) -> tuple[float, float]:
    """Mean and deviation of the training rows' labels."""
    labels = job.train.labels.astype(np.float64)
    return float(labels.mean()), float(labels.std()) or 1.0


def _epochs(job: Job) -> int | None:
    """How many reports to expect: it cannot be known of a loop without a parameter ``epochs``."""
    if job.training.fn is None:
        return asked(job.params).epochs
    epochs = job.params.get("epochs")
    return epochs if isinstance(epochs, int) and epochs > 0 else None


def _load_exporter() -> None:
    importlib.import_module("torch.onnx")
    importlib.import_module("onnxscript")
    importlib.import_module("torch._dynamo")


def _dataset(part: Part, workers: int, shuffle: np.random.Generator | None) -> ray.data.Dataset:
    """The rows as blocks, worker by worker; each gets the same number (at most workers - 1 are left out)."""
    import pyarrow as pa
    import ray.data
    from ray.data.extensions import ArrowTensorArray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Else blocks come as they are fetched, and a training made again has its rows in another order.
    context.execution_options.preserve_order = True
    rows = len(part.labels) // workers
    if not rows:
        raise TrainingInvalid(
            f"{len(part.labels)} rows cannot be shared by {workers} workers",
            hint="fewer workers, or more examples",
        )
    order = np.arange(len(part.labels)) if shuffle is None else shuffle.permutation(len(part.labels))
    blocks = []
    for share in order[: rows * workers].reshape(rows, workers).T:
        for taken in np.array_split(share, -(-rows // BLOCK_ROWS)):
            arrays = part.arrays.take(taken)
            columns = {
                "categories": ArrowTensorArray.from_numpy(arrays.categories),
                "numbers": ArrowTensorArray.from_numpy(arrays.numbers),
                "label": pa.array(part.labels[taken]),
            }
            blocks.append(pa.table(columns))
    # Not `from_arrow`, which starts a task for every block.
    dataset: ray.data.Dataset = ray.data.from_blocks(blocks)
    return dataset


def _resources(job: Job) -> dict[str, float]:
    """What each worker holds.

    Raises:
        TrainingInvalid: the cluster could not hold all of them even if it did nothing else.
    """
    import ray

    wanted = _how(job)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def fits(each: dict[str, float]) -> bool:
        return wanted.workers <= sum(
            int(min(node.get(name, 0) / amount for name, amount in each.items())) for node in nodes
        )

    on_cpu = {"CPU": wanted.cpus_per_worker}
    on_gpu = on_cpu | {"GPU": 1.0}
    if wanted.use_gpu is None:
        resources = on_gpu if fits(on_gpu) else on_cpu
    else:
        resources = on_gpu if wanted.use_gpu else on_cpu
    if not fits(resources):
        has = ", ".join(f"{sum(node.get(name, 0) for node in nodes):g} {name}" for name in resources)
        raise TrainingInvalid(
            f"{wanted.workers} workers with {_spelled(resources)} each can never run here: "
            f"{len(nodes)} nodes have {has} in all",
            hint="Torch(workers=…, cpus_per_worker=…, use_gpu=…) that fit, or a larger cluster",
        )
    return resources


def _spelled(resources: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in resources.items())


def _died(error: Exception) -> str:
    """What process is gone: workers (the others then fail too, for they lost their peer), or Ray Train's own
    controller; empty when none is."""
    from ray.exceptions import RayActorError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    if isinstance(error, RayActorError):
        return "Ray Train's controller"
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    gone = [
        str(rank)
        for rank, one in failures.items()
        if isinstance(one, WorkerHealthCheckFailedError | RayActorError)
    ]
    return f"workers {', '.join(gone)}" if gone else ""


def _named(error: Exception, job: Job, resources: dict[str, float]) -> MantaError:
    """An error of Ray Train as one of manta's."""
    import ray
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    if isinstance(getattr(error, "controller_failure", None), WorkerGroupStartupTimeoutError):
        free = {name: amount for name, amount in ray.available_resources().items() if name in resources}
        return Unavailable(
            f"no room for {_how(job).workers} workers with {_spelled(resources)} each: of the "
            f"cluster only {_spelled(free) or 'nothing'} is free",
            hint="endpoints and other runs hold the rest: stop one (`manta stop ID`), or train with less",
        )
    failures: dict[int, Exception] = getattr(error, "worker_failures", {})
    died = _died(error)
    if died:
        why = next(iter(failures.values()), error)
        return Unavailable(
            f"{died} died, the last of {TRIES} times: {why}",
            hint="out of memory? fewer workers, or smaller batches",
        )
    if failures:
        rank, first = min(failures.items())
        if isinstance(first, TrainingInvalid):
            return first
        return TrainingInvalid(
            f"{_loop(job)} failed on worker {rank}: {type(first).__name__}: {first}",
            hint="the run's log has the traceback",
        )
    return Unavailable(f"Ray Train failed: {error}", hint="the run's log has the traceback")


@dataclass
class TorchModel:
    """A trained module, on the CPU and in evaluation mode."""

    module: torch.nn.Module
    shape: dict[str, Any]
    reports: list[dict[str, Any]]
    task: Task = "binary"

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        import torch

        with torch.inference_mode():
            logits = self.module(torch.from_numpy(arrays.categories), torch.from_numpy(arrays.numbers))
        return tasks.answers(self.task, logits.numpy())

    def graph(self) -> onnx.ModelProto:
        return _export(self.module, self.shape)

    def files(self) -> dict[str, bytes]:
        return {WEIGHTS_FILE: _weights(self.module)}


def _module(job: Job) -> torch.nn.Module:
    import torch

    torch.manual_seed(job.training.seed)
    try:
        module = load_function(str(job.training.module))(job.shape)
    except Exception as error:
        raise TrainingInvalid(
            f"{job.training.module} cannot be built with shape {job.shape}: {type(error).__name__}: {error}",
            hint="module(shape) gets what manta.Training says",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise TrainingInvalid(f"{job.training.module} made a {type(module).__name__}, not a torch.nn.Module")
    return module.eval()


def _module_of(job: Job, state: Mapping[str, Any]) -> torch.nn.Module:
    """The module that such a state is of: manta's own loop puts one that predicts a number into another."""
    from manta.training.torch_loop.scaled import Scaled

    module = _module(job)
    scaled = {"mean", "deviation"} <= state.keys() and any(name.startswith("inner.") for name in state)
    return Scaled(module, 0.0, 1.0).eval() if scaled else module


def _checkable(job: Job) -> None:
    import torch

    few = job.train.arrays.take(np.arange(min(2, len(job.train.labels))))
    module = _module(job)
    try:
        with torch.inference_mode():
            logits = module(torch.from_numpy(few.categories), torch.from_numpy(few.numbers))
    except Exception as error:
        raise TrainingInvalid(
            f"{job.training.module} fails on rows of shape {job.shape}: {type(error).__name__}: {error}",
            hint="forward(categories int64 [n, C], numbers float32 [n, 2·D]) returns logits",
        ) from error
    outputs = job.shape.get("outputs", 1)
    if tuple(logits.shape) != tasks.answers_shape(len(few.categories), outputs):
        each = "one per row: squeeze(-1)" if outputs == 1 else f"of shape [n, {outputs}]: shape['outputs']"
        raise TrainingInvalid(
            f"{job.training.module} returns shape {list(logits.shape)} for {len(few.categories)} rows",
            hint=f"forward(categories, numbers) returns logits, {each}",
        )


def _load(job: Job, checkpoint: Path) -> TorchModel:
    import torch
    from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

    path = checkpoint / CHECKPOINT_FILE
    if not path.exists():
        held = ", ".join(sorted(one.name for one in checkpoint.iterdir())) or "nothing"
        raise TrainingInvalid(
            f"the last checkpoint of {_loop(job)} holds {held}, but no {CHECKPOINT_FILE}",
            hint=f'torch.save(module.state_dict(), folder / "{CHECKPOINT_FILE}") before reporting it',
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise TrainingInvalid(
            f"{CHECKPOINT_FILE} of {_loop(job)} cannot be read as a state dict: {str(error)[:500]}",
            hint=f'torch.save(module.state_dict(), folder / "{CHECKPOINT_FILE}"): tensors alone, no objects',
        ) from error
    consume_prefix_in_state_dict_if_present(state, "module.")  # saved from the distributed wrapper
    module = _module_of(job, state)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise TrainingInvalid(
            f"{CHECKPOINT_FILE} is not the state of {job.training.module}(shape): {error}",
            hint="the loop must train the same module, built with config['shape']",
        ) from error
    return TorchModel(module, job.shape, reports(checkpoint.parent), job.training.task)


def of_weights(job: Job, name: str, content: bytes) -> TorchModel:
    """The module of a training with weights that come from elsewhere, as safetensors.

    Raises:
        ModelRefused: they are not the weights of that module, built for this training's rows.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        state = load(content)
        module = _module_of(job, state)
        module.load_state_dict(state)
    except (SafetensorError, RuntimeError) as error:
        raise ModelRefused(
            f"{name} does not hold the weights of {job.training.module}(shape): {str(error)[:1000]}",
            hint=f"shape is {job.shape}: the same examples and features give the same",
        ) from error
    return TorchModel(module.eval(), job.shape, [], job.training.task)


def _weights(module: torch.nn.Module) -> bytes:
    """As safetensors: tensors alone, which are read without running anything.

    Raises:
        TrainingInvalid: the module's state holds something else.
    """
    import torch
    from safetensors.torch import save

    state = module.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise TrainingInvalid(
            f"the state of the module holds {', '.join(strange)}, which are no tensors",
            hint="keep them out of get_extra_state, or as buffers",
        )
    # Copies: weights that are tied share their memory, and safetensors has none to share.
    content: bytes = save({name: value.detach().clone().contiguous() for name, value in state.items()})
    return content


def _export(module: torch.nn.Module, shape: dict[str, Any]) -> onnx.ModelProto:
    import torch

    from manta.models.graph import OPSET

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it regrets that torchvision is not installed
    rows = torch.export.Dim("n")
    given = (
        torch.zeros((3, len(shape["categories"])), dtype=torch.int64),
        torch.zeros((3, shape["numbers"]), dtype=torch.float32),
    )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own code, and that two axes share a name
            program = torch.onnx.export(
                module.eval(),
                given,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                input_names=["categories", "numbers"],
                output_names=["logits"],
                dynamic_shapes=({0: rows}, {0: rows}),
            )
    except Exception as error:  # the exporter's own errors share no base below Exception
        raise TrainingInvalid(
            f"the module cannot be written as ONNX: {error}",
            hint="no branches on values in forward, and no fixed number of rows",
        ) from error
    assert program is not None
    proto: onnx.ModelProto = program.model_proto
    return proto
