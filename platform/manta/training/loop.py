"""What runs in Ray Train's own processes: its workers, its controller, the one that hands out the data.

Each of them imports this module, so it imports next to nothing.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.train import DataConfig, UserCallback

from manta.training.checkpoints import seal

if TYPE_CHECKING:
    import ray.data


def run_loop(config: dict[str, Any]) -> None:
    """The loop ``config["fn"]`` on one worker, seeded by its rank."""
    import numpy as np
    import ray.train
    import torch

    from manta.definitions import load_function
    from manta.output import guard_thread
    from manta.secrets import redacted, redactor, references, resolve

    # Ray puts the project on the path of jobs that it runs; a driver started elsewhere brings its own.
    if config["root"] not in sys.path and Path(config["root"]).is_dir():
        sys.path.insert(0, config["root"])
    seed = config["seed"] + ray.train.get_context().get_world_rank()
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    given = config["given"]
    if references(given["params"]):
        # Read here and not before, so that Ray and MLflow are only ever given their names.
        given = given | {"params": resolve(given["params"])}
        guard_thread()
    try:
        load_function(config["fn"])(given)
    except Exception as error:
        if redactor:
            raise redacted(error) from None  # Ray writes it down, in files of its own
        raise


class Reports(UserCallback):
    """Keeps what rank 0 reports, one line of JSON each, and seals checkpoints. Lives in the controller."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        if checkpoint is not None:
            seal(Path(checkpoint.path), metrics[0])
        with self._path.open("a") as lines:
            lines.write(json.dumps(metrics[0], default=str) + "\n")


class Dealt(DataConfig):
    """Gives each worker a share of the blocks as it stands: the first of n shares to rank 0, and so on.

    Ray's own way is a process per dataset that hands out blocks one by one while it runs, and evens out the
    rest in tasks, which would wait for ever when the workers hold all the CPUs.
    """

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *_workers: Any, **_more: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        shares = {name: dataset.split(world_size) for name, dataset in datasets.items()}
        return [
            {name: share[rank].iterator() for name, share in shares.items()} for rank in range(world_size)
        ]
