"""What a training learns from and is judged by: the training set, encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from manta.models.encoding import Encoding
from manta.training.trainers import Part


@dataclass(frozen=True)
class Data:
    """The training set: feature columns as they are, and encoded, of each part; and the classes that labels
    are indices into, where they are."""

    encoding: Encoding
    raw: dict[str, pl.DataFrame]
    encoded: dict[str, Part]
    classes: tuple[str, ...] = ()

    @property
    def shape(self) -> dict[str, Any]:
        """What a module is built with: the encoding's, and how many logits it gives of each row."""
        return self.encoding.shape | {"outputs": len(self.classes) or 1}

    def labels(self, part: str) -> np.ndarray:
        return self.encoded[part].labels
