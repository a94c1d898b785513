"""Connectors: how an ingest reads a kind of source. One file each; the module's name is the kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple, Protocol, cast

import polars as pl

from manta.errors import NotFound

ENTRY_POINTS = "manta.connectors"


class Piece(Protocol):
    """What one task reads. Pickled to it; otherwise the connector's own affair."""

    @property
    def file(self) -> str:
        """Where its rows come from, as a person would name it."""
        ...

    @property
    def size(self) -> int:
        """Bytes, for telling how far a run is."""
        ...


class Broken(NamedTuple):
    """A row that has no columns to check: a line with too many fields, or one that is not JSON."""

    row: int
    reason: str
    rule: str
    text: str


class Rows(NamedTuple):
    """Consecutive rows of a piece.

    Attributes:
        height: how many rows it stands for, the broken ones included.
        values: the columns of the others, in the source's order; the wanted ones, as far as they are found.
        broken: their ``row`` counts from 0, at the first of these rows.
        columns: the columns that the source has here; of a format whose rows need not have all, those seen.
    """

    height: int
    values: pl.DataFrame
    broken: list[Broken]
    columns: Sequence[str]


class Connector(Protocol):
    """What a module in this package offers."""

    def pieces(self, source: Any, root: Path) -> list[Piece]:
        """Split the source into pieces of some ten megabytes, in the order of its rows.

        Raises:
            SourceUnreadable: it is missing or damaged.
        """
        ...

    def read(self, source: Any, piece: Any, wanted: Sequence[str]) -> Iterator[Rows]:
        """The rows of a piece, in order, in batches that fit into memory. Runs in a Ray task.

        Texts stay texts: they are parsed by the contract. A wanted column that is not there is left out,
        unless rows of the format need not have all columns: then it is null.

        Raises:
            SourceUnreadable: the piece is damaged.
        """
        ...


def connector(kind: str) -> Connector:
    """The connector for a kind of source: a module of this package, or an entry point of another package.

    Raises:
        NotFound: there is none.
    """
    own = {module.name for module in pkgutil.iter_modules(__path__)}
    if kind in own:
        return cast(Connector, importlib.import_module(f"{__name__}.{kind}"))
    foreign = {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}
    if kind in foreign:
        return cast(Connector, foreign[kind].load())
    raise NotFound(
        f"there is no connector {kind!r}; there are {', '.join(sorted(own | set(foreign)))}",
        hint=f"a connector is one module, found by its name or by an entry point in {ENTRY_POINTS!r}",
    )
