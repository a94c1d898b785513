"""A Ray Train loop for the soak.

What an epoch does depends on the seed and the epoch alone, so that a training that went on from checkpoints
ends as if nothing had happened; a checkpoint says what it holds, so that a torn one is told from a whole one;
and each step is written down, with the process that made it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(shape["numbers"], 256), nn.ReLU(), nn.Linear(256, 1))

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.layers(numbers).squeeze(1)
        return logits


def train(config: dict[str, Any]) -> None:
    """Parameters: ``epochs``, a checkpoint after each; ``seed``; ``batch``, rows a step; ``pause``, seconds a
    step; ``steps``, the file to which steps are written."""
    import ray.train.torch

    params, context = config["params"], ray.train.get_context()
    torch.set_num_threads(1)
    torch.manual_seed(params["seed"])
    model = ray.train.torch.prepare_model(Net(config["shape"]))
    bare = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    begun = _restore(bare, optimizer)
    numbers, labels = _rows("train")
    held_numbers, held_labels = _rows("validation")
    nothing = torch.empty((0,), dtype=torch.int64)
    loss_of = nn.BCEWithLogitsLoss()
    each = -(-len(labels) // params["batch"])
    for epoch in range(begun, params["epochs"]):
        order = torch.Generator().manual_seed(1000 * params["seed"] + epoch)
        for step, some in enumerate(torch.randperm(len(labels), generator=order).split(params["batch"])):
            if context.get_world_rank() == 0:
                _note(params["steps"], epoch * each + step)
            loss = loss_of(model(nothing, numbers[some]), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            time.sleep(params["pause"])
        with torch.inference_mode():
            validation = loss_of(bare(nothing, held_numbers), held_labels).item()
        _report({"epoch": epoch + 1, "steps": each, "validation_loss": validation}, bare, optimizer)


def _rows(shard: str) -> tuple[torch.Tensor, torch.Tensor]:
    batches = list(ray.train.get_dataset_shard(shard).iter_torch_batches(batch_size=65_536))
    return tuple(torch.cat([each[name] for each in batches]) for name in ("numbers", "label"))  # type: ignore[return-value]


def _note(path: str, step: int) -> None:
    with Path(path).open("a") as lines:
        lines.write(f"{os.getpid()} {step} {time.time()}\n")


def _report(metrics: dict[str, Any], model: nn.Module, optimizer: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            held = io.BytesIO()
            torch.save({"epoch": metrics["epoch"], "optimizer": optimizer.state_dict()}, held)
            whole = held.getvalue() + (Path(folder) / "model.pt").read_bytes()
            (Path(folder) / "rest.pt").write_bytes(held.getvalue())
            (Path(folder) / "sum").write_text(hashlib.sha256(whole).hexdigest())
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)
    if checkpoint is not None:
        # Until the controller has it, a kill would lose this epoch and the steps after it.
        ray.train.get_all_reported_checkpoints()


def _restore(model: nn.Module, optimizer: Any) -> int:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as name:
        folder = Path(name)
        whole = (folder / "rest.pt").read_bytes() + (folder / "model.pt").read_bytes()
        if hashlib.sha256(whole).hexdigest() != (folder / "sum").read_text():
            raise RuntimeError(f"TORN: {checkpoint}")
        model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
        rest = torch.load(folder / "rest.pt", weights_only=True)
    optimizer.load_state_dict(rest["optimizer"])
    epoch: int = rest["epoch"]
    return epoch
