"""manta's own loop on Ray Train: killed, shared, streamed, and gone on with by fewer workers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from manta.definitions import Torch
from manta.errors import TrainingInvalid
from manta.training import encoder
from manta.training.trainers import Job, Part, trainer
from manta.training.trainers import torch as torch_trainer
from manta.training.trainers.torch import TorchModel
from tests.benchmarks._training_job import job_of

pytestmark = pytest.mark.ray

STEPS = 8  # of an epoch
MODULES = "tests.integration.training.ready_modules"


def part(count: int, seed: int) -> tuple[Part, dict[str, Any]]:
    random = np.random.default_rng(seed)
    rows = pl.DataFrame(
        {"carrier": random.choice(["UA", "AA", "DL"], count), "wind": random.normal(5, 2, count)}
    )
    labels = ((rows["wind"].to_numpy() > 5) ^ (rows["carrier"] == "AA").to_numpy()).astype(np.float32)
    encoding = encoder.fit(rows)
    return Part(encoder.encode(encoding, rows), labels), encoding.shape


def asked(folder: Path, key: str, how: Torch, *, epochs: int = 4, **shape: Any) -> Job:
    train, sizes = part(2_003, 5)
    job = job_of(
        how,
        key,
        folder / "training",
        train,
        part(400, 6)[0],
        {"epochs": epochs, "batch": 256, "learning_rate": 0.02},
        module=f"{MODULES}:Waiting",
        seed=3,
    )
    return replace(job, shape={**sizes, **shape})


def fitted(job: Job) -> TorchModel:
    trainer("torch").check(job)
    model = trainer("torch").fit(job)
    assert isinstance(model, TorchModel)
    return model


def weights(model: TorchModel) -> dict[str, torch.Tensor]:
    return model.module.state_dict()


@pytest.fixture(scope="module")
def calm(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> TorchModel:
    return fitted(asked(tmp_path_factory.mktemp("calm"), "calm", Torch(workers=2, use_gpu=False)))


def dies(tmp_path: Path, rank: int) -> dict[str, Any]:
    """In the third step of the second epoch."""
    return {"die_once": str(tmp_path / "died"), "die_rank": rank, "die_at": STEPS + 3}


def test_it_learns_and_its_package_answers_as_it_does(calm: TorchModel) -> None:
    held = part(400, 6)[0]
    right = (calm.probabilities(held.arrays) >= 0.5) == (held.labels == 1)
    assert right.mean() > 0.9
    assert [report["epoch"] for report in calm.reports] == [1, 2, 3, 4]
    p = calm.probabilities(held.arrays).astype(np.float64)
    loss = -np.mean(held.labels * np.log(p) + (1 - held.labels) * np.log(1 - p))
    assert calm.reports[-1]["validation_loss"] == pytest.approx(loss, rel=1e-4)
    assert {output.name for output in calm.graph().graph.output} == {"logits"}


def test_killed_it_gives_the_same_bits(calm: TorchModel, tmp_path: Path) -> None:
    killed = fitted(asked(tmp_path, "killed", Torch(workers=2, use_gpu=False), **dies(tmp_path, 0)))
    assert (tmp_path / "died").exists()
    assert killed.reports == calm.reports, "each epoch once"
    for name, value in weights(calm).items():
        assert torch.equal(value, weights(killed)[name]), name


def test_shared_by_its_workers_it_is_the_same_and_goes_on_with_fewer(
    calm: TorchModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = Torch(workers=2, use_gpu=False, strategy="fsdp")
    shared = fitted(asked(tmp_path, "shared", how, **dies(tmp_path, 1)))
    assert (tmp_path / "died").exists()
    assert [report["epoch"] for report in shared.reports] == [1, 2, 3, 4]
    for name, value in weights(calm).items():
        assert torch.allclose(value, weights(shared)[name], atol=1e-4), name

    folder = tmp_path / "training" / "shared"
    (folder / "finished.json").unlink()
    monkeypatch.setattr(torch_trainer, "IN_MEMORY_BYTES", 0)
    fewer = fitted(asked(tmp_path, "shared", Torch(workers=1, use_gpu=False, strategy="fsdp"), epochs=6))
    assert [report["epoch"] for report in fewer.reports] == [1, 2, 3, 4, 5, 6]
    losses = [report["validation_loss"] for report in fewer.reports]
    assert max(losses[4:]) < 0.75 * losses[0], "it went on"


def test_streamed_blocks_come_in_the_same_order_each_time(
    ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_trainer, "BLOCK_ROWS", 50)
    rows = part(1_000, 5)[0]
    shares = torch_trainer._dataset(rows, 2, np.random.default_rng(3)).split(2)
    order = np.random.default_rng(3).permutation(1_000).reshape(500, 2).T
    for share, mine in zip(shares, order, strict=True):
        for _ in range(2):
            blocks = share.iterator().iter_torch_batches(batch_size=None, prefetch_batches=2)
            held = [block["numbers"] for block in blocks]
            assert len(held) == 10
            assert np.array_equal(torch.cat(held).numpy(), rows.arrays.numbers[mine])


@pytest.mark.parametrize(
    ("how", "params", "match"),
    [
        (Torch(use_gpu=False), {"lr": 0.1}, "params name lr, which manta's own loop"),
        (Torch(use_gpu=False), {"epochs": "many"}, "epochs='many'"),
        (Torch(use_gpu=False, precision="fp16"), {}, "fp16' needs GPUs"),
    ],
)
def test_what_it_cannot_do_is_said_before_anything_costly(
    ray_cluster: None, tmp_path: Path, how: Torch, params: dict[str, Any], match: str
) -> None:
    job = replace(asked(tmp_path, "refused", how), params=params)
    with pytest.raises(TrainingInvalid, match=match) as error:
        trainer("torch").check(job)
    assert error.value.hint
