"""What trainers share that go over the rows epoch by epoch in one task: their parameters, the order of the
rows, when it is over, and the checkpoint that is kept after each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import Any, NamedTuple

import numpy as np

from manta.definitions import Training
from manta.errors import TrainingInvalid
from manta.training.trainers import Job, _task

EPOCHS, BATCH = 10, 1024
MOST_ROWS = 8_192  # of which answers are computed at a time
# What safetensors writes and NumPy reads.
KEPT = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32", "bool")

Arrays = Mapping[str, np.ndarray]


class Asked(NamedTuple):
    """``batch``: rows per step; ``patience``: epochs without a gain after which it is over; None for all."""

    epochs: int
    batch: int
    patience: int | None


def asked(params: Mapping[str, Any]) -> Asked:
    """Raises:
    TrainingInvalid: one of them is no number of what it counts.
    """
    found = Asked(params.get("epochs", EPOCHS), params.get("batch", BATCH), params.get("patience"))
    for name, of in (("epochs", "epochs"), ("batch", "rows"), ("patience", "epochs")):
        value = getattr(found, name)
        if name == "patience" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise TrainingInvalid(
                f"{name} is {value!r}, not a number of {of}",
                hint=f"a whole number, 1 or more: {name}=10, say",
            )
    return found


def config(held: Job | _task.Work) -> dict[str, Any]:
    """What the project's function gets: ``params``, ``shape`` and ``steps``, of all epochs."""
    wanted = asked(held.params)
    return {
        "params": dict(held.params),
        "shape": held.shape,
        "steps": wanted.epochs * -(-len(held.train.labels) // wanted.batch),
    }


def order(seed: int, epoch: int, rows: int) -> np.ndarray:
    """In which an epoch takes the rows: its own, and the same whenever it is done again."""
    return np.random.default_rng([seed, epoch]).permutation(rows)


@dataclass(frozen=True)
class Progress:
    """``epoch`` epochs are done; of these the one numbered ``best``, from 1 on, had the least loss."""

    epoch: int = 0
    best: int = 0
    loss: float = inf

    def after(self, loss: float) -> Progress:
        """One epoch later, with the loss of its validation rows.

        Raises:
            TrainingInvalid: that is no finite number.
        """
        epoch = self.epoch + 1
        if not isfinite(loss):
            raise TrainingInvalid(
                f"the validation loss after epoch {epoch} is {loss}",
                hint="a smaller learning rate? a loss that takes logits? features within bounds?",
            )
        return Progress(epoch, epoch, loss) if loss < self.loss else Progress(epoch, self.best, self.loss)

    @property
    def gained(self) -> bool:
        """Whether the last epoch is the best."""
        return self.epoch == self.best

    def over(self, wanted: Asked) -> bool:
        waited = self.epoch - self.best
        return self.epoch >= wanted.epochs or (wanted.patience is not None and waited >= wanted.patience)


def packed(groups: Mapping[str, Arrays], progress: Progress) -> bytes:
    """Groups of named arrays and how far it is, in one file: safetensors, which is read without running
    anything."""
    held = {f"{group}:{name}": value for group, named in groups.items() for name, value in named.items()}
    done = np.array([progress.epoch, progress.best, progress.loss], np.float64)
    return written({**held, "progress": done})


def unpacked(content: bytes) -> tuple[dict[str, dict[str, np.ndarray]], Progress]:
    from safetensors.numpy import load

    groups: dict[str, dict[str, np.ndarray]] = {}
    held = load(content)
    epoch, best, loss = held.pop("progress").tolist()
    for key, value in held.items():
        group, _, name = key.partition(":")
        groups.setdefault(group, {})[name] = value
    return groups, Progress(int(epoch), int(best), loss)


def written(named: Arrays) -> bytes:
    from safetensors.numpy import save

    # It writes memory as it lies, whatever the array's strides say.
    content: bytes = save({name: np.asarray(value, order="C") for name, value in named.items()})
    return content


def require_kept(kinds: Mapping[str, str], what: str) -> None:
    """``kinds``: the type of each array by its name.

    Raises:
        TrainingInvalid: one of them cannot be kept.
    """
    strange = [f"{name} ({kind})" for name, kind in kinds.items() if kind not in KEPT]
    if strange:
        raise TrainingInvalid(
            f"{what} cannot be kept: {', '.join(strange[:5])}",
            hint="arrays of float32 or of integers; what computes in bfloat16 can cast them where it does",
        )


def unique(names: Sequence[str]) -> list[str]:
    """In order; what is there a second time gets its number."""
    seen: dict[str, int] = {}
    found = []
    for name in names:
        seen[name] = seen.get(name, 0) + 1
        found.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return found


def shapes(rows: int, outputs: int) -> list[tuple[int, ...]]:
    """That logits may have."""
    return [(rows,), (rows, 1)] if outputs == 1 else [(rows, outputs)]


def environment(training: Training) -> dict[str, str]:
    """What XLA looks at: its threads, and whether there are GPUs for it."""
    gpus = _task.gpus_of(training)
    told = {"NPROC": str(max(1, int(_task.cpus_of(training)))), "JAX_PLATFORMS": "" if gpus else "cpu"}
    if 0 < gpus < 1:
        told["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # it takes three quarters of the memory at once
    return told
