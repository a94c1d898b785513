"""Any Ray Dataset that a function of the project makes: its rows never pass through the driver."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from manta.connectors._function import failed
from manta.definitions.base import FunctionPath, digest, load_function
from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import MantaError, SourceUnreadable, Unavailable


class FromRay(Source):
    """A Ray Dataset, with the rows in its own order.

        def clicks() -> ray.data.Dataset:
            return ray.data.read_mongo(...).map(...)

        Ingest(dataset="clicks", source=FromRay(fn=clicks), contract=...)

    It is executed by Ray once for each reading. Its token is that of its code's result in outline (how many
    rows, which columns), for Ray keeps no versions: when a run is due is a matter of its triggers.

    Attributes:
        fn: makes the Dataset, without arguments. It runs in the run's own process; what it maps, in tasks.
    """

    kind: Literal["from_ray"] = "from_ray"
    fn: FunctionPath

    def code(self) -> tuple[str, ...]:
        return (self.fn,)

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        from ray.exceptions import RayError

        blocks: list[Block] = []
        columns: set[str] = set()
        try:
            for bundle in self._dataset().iter_internal_ref_bundles():
                columns.update(bundle.schema.names if bundle.schema is not None else ())
                blocks += _blocks(self.fn, bundle)
        except MantaError:
            raise
        except RayError as error:
            raise failed(self.fn, str(error), ask.root) from error
        except Exception as error:
            raise failed(self.fn, "".join(traceback.format_exception(error)), ask.root) from error
        yield Reading(blocks, digest([sum(block.rows for block in blocks), sorted(columns)]))

    def read(self, piece: Block, ask: Ask) -> Iterator[Rows]:
        import pyarrow as pa
        import ray
        from ray.exceptions import RayError

        from manta.connectors._arrow import rows_of

        try:
            block = ray.get(piece.ref)
        except RayError as error:
            raise Unavailable(
                f"a block that {self.fn} made is lost: {error}",
                hint="the machine that held it is gone, or its memory was full: run the ingest again",
            ) from error
        table = block if isinstance(block, pa.Table) else pa.Table.from_pandas(block, preserve_index=False)
        yield from rows_of(table.slice(piece.start, piece.rows), ask.columns, self.fn)

    def _dataset(self) -> Any:
        from ray.data import DataContext, Dataset

        DataContext.get_current().enable_progress_bars = False
        found = load_function(self.fn)()
        if not isinstance(found, Dataset):
            raise SourceUnreadable(
                f"{self.fn} gave {type(found).__name__}, not a ray.data.Dataset",
                hint="return the Dataset itself, not what one of its methods made of it",
            )
        # Without it, a block comes as soon as it is done.
        found.context.execution_options.preserve_order = True
        found.context.print_on_execution_start = False
        return found


class Block:
    """Rows ``start`` to ``start + rows`` of a block in Ray's memory, which its owner, the run's process,
    keeps for as long as it holds this."""

    def __init__(self, file: str, size: int, rows: int, start: int, ref: Any) -> None:
        self.file, self.size, self.rows, self.start, self.ref = file, size, rows, start, ref

    def __reduce__(self) -> tuple[Any, ...]:
        from ray import cloudpickle

        # Only Ray's own pickling says who owns the object, without which no other process can find it.
        return _unpickled, (self.file, self.size, self.rows, self.start, cloudpickle.dumps(self.ref))


def _unpickled(file: str, size: int, rows: int, start: int, ref: bytes) -> Block:
    from ray import cloudpickle

    return Block(file, size, rows, start, cloudpickle.loads(ref))


def _blocks(file: str, bundle: Any) -> Iterator[Block]:
    for ref, about, part in zip(bundle.block_refs, bundle.metadata, bundle.slices, strict=True):
        start = part.start_offset if part else 0
        rows = (part.end_offset if part else about.num_rows) - start
        if rows:
            yield Block(file, about.size_bytes or 0, rows, start, ref)
