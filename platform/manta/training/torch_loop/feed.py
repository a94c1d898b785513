"""How a worker's rows come to its loop: held in memory, or streamed from the blocks of its share.

Held, an epoch's order is one shuffle of all the worker's rows. Streamed, some blocks at a time are mixed with
what those before have left: a block's rows are from anywhere, so that either way what is near in time is not
in a step together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, cast

import torch

from manta.training.torch_loop.asked import sizes

Rows = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""categories int64 [n, C], numbers float32 [n, N], labels [n]."""

WINDOW_ROWS = 65_536  # that are mixed at a time, when rows are streamed


class Feed(Protocol):
    """``rows``: how many there are."""

    rows: int

    def steps(self, most: int, order: torch.Generator) -> Iterator[Rows]:
        """All rows once, shuffled, in steps of :func:`~manta.training.torch_loop.asked.sizes`."""
        ...

    def all(self, most: int) -> Iterator[Rows]:
        """All rows once, in their order, at most so many at a time."""
        ...


class Held:
    """Rows that are in memory, where they are computed with."""

    def __init__(self, rows: Rows) -> None:
        self._held = rows
        self.rows = len(rows[2])

    def steps(self, most: int, order: torch.Generator) -> Iterator[Rows]:
        shuffled = torch.randperm(self.rows, generator=order).to(self._held[2].device)
        for some in shuffled.split(sizes(self.rows, most)):
            yield _taken(self._held, some)

    def all(self, most: int) -> Iterator[Rows]:
        return _parts(self._held, most)


class Streamed:
    """Rows that are read anew in each epoch.

    Args:
        blocks: reads them, in the same order each time.
        rows: how many there are in all.
        device: where they are computed with.
    """

    def __init__(self, blocks: Callable[[], Iterator[Rows]], rows: int, device: torch.device) -> None:
        self._blocks, self._device = blocks, device
        self.rows = rows

    def steps(self, most: int, order: torch.Generator) -> Iterator[Rows]:
        wanted, left = deque(sizes(self.rows, most)), list[Rows]()
        for window in self._windows():
            rows = _together([*left, *window])
            rows = _taken(rows, torch.randperm(len(rows[2]), generator=order))
            at = 0
            while wanted and at + wanted[0] <= len(rows[2]):
                size = wanted.popleft()
                yield self._there(_cut(rows, at, at + size))
                at += size
            left = [_cut(rows, at, len(rows[2]))]

    def all(self, most: int) -> Iterator[Rows]:
        for block in self._blocks():
            for some in _parts(block, most):
                yield self._there(some)

    def _windows(self) -> Iterator[list[Rows]]:
        window, count = list[Rows](), 0
        for block in self._blocks():
            window.append(block)
            count += len(block[2])
            if count >= WINDOW_ROWS:
                yield window
                window, count = [], 0
        if window:
            yield window

    def _there(self, rows: Rows) -> Rows:
        return cast(Rows, tuple(column.to(self._device) for column in rows))


def _together(several: Sequence[Rows]) -> Rows:
    return cast(Rows, tuple(torch.cat(columns) for columns in zip(*several, strict=True)))


def _taken(rows: Rows, which: torch.Tensor) -> Rows:
    categories, numbers, labels = rows
    return categories[which], numbers[which], labels[which]


def _cut(rows: Rows, start: int, end: int) -> Rows:
    categories, numbers, labels = rows
    return categories[start:end], numbers[start:end], labels[start:end]


def _parts(rows: Rows, most: int) -> Iterator[Rows]:
    return zip(*(column.split(most) for column in rows), strict=True)
