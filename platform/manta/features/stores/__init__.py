"""The online stores, in Feast's own layouts: one module for each kind, whose name is the kind.

A store is opened by the facts that a manifest carries of it (`Service.store`). Opening connects to nothing.
None of the modules imports Feast; what only writing needs is imported when something is written.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from manta.errors import FeaturesUnavailable
from manta.features.compiled import View

if TYPE_CHECKING:
    import polars as pl


class Held(NamedTuple):
    """What is held of one view, by column: ``keys``, those asked for under which some feature is held, each
    once and in any order; ``values``, for each of the view's features a column of one value per key, in
    Feast's bytes (none at all: held without a value; None: not held); ``events``, when those happened, in
    microseconds since 1970 UTC: one column, of a time per key, when all that is held under each key is of one
    time, and else one for each feature, None where it is not held.
    """

    keys: Sequence[bytes]
    values: Sequence[Sequence[bytes | None]]
    events: Sequence[Sequence[int | None]]

    def oldest(self) -> list[int]:
        """The oldest event time of what is held under each key."""
        return [
            min(event for event in events if event is not None) for events in zip(*self.events, strict=True)
        ]


class Rows(Protocol):
    """What is online of some views, as a reader uses it, from any number of threads."""

    def fetch(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        """What is held of each view, under the keys asked of it; no key is asked for twice.

        Raises:
            FeaturesUnavailable: the store cannot be read; the next call tries again.
        """
        ...

    async def fetch_async(self, keys: Sequence[Sequence[bytes]]) -> list[Held]:
        """As :meth:`fetch`, without keeping the event loop from other work while the store answers."""
        ...


class OnlineStore(Protocol):
    """One online store. Reading and writing are safe from several threads and processes."""

    def rows(self, views: Sequence[View]) -> Rows: ...

    def write(self, view: View, rows: pl.DataFrame, *, whole: bool = False) -> int:
        """Write rows of a view; gives how many.

        ``rows`` has at most one row a key, as `asof.newest` gives them: `__key_0` … in the order of
        ``view.keys`` (none null), `__ts` and `__created` (microseconds, the latter may be null), and a column
        for each of ``view.features``, of its type.

        A row replaces what is held under its key, unless that has a later event time; of the same event time,
        the later created stays, or the later written when either has no created time.

        With ``whole``, these are all the rows that there are: what is held under other keys goes, and what is
        held later than its row does too. For a view that is pushed to, ``whole`` says nothing.

        Raises:
            FeaturesUnavailable: the store cannot be written, or then holds another count than was written.
        """
        ...

    def prepare(self) -> None:
        """What the store needs once, after Feast has made its tables."""
        ...

    def close(self) -> None:
        """Give the connections back. The store may be used again, and connects anew."""
        ...


def kinds() -> list[str]:
    """The kinds of online store that manta reads and writes, by Feast's names."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def open_store_of(store: dict[str, Any]) -> OnlineStore:
    """The online store that a manifest describes.

    Raises:
        FeaturesUnavailable: it is of a kind that manta does not know.
    """
    kind = store["kind"]
    if kind not in kinds():
        raise FeaturesUnavailable(
            f"manta does not read an online store of kind {kind!r}", hint=f"it reads {', '.join(kinds())}"
        )
    opened: OnlineStore = importlib.import_module(f"{__name__}.{kind}").open_store(store)
    return opened
