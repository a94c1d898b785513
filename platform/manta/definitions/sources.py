"""Sources: where an ingest reads. What a connector has to offer is said here; the connectors themselves are
in :mod:`manta.connectors`, one file each."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Protocol

from pydantic import BeforeValidator, SerializeAsAny, ValidationError

from manta import words
from manta.definitions.base import Frozen
from manta.errors import ExtraMissing

if TYPE_CHECKING:
    import polars
    import pyarrow

ENTRY_POINTS = "manta.connectors"
CONNECTORS = "manta.connectors"


class Piece(Protocol):
    """What one task reads. Pickled to it; otherwise the connector's own affair."""

    @property
    def file(self) -> str:
        """Where its rows come from, as a person would name it: a file, a table, a topic's partition."""
        ...

    @property
    def size(self) -> int:
        """Bytes, at least about, for telling how far a run is."""
        ...


class Broken(NamedTuple):
    """A row that has no columns to check: a line with too many fields, or a message that is not JSON."""

    row: int
    reason: str
    rule: str
    text: str


class Rows(NamedTuple):
    """Consecutive rows of a piece, in Arrow's memory (a Polars frame holds nothing else).

    Attributes:
        height: how many rows it stands for, the broken ones included.
        values: the columns of the others, in the source's order; the wanted ones, as far as they are found.
        broken: their ``row`` counts from 0, at the first of these rows.
        columns: the columns that the source has here; of a format whose rows need not have all, those seen.
        numbers: how the source itself numbers all ``height`` rows (Kafka's offsets); None when a row's number
            is its place in the file, counted from 1.
        texts: of a source of texts that gave ``values`` in the contract's types: the same rows as texts, by
            which those that are refused are told.
    """

    height: int
    values: polars.DataFrame
    broken: list[Broken]
    columns: Sequence[str]
    numbers: Sequence[int] | None = None
    texts: Callable[[], polars.DataFrame] | None = None


def _one_by_one(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterable[tuple[int, Any]]:
    return ((index, function(item)) for index, item in enumerate(items))


class Table(NamedTuple):
    """A version of a dataset that a source reads: Parquet files, and the columns they have together."""

    version: str
    files: tuple[str, ...]
    schema: pyarrow.Schema
    size: int


@dataclass(frozen=True)
class Ask:
    """What an ingest wants of a source.

    Attributes:
        root: the project's folder; relative paths are relative to it.
        columns: the columns of the contract.
        types: their types, as the contract calls them. A source of texts may give a column in its type where
            the values are those that the contract would make of the texts; see ``Rows.texts``.
        cursor: what the last committed reading left (see :class:`Reading`); None for the first, and for a
            source that reads all of it each time.
        each: does the same to many things, in parallel where there is a cluster (in a task: one by one), and
            gives ``(index, result)`` as they are ready.
        tables: what the source's :meth:`Source.datasets` hold, in the versions that the run reads.
    """

    root: Path
    columns: tuple[str, ...] = ()
    cursor: Any = None
    each: Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[tuple[int, Any]]] = field(
        default=_one_by_one, compare=False
    )
    tables: Mapping[str, Table] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """One reading of a source: what there is to read, all of one moment where the source can give that.

    Attributes:
        pieces: in the order of the rows, some ten megabytes each. Empty, of an incremental source: there is
            nothing new, and the run makes no version.
        token: names the state of the source that is read; for lineage, and to see that it has changed.
        cursor: where the next reading begins, as JSON; committed with the rows. None: it reads all again.
        verify: called when all is read, before the commit; raises SourceUnreadable if what was read is not
            of one state.
    """

    pieces: Sequence[Any]
    token: str
    cursor: Any = None
    verify: Callable[[], None] = lambda: None


class Source(Frozen):
    """Where an ingest reads, and how. A connector is one module with one subclass of this; the module's name,
    or that of its entry point in ``manta.connectors``, is its ``kind``.

        class Numbers(Source):
            kind: Literal["numbers"] = "numbers"
            to: int

            @contextmanager
            def opened(self, ask: Ask) -> Iterator[Reading]:
                yield Reading([Range(0, self.to)], token=str(self.to))

            def read(self, piece: Range, ask: Ask) -> Iterator[Rows]:
                ...

    Definitions are parsed by processes that read nothing: importing the module must be cheap, so drivers (and
    Polars) are imported in the methods; a driver that is an extra by :func:`driver`. Fields may hold
    references to secrets (``${env:NAME}``), resolved by :mod:`manta.secrets` where they are used, in the
    methods. Errors are SourceUnreadable with a hint, and repeat no secret.
    """

    kind: str

    @property
    def incremental(self) -> bool:
        """Whether a reading begins where the last committed one ended."""
        return False

    @property
    def overlaps(self) -> bool:
        """Whether an incremental reading may give rows again that an earlier one has given."""
        return False

    def datasets(self) -> tuple[str, ...]:
        """The datasets of the project that it reads; if it reads any, a run depends on them alone."""
        return ()

    def code(self) -> tuple[str, ...]:
        """The :data:`~manta.definitions.base.FunctionPath` of the project's functions that it calls."""
        return ()

    def observe(self, root: Path) -> str | None:
        """A token that changes when the source does, found in milliseconds and without asking another
        machine; None when there is none such, so that only a person or a trigger knows when to read again.

        Raises:
            SourceUnreadable: it is missing.
        """
        return None

    def opened(self, ask: Ask) -> AbstractContextManager[Reading]:
        """Look at the source and split it into pieces. Left when all pieces have been read, also after an
        error: until then a connector may hold a snapshot open.

        Raises:
            SourceUnreadable: it is missing, damaged, or cannot be reached; or it no longer has what the
                cursor points to.
        """
        raise NotImplementedError

    def read(self, piece: Any, ask: Ask) -> Iterator[Rows]:
        """The rows of a piece, in order, in batches that fit into memory. Runs in a Ray task, maybe twice.

        Texts stay texts: they are parsed by the contract. A wanted column that is not there is left out,
        unless rows of the source need not have all columns: then it is null.

        Raises:
            SourceUnreadable: the piece is damaged, or cannot be reached.
        """
        raise NotImplementedError


def connectors() -> dict[str, Callable[[], Any]]:
    """How to load each connector there is, by its kind: manta's own, and those of installed packages."""
    return {entry.name: entry.load for entry in entry_points(group=ENTRY_POINTS)} | _own()


def _own() -> dict[str, Callable[[], Any]]:
    package = importlib.import_module(CONNECTORS)
    return {
        module.name: partial(importlib.import_module, f"{CONNECTORS}.{module.name}")
        for module in pkgutil.iter_modules(package.__path__)
        if not module.ispkg and not module.name.startswith("_")
    }


def source_type(kind: str) -> type[Source]:
    """The class of a kind of source.

    Raises:
        ValueError: there is no such connector, or its module has no source of this kind.
    """
    # First manta's own: to look through what all installed packages offer takes milliseconds each time.
    load = _own().get(kind) or connectors().get(kind)
    if load is None:
        raise ValueError(
            f"there is no connector {kind!r}; there are {', '.join(sorted(connectors()))} "
            f"(one is a module, found by its name or by an entry point in {ENTRY_POINTS!r})"
        )
    loaded = load()
    if isinstance(loaded, type):
        return loaded
    for each in vars(loaded).values():
        if isinstance(each, type) and issubclass(each, Source) and each is not Source:
            default = each.model_fields["kind"].default
            if default == kind:
                return each
    raise ValueError(f"the connector {kind!r} ({loaded.__name__}) has no Source whose kind is {kind!r}")


def _parsed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    fields = dict(value)
    found = source_type(str(fields.get("kind")))
    try:
        return found(**fields)
    except ValidationError as error:
        raise ValueError(f"{found.__name__}: {words.faults(error.errors())}") from None


AnySource = Annotated[SerializeAsAny[Source], BeforeValidator(_parsed)]
"""A source of any kind; in JSON with its ``kind``, by which it is found again."""


def driver(module: str, extra: str, what: str = "reading this source") -> ModuleType:
    """Import a library that ``what`` needs and that not everybody has installed.

    Raises:
        ExtraMissing: it is not installed; names the extra that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraMissing(
            f"{what} needs {module.partition('.')[0]}, which is not installed ({error})",
            hint=f"pip install 'manta-ml[{extra}]'",
        ) from error
