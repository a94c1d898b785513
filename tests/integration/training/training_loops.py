"""A Ray Train loop and its module, small enough for tests; parameters make it misbehave."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import ray.train
import torch


class Net(torch.nn.Module):
    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleList(torch.nn.Embedding(size, 4) for size in shape["categories"])
        width = 4 * len(shape["categories"]) + shape["numbers"]
        self.outputs = shape.get("outputs", 1)
        last = torch.nn.Linear(16, self.outputs)
        self.layers = torch.nn.Sequential(torch.nn.Linear(width, 16), torch.nn.ReLU(), last)

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        found = [table(categories[:, at]) for at, table in enumerate(self.tables)]
        logits = self.layers(torch.cat([*found, numbers], dim=1))
        return logits.squeeze(-1) if self.outputs == 1 else logits


class Wide(Net):
    """Forgets to squeeze."""

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        return super().forward(categories, numbers).unsqueeze(-1)


LOSSES = {
    "binary": torch.nn.functional.binary_cross_entropy_with_logits,
    "several": torch.nn.functional.cross_entropy,
    "number": torch.nn.functional.mse_loss,
}


def train(config: dict[str, Any]) -> None:
    params, shape = config["params"], config["shape"]
    if "token" in params:
        print("the token is", params["token"], flush=True)
    if params.get("tell"):
        raise RuntimeError(f"no log-in with {params['token']}") from ValueError(params["token"])
    model = ray.train.torch.prepare_model(Net(shape))
    optimizer = torch.optim.Adam(model.parameters(), lr=params.get("rate", 0.01))
    inner = model.module if hasattr(model, "module") else model
    first = 1
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as folder:
            inner.load_state_dict(torch.load(Path(folder) / "model.pt"))
            first = torch.load(Path(folder) / "epoch.pt") + 1
    shards = {name: ray.train.get_dataset_shard(name) for name in ("train", "validation")}
    for epoch in range(first, params["epochs"] + 1):
        rows = total = 0.0
        for batch in shards["train"].iter_torch_batches(batch_size=128):
            loss = LOSSES[params.get("loss", "binary")](
                model(batch["categories"], batch["numbers"]), batch["label"]
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rows += len(batch["label"])
            total += loss.item() * len(batch["label"])
        _misbehave(params, epoch)
        held = sum(len(batch["label"]) for batch in shards["validation"].iter_torch_batches(batch_size=512))
        _report(
            {"epoch": epoch, "loss": total / rows, "rows": rows, "validation": held, "first": first}, inner
        )


def _report(metrics: dict[str, Any], model: torch.nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            torch.save(model.state_dict(), Path(folder) / "model.pt")
            torch.save(metrics["epoch"], Path(folder) / "epoch.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


def _misbehave(params: dict[str, Any], epoch: int) -> None:
    """Dies once in the second epoch (the file ``die_once`` remembers), or raises."""
    if ray.train.get_context().get_world_rank() != 0 or epoch != 2:
        return
    if params.get("hold"):  # until the file is there
        while not Path(params["hold"]).exists():
            time.sleep(0.05)
    if params.get("raise"):
        raise ValueError("the loss is not what it was")
    mark = Path(params["die_once"]) if params.get("die_once") else None
    if mark and not mark.exists():
        ray.train.get_all_reported_checkpoints()  # returns when the first epoch's is known to the controller
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
