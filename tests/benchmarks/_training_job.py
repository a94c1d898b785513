"""A trainer's work, without the run around it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np

from manta.definitions import Examples, TimeSplit, Training
from manta.training.encoder import Arrays
from manta.training.progress import Stage
from manta.training.trainers import Job, Part
from tests.soak.parts import REPOSITORY


class Silent(Stage):
    def reached(self, fraction: float) -> None:
        """Nobody looks."""


def job_of(
    how: Any,
    key: str,
    folder: Path,
    train: Part,
    validation: Part,
    params: Mapping[str, Any],
    *,
    sizes: Sequence[int] = (),
    **fields: Any,
) -> Job:
    """``how``: the definition's trainer; ``sizes``: of the categories' vocabularies; ``fields``: more of the
    definition."""
    training = Training(
        model="bench",
        trainer=how,
        examples=Examples(dataset="d", label="l", time="t"),
        features="f",
        split=TimeSplit(test_from=datetime(2026, 1, 1)),
        **fields,
    )
    return Job(
        run_key=key,
        folder=folder,
        root=REPOSITORY,
        training=training,
        params=params,
        shape={"categories": list(sizes), "numbers": train.arrays.numbers.shape[1]},
        train=train,
        validation=validation,
        stage=Silent(cast(Any, None), 0, 1),
    )


def numbers_only(rows: np.ndarray, labels: np.ndarray) -> Part:
    """``rows``: float32 [n, width]."""
    return Part(Arrays(np.empty((len(labels), 0), dtype=np.int64), rows), labels)
