"""One training loop, three ways to feed it: what tests/benchmarks/training.py measures."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Net(nn.Module):
    """As the reference project's: embeddings beside the numbers, two hidden layers."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(size, 8) for size in shape["categories"])
        width = 8 * len(shape["categories"]) + shape["numbers"]
        self.layers = nn.Sequential(
            nn.Linear(width, 192), nn.SiLU(), nn.Linear(192, 96), nn.SiLU(), nn.Linear(96, 1)
        )

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        columns = [embedding(categories[:, at]) for at, embedding in enumerate(self.embeddings)]
        logits: torch.Tensor = self.layers(torch.cat([*columns, numbers], dim=1))
        return logits.squeeze(1)


class Timed(Net):
    """Adds to the file ``shape["times"]`` when each step of an epoch began, all of an epoch in one line."""

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__(shape)
        self._path, self._steps = Path(shape["times"]), shape["steps"]
        self._times: list[float] = []

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        if self.training:
            self._times.append(time.perf_counter())
            if len(self._times) == self._steps:
                with self._path.open("a") as lines:
                    lines.write(f"{self._times[0]} {self._times[-1]}\n")
                self._times = []
        return super().forward(categories, numbers)


def fit(
    model: nn.Module, batches: Callable[[int], Iterator[Rows]], epochs: int, done: Callable[[int], None]
) -> float:
    """Train; gives rows per second of all epochs but the first. ``done`` is called after each epoch, and is
    not counted."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss_of = nn.BCEWithLogitsLoss()
    rows, seconds = 0, 0.0
    for epoch in range(epochs):
        began, seen = time.perf_counter(), 0
        for categories, numbers, labels in batches(epoch):
            loss = loss_of(model(categories, numbers), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(labels)
        if epoch:
            rows, seconds = rows + seen, seconds + time.perf_counter() - began
        done(epoch)
    return rows / seconds


def shuffled(rows: Rows, batch: int) -> Callable[[int], Iterator[Rows]]:
    """All in memory, another order in each epoch."""

    def batches(epoch: int) -> Iterator[Rows]:
        order = torch.randperm(len(rows[2]), generator=torch.Generator().manual_seed(epoch))
        for some in order.split(batch):
            yield rows[0][some], rows[1][some], rows[2][some]

    return batches


def bare(categories: np.ndarray, numbers: np.ndarray, labels: np.ndarray, params: dict[str, Any]) -> float:
    """torch alone, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = torch.from_numpy(categories), torch.from_numpy(numbers), torch.from_numpy(labels)
    model = Net(params["shape"])
    return fit(model, shuffled(rows, params["batch"]), params["epochs"], lambda epoch: None)


def train(config: dict[str, Any]) -> None:
    """The Ray Train loop; ``feed`` says whether the worker's share is held in ``memory`` or ``streamed``."""
    import ray.train
    import ray.train.torch

    torch.set_num_threads(1)
    params = config["params"]
    model = ray.train.torch.prepare_model(Net(config["shape"]))
    shard = ray.train.get_dataset_shard("train")
    names = ("categories", "numbers", "label")
    speed: list[float] = []

    def streamed(epoch: int) -> Iterator[Rows]:
        for each in shard.iter_torch_batches(batch_size=params["batch"], prefetch_batches=2):
            yield each["categories"], each["numbers"], each["label"]

    batches = streamed
    if params["feed"] == "memory":
        parts = list(shard.iter_torch_batches(batch_size=65_536))
        held: Any = tuple(torch.cat([each[name] for each in parts]) for name in names)
        batches = shuffled(held, params["batch"])

    def done(epoch: int) -> None:
        if epoch + 1 < params["epochs"]:
            ray.train.report({"epoch": epoch})

    speed.append(fit(model, batches, params["epochs"], done))
    with tempfile.TemporaryDirectory() as folder:
        inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        torch.save(inner.state_dict(), Path(folder) / "model.pt")
        ray.train.report(
            {"epoch": params["epochs"], "rows_per_second": speed[0]},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
        )


def marked(config: dict[str, Any]) -> None:
    """Says when its first step is done, and ends."""
    import ray.train

    model = Net(config["shape"])
    batch = next(iter(ray.train.get_dataset_shard("train").iter_torch_batches(batch_size=1024)))
    model(batch["categories"], batch["numbers"]).sum().backward()
    if ray.train.get_context().get_world_rank() == 0:
        Path(config["params"]["mark"]).write_text(str(time.time()))
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "model.pt")
        ray.train.report({"epoch": 1}, checkpoint=ray.train.Checkpoint.from_directory(folder))
