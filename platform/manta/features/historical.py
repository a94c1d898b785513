"""Feature values as of the time of each row: the as-of join over a service's views, then its on-demand views.

The one way in which features are computed offline: training sets and Feast's own `get_historical_features`
both come here. What fits is joined in memory (`asof.py`), what does not from disk (`partitioned.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import polars as pl
import pyarrow as pa

from manta.errors import InvalidInput
from manta.features import asof, partitioned
from manta.features.compiled import OnDemand, View
from manta.features.on_demand import Function, compute
from manta.features.partitioned import Joined, Limits

if TYPE_CHECKING:
    import ray

Values = dict[tuple[str, str], pl.Series]


def side_of(view: View, rows: pl.LazyFrame, label: str = "") -> asof.Side:
    """The view over ``rows`` of its dataset, as the as-of join takes it; its features keep their names."""
    return asof.Side(
        label=label or f"dataset {view.dataset!r}, read by view {view.name!r},",
        frame=rows,
        keys={key.column: (key.join_key, key.type) for key in view.keys},
        time=view.time,
        created=view.created,
        ttl_seconds=view.ttl_seconds,
        features={feature.name: (feature.column, feature.type) for feature in view.features},
    )


def values_as_of(
    rows: pl.DataFrame,
    time: str,
    views: Sequence[View],
    on_demand: Sequence[tuple[OnDemand, Function]],
    scan: Callable[[View], pl.LazyFrame],
    *,
    hide_late: bool,
) -> Values:
    """The values of every view and on-demand view, by (view, feature), each in the order of ``rows``.

    Raises:
        InvalidInput: ``rows`` lack a join key, a request field or the time, or hold one of another type.
        DefinitionInvalid: a dataset does not hold what a view declares, or an on-demand function fails.
    """
    sides = [side_of(view, scan(view)) for view in views]
    joined = asof.join(rows, time, sides, hide_late=hide_late)
    return _complete(rows, views, joined, on_demand)


class Batches(Protocol):
    """Rows that come in batches, once, and may be more than memory holds."""

    @property
    def schema(self) -> pa.Schema: ...

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...


@dataclass(frozen=True)
class Retrieval:
    """Features beside rows: the rows' own columns, then the features that ``names`` renames.

    Attributes:
        sides: one for each of ``views``.
        finish: what is done to each table of the answer at last.
    """

    time: str
    views: Sequence[View]
    sides: Sequence[asof.Side]
    on_demand: Sequence[tuple[OnDemand, Function]]
    names: Mapping[tuple[str, str], str]
    hide_late: bool
    finish: Callable[[pa.Table], pa.Table] | None = None

    def table(self, rows: pa.Table | Batches, limits: Limits) -> pa.Table:
        """The whole answer, in memory.

        Raises:
            InvalidInput, DefinitionInvalid: as :func:`values_as_of`.
        """
        with self._joined(rows, limits) as (held, large):
            if large is None:
                return self._in_process(held)
            on_ray = partitioned.ray_connected()
            return pa.concat_tables(partitioned.do(_Assemble(self, large), large.spool.blocks, on_ray))

    def blocks(self, rows: pa.Table | Batches, limits: Limits) -> Iterator[pa.Table]:
        """The answer, a block at a time: one is in memory. As :meth:`table`."""
        with self._joined(rows, limits) as (held, large):
            if large is None:
                yield self._in_process(held)
                return
            for block in large.spool.blocks:
                yield _Assemble(self, large)(block)

    def on_ray(self, rows: pa.Table | Batches, limits: Limits) -> list[ray.ObjectRef]:
        """The answer as blocks in Ray's object store, made by Ray's workers: none comes to this process.
        As :meth:`table`."""
        import ray

        with self._joined(rows, limits, on_ray=True) as (held, large):
            if large is None:
                return [ray.put(self._in_process(held))]
            assemble = ray.remote(num_cpus=1)(_assemble).options(name="asof")
            work = ray.put(_Assemble(self, large))
            found = [assemble.remote(work, block) for block in large.spool.blocks]
            # Each tells how many rows it has, so that what fails does so here and not in somebody's pipeline.
            counted = ray.remote(num_cpus=0)(_height).options(name="asof")
            ray.get([counted.remote(each) for each in found])
            return found

    # --- inside -----------------------------------------------------------------------------------------

    @contextmanager
    def _joined(
        self, rows: pa.Table | Batches, limits: Limits, on_ray: bool = False
    ) -> Iterator[tuple[pa.Table, Joined | None]]:
        """The rows in memory, if they and their features may be (with ``on_ray``, only none may); or else
        joined on disk, for as long as the context lasts."""
        first, count, allowed = list[pa.RecordBatch](), 0, 0 if on_ray else self._allowed(limits)
        batches = iter(rows.to_batches() if isinstance(rows, pa.Table) else rows)
        for batch in batches:
            first.append(batch)
            count += batch.num_rows
            if count > allowed:
                break
        if count <= allowed:
            yield pa.Table.from_batches(first, rows.schema), None
            return
        with partitioned.spilled(limits) as folder:
            every = itertools.chain(first, batches)
            spool = partitioned.spool(every, rows.schema, folder, limits.partition_rows)
            workers = on_ray or partitioned.ray_connected()
            late = self.hide_late
            yield (
                rows.schema.empty_table(),
                partitioned.join(spool, self.time, self.sides, folder, hide_late=late, on_ray=workers),
            )

    def _allowed(self, limits: Limits) -> int:
        """How many rows may be joined at once. Of a few, only their own keys are read."""
        views = sum(partitioned.height_of(side.frame) for side in self.sides)
        return max(min(asof.FEW, limits.in_process_rows), limits.in_process_rows - views)

    def _in_process(self, rows: pa.Table) -> pa.Table:
        asof.require_entity(rows.column_names, self.time, self.sides)
        frame = self._asked(rows)
        return self._answer(rows, frame, asof.join(frame, self.time, self.sides, hide_late=self.hide_late))

    def _asked(self, rows: pa.Table) -> pl.DataFrame:
        """The columns that the features are computed from."""
        keys = [key for side in self.sides for key in side.keys]
        fields = [name for demand, _ in self.on_demand for name in demand.request]
        wanted = dict.fromkeys([self.time, *keys, *fields])
        return pl.DataFrame(rows.select([name for name in wanted if name in rows.column_names]))

    def _answer(self, rows: pa.Table, frame: pl.DataFrame, joined: Sequence[pl.DataFrame]) -> pa.Table:
        values = _complete(frame, self.views, joined, self.on_demand)
        for column in columns_of(values, self.names, rows.column_names):
            rows = rows.append_column(column.name, column.to_arrow())
        return self.finish(rows) if self.finish else rows


@dataclass(frozen=True)
class _Assemble:
    """One block of a large answer."""

    asked: Retrieval
    joined: Joined

    def __call__(self, block: int) -> pa.Table:
        rows, features = self.joined.assemble(block)
        return self.asked._answer(rows, self.asked._asked(rows), features)


def _height(table: pa.Table) -> int:
    return int(table.num_rows)


def _assemble(work: _Assemble, block: int) -> pa.Table:
    return work(block)


def _complete(
    rows: pl.DataFrame,
    views: Sequence[View],
    joined: Sequence[pl.DataFrame],
    on_demand: Sequence[tuple[OnDemand, Function]],
) -> Values:
    """What was joined, and the on-demand features computed from it."""
    found: Values = {
        (view.name, name): frame[name]
        for view, frame in zip(views, joined, strict=True)
        for name in frame.columns
    }
    join_keys = {key.column for view in views for key in view.keys}
    for demand, function in on_demand:
        known = {name: rows[name].to_list() for name in join_keys}
        known |= {name: request_column(rows, name, kind).to_list() for name, kind in demand.request.items()}
        inputs = {f"{view}__{name}": found[view, name].to_list() for view, name in demand.inputs}
        answer = compute(demand, function, inputs, known, rows.height)
        for name, kind in demand.features.items():
            found[demand.name, name] = pl.Series(name, answer[name], dtype=asof.dtype(kind))
    return found


def request_column(rows: pl.DataFrame, name: str, kind: str) -> pl.Series:
    """A request-time field of the rows, of the type that its source declares; times keep their microseconds.

    Raises:
        InvalidInput: the rows have no such column, or one of another type.
    """
    if name not in rows.columns:
        raise InvalidInput(
            f"the entity rows have no column {name!r}, a request-time field of the features",
            hint=f"they have: {', '.join(rows.columns)}",
        )
    expression = asof.cast(name, rows.schema[name], kind, whole_seconds=False)
    if expression is None:
        raise InvalidInput(
            f"the entity rows hold the request-time field {name!r} as {rows.schema[name]}; it is {kind}",
            hint=f"cast {name!r} to {kind}",
        )
    return rows.select(expression).to_series()


def columns_of(
    values: Values, names: Mapping[tuple[str, str], str], beside: Sequence[str]
) -> list[pl.Series]:
    """The wanted values, renamed.

    Raises:
        InvalidInput: a feature would take the name of a column that the rows have already.
    """
    taken = sorted(set(names.values()) & set(beside))
    if taken:
        raise InvalidInput(
            f"the rows already have a column {', '.join(taken)}, the name of a feature",
            hint="leave it out of the rows, or rename it",
        )
    return [values[feature].alias(name) for feature, name in names.items()]
