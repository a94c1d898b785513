"""A module that predicts a number of any size, as one that is trained on numbers about 0."""

from __future__ import annotations

import torch
from torch import nn


class Scaled(nn.Module):
    """What ``inner`` answers, times ``deviation``, plus ``mean``; both are of the training rows' labels.

    A network begins with answers about 0, and would take long to get to a mean of a thousand.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, inner: nn.Module, mean: float, deviation: float) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("deviation", torch.tensor(deviation, dtype=torch.float32))

    def forward(self, categories: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
        answers: torch.Tensor = self.inner(categories, numbers).float() * self.deviation + self.mean
        return answers
