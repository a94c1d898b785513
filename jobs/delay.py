"""The model: will the flight arrive more than a quarter of an hour late? Asked at its scheduled departure."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import torch
from torch import nn

from manta import AtLeast, AtMost, BeatsChampion, Examples, Latency, Parity, TimeSplit, Torch, Training

NEW_YORK = ZoneInfo("America/New_York")


class Net(nn.Module):
    """Embeddings of the categories beside the numbers, through two hidden layers.

    ``forward(categories, numbers)`` takes int64 [n, C] and float32 [n, 2·D] and returns logits, float32 [n].
    """

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        embeddings = [nn.Embedding(size, min(16, 2 + size // 2)) for size in shape["categories"]]
        for embedding in embeddings:
            nn.init.normal_(embedding.weight, std=0.05)  # what is never seen stays near nothing
        width = sum(embedding.embedding_dim for embedding in embeddings) + shape["numbers"]
        self.embeddings = nn.ModuleList(embeddings)
        self.layers = nn.Sequential(
            nn.Linear(width, 192),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(192, 96),
            nn.SiLU(),
            nn.Dropout(0.1),
            nn.Linear(96, 1),
        )

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        # A cloudburst is twenty standard deviations of rain: enough to throw the whole sum.
        columns = [embedding(categories[:, at]) for at, embedding in enumerate(self.embeddings)]
        logits: torch.Tensor = self.layers(torch.cat([*columns, numbers.clamp(-8, 8)], dim=1))
        return logits.squeeze(1)


def train(config: dict[str, Any]) -> None:
    """The Ray Train loop, run by each worker on its share of the rows; goes on from a checkpoint.

    Parameters: ``epochs``; ``batch``, rows per step over all workers; ``learning_rate``, the highest of the
    schedule.
    """
    import ray.train
    import ray.train.torch

    params = config["params"]
    context = ray.train.get_context()
    on_gpu = torch.cuda.is_available()
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    if not on_gpu:
        torch.set_num_threads(1)  # the other cores are the other workers'
    rows = _rows("train", device)
    held_back = _rows("validation", device)
    batch = max(1, params["batch"] // context.get_world_size())
    steps = -(-len(rows[2]) // batch)

    model = ray.train.torch.prepare_model(Net(config["shape"]), move_to_device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params["learning_rate"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params["learning_rate"], total_steps=params["epochs"] * steps, pct_start=0.15
    )
    begun = _restore(model, optimizer, schedule, device)
    loss_of = nn.BCEWithLogitsLoss()
    for epoch in range(begun, params["epochs"]):
        model.train()
        total = 0.0
        for categories, numbers, labels in _batches(rows, batch):
            loss = loss_of(model(categories, numbers), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.inference_mode():
            validation = loss_of(model(*held_back[:2]), held_back[2]).item()
        trained, validated = _over_workers(total / steps, validation)
        metrics = {"epoch": epoch + 1, "train_loss": trained, "validation_loss": validated}
        _report(metrics, model, optimizer, schedule, keep=context.get_world_rank() == 0)


def _rows(shard: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The worker's whole share in memory: it is small, and shuffling it there costs nothing."""
    import ray.train

    batches = list(
        ray.train.get_dataset_shard(shard).iter_torch_batches(batch_size=65_536, device=str(device))
    )
    categories, numbers, labels = (
        torch.cat([each[name] for each in batches]) for name in ("categories", "numbers", "label")
    )
    return categories, numbers, labels


def _batches(rows: tuple[torch.Tensor, ...], size: int) -> Iterator[tuple[torch.Tensor, ...]]:
    order = torch.randperm(len(rows[0]), device=rows[0].device)
    for some in order.split(size):
        yield tuple(column[some] for column in rows)


def _over_workers(*values: float) -> list[float]:
    """Their means over the workers, which all have the same number of rows."""
    means = torch.tensor(values)
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        means = means.cuda() if torch.distributed.get_backend() == "nccl" else means
        torch.distributed.all_reduce(means)
        means /= torch.distributed.get_world_size()
    return [float(mean) for mean in means]


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model


def _report(metrics: dict[str, Any], model: nn.Module, optimizer: Any, schedule: Any, *, keep: bool) -> None:
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        if keep:
            torch.save(_bare(model).state_dict(), Path(folder) / "model.pt")
            progress = {
                "epoch": metrics["epoch"],
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
            }
            torch.save(progress, Path(folder) / "progress.pt")
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder) if keep else None)


def _restore(model: nn.Module, optimizer: Any, schedule: Any, device: torch.device) -> int:
    """How many epochs a checkpoint holds, after taking up their state."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / "model.pt", map_location=device, weights_only=True)
        progress = torch.load(Path(folder) / "progress.pt", map_location=device, weights_only=True)
    _bare(model).load_state_dict(state)
    optimizer.load_state_dict(progress["optimizer"])
    schedule.load_state_dict(progress["schedule"])
    epoch: int = progress["epoch"]
    return epoch


delay = Training(
    model="delay",
    fn=train,
    module=Net,
    trainer=Torch(workers=2),
    examples=Examples(dataset="departures", label="late", time="scheduled_departure"),
    features="delay_v1",
    split=TimeSplit(
        test_from=datetime(2013, 11, 1, tzinfo=NEW_YORK),
        validation_from=datetime(2013, 10, 18, tzinfo=NEW_YORK),
    ),
    params={"epochs": 4, "batch": 2048, "learning_rate": 5e-3},
    # What one would go by without a model: how often the route was late in the last four weeks.
    baseline="route_late_28d",
    gates=(
        AtLeast("roc_auc", 0.76),
        AtLeast("roc_auc", 0.68, by="carrier"),
        AtLeast("roc_auc", 0.72, by="month"),
        AtMost("ece", 0.03),
        BeatsChampion("roc_auc", tolerance=0.005, confidence=0.95),
        Latency(p95_ms=50),
        Parity(),
    ),
    card="""
        Will this flight from New York arrive more than a quarter of an hour late? Asked at its scheduled
        departure, with the carrier, the route and the plane; answered as a probability.

        For travellers, and for whoever has to meet them. It has learnt from ten months of 2013, and does not
        know:
        - flights that were cancelled or diverted, which are not among its examples
        - delays that became known after the scheduled departure
        - years with other schedules than 2013's
    """,
)
