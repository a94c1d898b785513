"""Modules for manta's own loop; what ``shape`` says besides makes them misbehave."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from torch.nn import functional

from tests.integration.training.training_loops import Net


class Fragile(Net):
    """Draws at random while it trains; the worker ``die_rank`` dies, once, in its step ``die_at``."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__(shape)
        self._shape, self._steps = shape, 0

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        if self.training and "die_at" in self._shape:
            self._steps += 1
            mark = Path(self._shape["die_once"])
            mine = ray.train.get_context().get_world_rank() == self._shape["die_rank"]
            if mine and self._steps == self._shape["die_at"] and not mark.exists():
                ray.train.get_all_reported_checkpoints()  # returns when what was reported counts
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(categories, functional.dropout(numbers, 0.2, self.training))


class Waiting(Fragile):
    """Says on which node each of its processes is; waits in step ``wait_at`` for the file ``go``."""

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        if self.training and "wait_at" in self._shape:
            self._steps += 1
            node = ray.get_runtime_context().get_node_id()
            Path(f"{self._shape['nodes']}-{os.getpid()}").write_text(node)
            while self._steps == self._shape["wait_at"] and not Path(self._shape["go"]).exists():
                time.sleep(0.05)
        return super().forward(categories, numbers)
