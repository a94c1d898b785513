"""Resources of dlt (dlthub.com): of its many ready sources, or ones that a project writes.

dlt's own pipelines are not used: it fetches, manta lands. The resource is extracted in the run's own process;
what it gives is kept compressed until tasks parse and check it.
"""

from __future__ import annotations

import copy
import hashlib
import os
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, JsonValue

from manta import secrets
from manta.connectors._function import failed
from manta.definitions.base import FunctionPath, load_function
from manta.definitions.sources import Ask, Reading, Rows, Source, driver
from manta.errors import MantaError, SourceUnreadable

PIECE_BYTES = 8 * 2**20


class Dlt(Source):
    """A resource of dlt: a function of the project, or of a package, that gives a dlt source or resource.

        def orders():
            return rest_api_source({...})

        Ingest(dataset="orders", source=Dlt(source=orders, resource="orders"), contract=...)

    Rows may be dicts, Arrow tables or data frames. Nested values come as JSON; a child table is not made of
    them. What the resource puts into dlt's state (``dlt.sources.incremental`` does) is the cursor, when
    ``new_only`` is set: kept in the commit that has the rows, in no pipeline's folder. dlt itself leaves out
    rows that it has given before with the same cursor value; one with a ``lag`` gives rows again, which takes
    mode ``upsert``.

    Attributes:
        source: called with ``arguments``; gives a dlt source or resource.
        resource: which of a source's; not needed where there is one.
        arguments: may hold references to secrets.
        new_only: keep dlt's state from reading to reading.
    """

    kind: Literal["dlt"] = "dlt"
    source: FunctionPath
    resource: str | None = None
    arguments: dict[str, JsonValue] = Field(default_factory=dict)
    new_only: bool = False

    @property
    def incremental(self) -> bool:
        return self.new_only

    def code(self) -> tuple[str, ...]:
        return (self.source,)

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        os.environ.setdefault("RUNTIME__DLTHUB_TELEMETRY", "false")
        driver("dlt", "dlt")
        from dlt.common.configuration.container import Container
        from dlt.common.json import json
        from dlt.common.pipeline import StateInjectableContext

        before: Any = json.typed_loads(ask.cursor["state"]) if self.new_only and ask.cursor else {}
        state = StateInjectableContext(state=copy.deepcopy(before))
        packer = _Packer(self.source if self.resource is None else f"{self.source} {self.resource}")
        try:
            with Container().injectable_context(state):
                for item in self._resource():
                    packer.add(item)
        except MantaError:
            raise
        except Exception as error:
            raise failed(self.source, "".join(traceback.format_exception(error)), ask.root) from error
        kept = {name: state.state[name] for name in ("sources",) if name in state.state}
        if self.new_only and not kept:
            raise SourceUnreadable(
                f"{self.source} keeps nothing in dlt's state, so that what is new cannot be told",
                hint="give its resource a dlt.sources.incremental, or leave out new_only",
            )
        cursor = {"state": json.typed_dumps(kept, sort_keys=True)} if self.new_only else None
        yield Reading(packer.done(), packer.digest.hexdigest()[:16], cursor)

    def _resource(self) -> Any:
        from dlt.extract import DltResource, DltSource

        made = load_function(self.source)(**secrets.resolve(self.arguments))
        if isinstance(made, DltResource):
            return made
        if not isinstance(made, DltSource):
            raise SourceUnreadable(
                f"{self.source} gave {type(made).__name__}, not a source or resource of dlt",
                hint="decorate it with @dlt.resource, or let it return what such a function returns",
            )
        names = list(made.selected_resources)
        if self.resource not in names and (self.resource or len(names) != 1):
            raise SourceUnreadable(
                f"{self.source} has the resources {', '.join(names)}", hint="name one in Dlt(resource=…)"
            )
        return made.with_resources(self.resource or names[0])

    def read(self, piece: Pack, ask: Ask) -> Iterator[Rows]:
        import pyarrow as pa

        from manta.connectors._arrow import rows_of
        from manta.connectors.formats import jsonl

        content = zlib.decompress(piece.content)
        if piece.arrow:
            yield from rows_of(pa.ipc.open_stream(content).read_all(), ask.columns, piece.file)
        else:
            yield jsonl.json_rows(content.split(b"\n"), ask.columns, "row")


@dataclass(frozen=True)
class Pack:
    """Some rows, compressed: JSON, a line each, or a table in Arrow's stream format."""

    file: str
    size: int
    content: bytes
    arrow: bool


class _Packer:
    """Packs what a resource gives, in its order."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self._packs: list[Pack] = []
        self._lines: list[bytes] = []
        self._size = 0

    def add(self, item: Any) -> None:
        from dlt.common.json import json

        table = _table(item)
        if table is not None:
            self._pack_lines()
            self._pack(_stream(table), arrow=True)
            return
        for row in item if isinstance(item, list) else [item]:
            self._lines.append(json.dumpb(row))
            self._size += len(self._lines[-1])
        if self._size >= PIECE_BYTES:
            self._pack_lines()

    def done(self) -> list[Pack]:
        self._pack_lines()
        return self._packs

    def _pack_lines(self) -> None:
        if self._lines:
            self._pack(b"\n".join(self._lines), arrow=False)
            self._lines, self._size = [], 0

    def _pack(self, content: bytes, *, arrow: bool) -> None:
        self.digest.update(content)
        self._packs.append(Pack(self.file, len(content), zlib.compress(content, 1), arrow))


def _table(item: Any) -> Any:
    """As an Arrow table; None when it is a row, or a list of rows."""
    import pyarrow as pa

    if isinstance(item, pa.RecordBatch):
        return pa.Table.from_batches([item])
    if isinstance(item, pa.Table):
        return item
    if type(item).__module__.partition(".")[0] == "pandas":
        return pa.Table.from_pandas(item, preserve_index=False)
    if type(item).__module__.partition(".")[0] == "polars":
        return item.to_arrow()
    return None


def _stream(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
