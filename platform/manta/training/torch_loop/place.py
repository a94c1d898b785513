"""A worker of Ray Train, as the loop sees it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch

from manta.definitions import Torch
from manta.errors import TrainingInvalid
from manta.training.torch_loop.feed import Rows

AHEAD_BLOCKS = 2  # fetched while others are trained on


class RayPlace:
    """Raises:
    TrainingInvalid: fp16 without a GPU.
    """

    def __init__(self, how: Torch) -> None:
        self.rank: int = ray.train.get_context().get_world_rank()
        # Ray hands out what it is told to; a machine may have GPUs by name only.
        on_gpu = torch.cuda.is_available()
        self.device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
        if not on_gpu:
            torch.set_num_threads(max(1, int(how.cpus_per_worker)))  # the other cores are the other workers'
        if how.precision == "fp16" and not on_gpu:
            raise TrainingInvalid(
                "precision='fp16' needs GPUs, and this worker has none",
                hint="precision='bf16', which CPUs have too; or Torch(use_gpu=True) in a pool with GPUs",
            )

    def blocks(self, part: str) -> Iterator[Rows]:
        shard = ray.train.get_dataset_shard(part)
        for block in shard.iter_torch_batches(batch_size=None, device="cpu", prefetch_batches=AHEAD_BLOCKS):
            yield block["categories"], block["numbers"], block["label"]

    @contextmanager
    def checkpoint(self) -> Iterator[Path | None]:
        found = ray.train.get_checkpoint()
        if found is None:
            yield None
            return
        with found.as_directory() as folder:
            yield Path(folder)

    def report(self, metrics: dict[str, Any], write: Callable[[Path], None], wait: bool) -> None:
        if self.rank:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        if wait:
            ray.train.get_all_reported_checkpoints()
