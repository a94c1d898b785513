"""Which digit is it? A small convolutional net on the images of jobs/digit_images.py."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

from manta import AtLeast, Examples, Parity, TimeSplit, Torch, Training

SIDE = 8


class Net(nn.Module):
    """Two layers of convolutions, and one of weights.

    ``forward(categories, numbers)`` takes int64 [n, 0] and float32 [n, 64 + 1], the pixels and the flag that
    they are missing, and returns logits, float32 [n, k], for k digits.
    """

    def __init__(self, shape: dict[str, Any]) -> None:
        super().__init__()
        self.start, self.length = shape["vectors"]["pixels"]
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.SiLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.SiLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(64 * (SIDE // 2) ** 2, shape["outputs"]),
        )

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        # A pixel that was dark in all but a few training rows is far from its mean where it is not.
        pixels = numbers[:, self.start : self.start + self.length].clamp(-2, 2)
        logits: torch.Tensor = self.layers(pixels.reshape(-1, 1, SIDE, SIDE))
        return logits

    def moved(self, numbers: torch.Tensor) -> torch.Tensor:
        """The same images, moved by a pixel or not at all: as good to learn from."""
        end = self.start + self.length
        by = torch.randint(-1, 2, (2,)).tolist()
        images = numbers[:, self.start : end].reshape(-1, SIDE, SIDE).roll(by, (1, 2))
        return torch.cat([numbers[:, : self.start], images.reshape(-1, self.length), numbers[:, end:]], dim=1)


def train(config: dict[str, Any]) -> None:
    """The Ray Train loop; goes on from a checkpoint. In bfloat16 where there is a GPU, in float32 elsewhere.

    Parameters: ``epochs``; ``batch``, rows per step; ``learning_rate``, the highest of the schedule.
    """
    import ray.train
    import ray.train.torch

    params = config["params"]
    device = ray.train.torch.get_device()
    on_gpu = device.type == "cuda"
    if not on_gpu:
        torch.set_num_threads(1)  # the other cores are the other workers'
    pixels, labels = _rows("train", device)
    held_back = _rows("validation", device)
    batch = max(1, params["batch"] // ray.train.get_context().get_world_size())
    steps = -(-len(labels) // batch)

    model = ray.train.torch.prepare_model(Net(config["shape"]), move_to_device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=params["learning_rate"], weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, params["learning_rate"], total_steps=params["epochs"] * steps
    )
    loss_of = nn.CrossEntropyLoss()
    nothing = torch.empty((0, 0), dtype=torch.int64, device=device)
    for epoch in range(_restore(model, optimizer, schedule, device), params["epochs"]):
        torch.manual_seed(epoch)  # an epoch that is done again after a kill is the same
        model.train()
        total = 0.0
        for some in torch.randperm(len(labels)).to(device).split(batch):
            with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
                logits = model(nothing, _bare(model).moved(pixels[some]))
            loss = loss_of(logits.float(), labels[some])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        model.eval()
        with torch.inference_mode():
            logits = model(nothing, held_back[0])
            validation = loss_of(logits, held_back[1]).item()
        metrics = {"epoch": epoch + 1, "train_loss": total / steps, "validation_loss": validation}
        _report(metrics, model, optimizer, schedule)


def _rows(shard: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The worker's whole share in memory: numbers and labels."""
    import ray.train

    batches = list(
        ray.train.get_dataset_shard(shard).iter_torch_batches(batch_size=65_536, device=str(device))
    )
    numbers, labels = (torch.cat([each[name] for each in batches]) for name in ("numbers", "label"))
    return numbers, labels


def _bare(model: nn.Module) -> Net:
    net = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(net, Net)
    return net


def _report(metrics: dict[str, Any], model: nn.Module, optimizer: Any, schedule: Any) -> None:
    import ray.train

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = None
        if ray.train.get_context().get_world_rank() == 0:
            torch.save(_bare(model).state_dict(), Path(folder) / "model.pt")
            progress = {"epoch": metrics["epoch"], "optimizer": optimizer.state_dict()}
            torch.save(progress | {"schedule": schedule.state_dict()}, Path(folder) / "progress.pt")
            checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(metrics, checkpoint=checkpoint)


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


digit = Training(
    model="digit",
    fn=train,
    module=Net,
    trainer=Torch(workers=1),
    task="multiclass",
    examples=Examples(dataset="digits", label="digit", time="written_at"),
    features="digits_v1",
    split=TimeSplit(test_from=datetime(1998, 7, 2, tzinfo=UTC)),
    params={"epochs": 15, "batch": 64, "learning_rate": 1e-2},
    gates=(AtLeast("accuracy", 0.92), Parity(keys=200)),
    needs=("digits_online",),
    on_apply=False,
    card="""
        Which digit does this image of 8 × 8 pixels show? Answered with a probability for each.

        It has learnt from 1,440 digits of the UCI collection, each alone and in the middle of its image, and
        is judged by the 357 that follow them there. Of anything else than a digit it says that it is one.
    """,
)
