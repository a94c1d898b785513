"""The as-of join, in Polars: each entity row gets the values that were valid at its own time.

For one entity row and one view, of the view's rows
  - with the same join keys (a null key equals nothing),
  - with an event time ≤ the row's time, and ≥ it minus the TTL when there is one,
  - and, with ``hide_late``, with a created time ≤ the row's time (a null one is never known),
the one with the greatest (event time, created time with null first, position in the dataset) is taken.
No such row: every feature of the view is null. Every entity row is kept, once, in its place.

Times are compared as microseconds since 1970 UTC; a naive time is UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import polars as pl

from manta.errors import DefinitionInvalid, InvalidInput
from manta.features.asof_search import CREATED as CREATED
from manta.features.asof_search import TS as TS
from manta.features.asof_search import Asked
from manta.features.wire import item_type

ALWAYS = 0  # the event time of a row that is known from always: 1970
FEW = 100_000  # entity rows, of which only the own keys of a view are read
Bounds = tuple[int | None, int | None]
"""The first and last time of the entity rows."""


@dataclass(frozen=True)
class Side:
    """What one view brings to the join.

    ``frame`` has the columns named here and may have others. ``keys`` maps each join column of the entity
    rows to (column of the frame, type); ``features`` maps each column of the result to the same.
    ``label`` names the view in errors.
    """

    label: str
    frame: pl.LazyFrame
    keys: Mapping[str, tuple[str, str]]
    time: str | None
    created: str | None
    ttl_seconds: float
    features: Mapping[str, tuple[str, str]]

    @property
    def join_columns(self) -> tuple[tuple[str, str], ...]:
        """The join columns of the entity rows, and as what types they are read."""
        return tuple((column, kind) for column, (_, kind) in self.keys.items())


def join(
    entity: pl.DataFrame, time: str, sides: Sequence[Side], *, hide_late: bool = False
) -> list[pl.DataFrame]:
    """The features of each side, one row per entity row, in the entity rows' order.

    All in memory; `partitioned.py` does the same to what does not fit.

    Raises:
        InvalidInput: the entity rows lack a column, or hold one of another type.
        DefinitionInvalid: a frame does.
    """
    require_entity(entity.columns, time, sides)
    at = instants(entity, time)
    bounds: Bounds = (at.min(), at.max())  # type: ignore[assignment]
    alike = {side.join_columns: side for side in sides}
    asked = {columns: Asked(entity_keys(entity, side), at) for columns, side in alike.items()}

    def features(side: Side) -> pl.DataFrame:
        rows = _rows_for(entity, side, bounds, hide_late)
        return taken(asked[side.join_columns], side, rows, hide_late)

    # Much of it is work for one core.
    with ThreadPoolExecutor(pl.thread_pool_size()) as pool:
        return list(pool.map(features, sides))


def newest(side: Side, until: int | None = None) -> pl.DataFrame:
    """The newest row of each key, the one that :func:`join` would take: columns `__key_0` … (none of them
    null), :data:`TS` and :data:`CREATED` (microseconds), and the features. Rows later than ``until`` are left
    out."""
    inside = pl.lit(True) if until is None else pl.col(TS) <= until
    by = [TS, CREATED] if side.created else [TS]
    rows = _typed_rows(side, inside).sort(by, nulls_last=False, maintain_order=True)
    ranked = collect(side, rows)
    keys = key_names(side)
    return ranked.unique(subset=keys, keep="last", maintain_order=True) if keys else ranked.tail(1)


def key_names(side: Side) -> list[str]:
    return [f"__key_{i}" for i in range(len(side.keys))]


def dtype(kind: str) -> pl.DataType:
    """The Polars type that holds a type of `wire.py`."""
    item = item_type(kind)
    return _POLARS[kind] if item is None else pl.List(_POLARS[item])


def cast(name: str, held: pl.DataType, kind: str, *, whole_seconds: bool = True) -> pl.Expr | None:
    """How a column is read as a type of `wire.py`; None when it cannot be without losing something.

    NaN becomes null, as Feast keeps no NaN; instants become whole seconds, as Feast keeps them. In a list of
    floats null becomes NaN, for Feast's lists hold no nulls.
    """
    column = pl.col(name)
    if held == pl.Null:
        return column.cast(dtype(kind))
    item = item_type(kind)
    if item is not None:
        inner = held.inner if isinstance(held, pl.List | pl.Array) else None
        fits = inner is not None and cast("", _type(inner), item) is not None
        if not fits:
            return None
        column = column.cast(dtype(kind))
        whole = not item.startswith("float")
        return column if whole else column.list.eval(pl.element().fill_null(float("nan")))
    if not _FITS[kind](held):
        return None
    if kind == "timestamp":
        instant = utc(name, held)
        return instant.dt.truncate("1s") if whole_seconds else instant
    column = column.cast(dtype(kind))
    return column.fill_nan(None) if kind.startswith("float") else column


def utc(name: str, held: pl.DataType) -> pl.Expr:
    """A time column as microseconds in UTC; a naive one is UTC already."""
    zone = held.time_zone if isinstance(held, pl.Datetime) else None
    if zone is None:
        return pl.col(name).cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return pl.col(name).cast(pl.Datetime("us", zone)).dt.convert_time_zone("UTC")


def require_columns(has: Sequence[str], wanted: Sequence[str], label: str) -> None:
    """Raises:
    DefinitionInvalid: something that the features read is not there.
    """
    missing = sorted(set(wanted) - set(has))
    if missing:
        raise DefinitionInvalid(
            f"{label} has no column {', '.join(missing)}, which the features read",
            hint=f"it has: {', '.join(has)}",
        )


def require_entity(columns: Sequence[str], time: str, sides: Sequence[Side]) -> None:
    """Raises:
    InvalidInput: the entity rows lack the time or a join key.
    """
    missing = sorted({time, *(column for side in sides for column in side.keys)} - set(columns))
    if missing:
        raise InvalidInput(
            f"the entity rows have no column {', '.join(missing)}",
            hint=f"they have: {', '.join(columns)}",
        )


# --- the join in its parts ----------------------------------------------------------------------------------


def instants(entity: pl.DataFrame, time: str) -> pl.Series:
    """When each entity row is, in microseconds; a row without a time is null.

    Raises:
        InvalidInput: the column holds no times.
    """
    return entity.select(at=_instants(entity.schema[time], time, "the entity rows"))["at"]


def entity_keys(entity: pl.DataFrame, side: Side) -> pl.DataFrame:
    """The join keys of the entity rows, as `__key_0` …, typed as the side has them.

    Raises:
        InvalidInput: one is of another type.
    """
    return entity.select(_entity_keys(entity, side))


def typed(side: Side, bounds: Bounds, hide_late: bool = False) -> pl.LazyFrame:
    """The rows of the side that can matter for entity rows between ``bounds``, in its order: `__key_0` …,
    :data:`TS` and :data:`CREATED`, and the features. Rows without a key or a time are left out, and with
    ``hide_late`` those not known by then.

    Raises:
        DefinitionInvalid: the frame lacks a column, or holds one of another type.
    """
    return _typed_rows(side, _inside(bounds, side.ttl_seconds, hide_late and side.created is not None))


def taken(asked: Asked, side: Side, rows: pl.DataFrame, hide_late: bool) -> pl.DataFrame:
    """The features that each entity row gets of :func:`typed` rows, in the entity rows' order. Fast where the
    rows are of one chunk."""
    ttl, created = _micros(side.ttl_seconds), side.created is not None
    found = asked.rows_of(rows, ttl, created=created, hide_late=hide_late)
    return rows.select(side.features.keys())[found]


def collect(side: Side, rows: pl.LazyFrame, streaming: bool = False) -> pl.DataFrame:
    """Raises:
    DefinitionInvalid: a value does not fit its declared type.
    """
    try:
        return rows.collect(engine="streaming" if streaming else "auto")
    except pl.exceptions.InvalidOperationError as error:
        raise DefinitionInvalid(f"{side.label}: a value does not fit its declared type: {error}") from error


_POLARS: dict[str, pl.DataType] = {
    "string": pl.String(),
    "bytes": pl.Binary(),
    "bool": pl.Boolean(),
    "int32": pl.Int32(),
    "int64": pl.Int64(),
    "float32": pl.Float32(),
    "float64": pl.Float64(),
    "timestamp": pl.Datetime("us", "UTC"),
}
_FITS: dict[str, Callable[[pl.DataType], bool]] = {
    "string": lambda held: isinstance(held, pl.String | pl.Categorical | pl.Enum),
    "bytes": lambda held: held == pl.Binary,
    "bool": lambda held: held == pl.Boolean,
    "int32": lambda held: held.is_integer(),
    "int64": lambda held: held.is_integer(),
    "float32": lambda held: held.is_numeric(),
    "float64": lambda held: held.is_numeric(),
    "timestamp": lambda held: isinstance(held, pl.Date | pl.Datetime),
}


# --- inside -------------------------------------------------------------------------------------------------


def _rows_for(entity: pl.DataFrame, side: Side, bounds: Bounds, hide_late: bool) -> pl.DataFrame:
    """:func:`typed`, collected. Of few entity rows, only their own keys are read: they may be asked of a view
    far larger than memory."""
    rows = typed(side, bounds, hide_late)
    if side.keys and entity.height <= FEW:
        keys = entity_keys(entity, side).unique().lazy()
        rows = rows.join(keys, on=key_names(side), how="semi", maintain_order="left")
        return collect(side, rows, streaming=True).rechunk()
    return collect(side, rows).rechunk()


def _inside(bounds: Bounds, ttl_seconds: float, known: bool) -> pl.Expr:
    """What of a view can matter for entity rows between those times."""
    first, last = bounds
    if first is None or last is None:
        return pl.lit(False)
    inside = pl.col(TS) <= last
    if ttl_seconds:
        inside &= pl.col(TS) >= first - _micros(ttl_seconds)
    return inside & (pl.col(CREATED) <= last) if known else inside


def _typed_rows(side: Side, inside: pl.Expr) -> pl.LazyFrame:
    held = side.frame.collect_schema()
    wanted = [column for column, _ in (*side.keys.values(), *side.features.values())]
    require_columns(held.names(), [*wanted, *filter(None, (side.time, side.created))], side.label)
    columns = [
        _typed(held, column, kind, side.label).alias(name)
        for name, (column, kind) in zip(key_names(side), side.keys.values(), strict=True)
    ]
    for name, column in ((TS, side.time), (CREATED, side.created)):
        nothing = pl.lit(ALWAYS if name == TS else None, dtype=pl.Int64)
        columns.append((_instants(held[column], column, side.label) if column else nothing).alias(name))
    columns += [
        _typed(held, column, kind, side.label).alias(name) for name, (column, kind) in side.features.items()
    ]
    there = [*key_names(side), TS]
    return side.frame.select(columns).filter(inside, *(pl.col(name).is_not_null() for name in there))


def _typed(held: pl.Schema, column: str, kind: str, label: str) -> pl.Expr:
    expression = cast(column, _type(held[column]), kind)
    if expression is None:
        raise DefinitionInvalid(
            f"{label} holds {column!r} as {held[column]}, and the features declare it as {kind}",
            hint=f"declare the Field {column!r} as what the dataset holds, or change what makes the dataset",
        )
    return expression


def _entity_keys(entity: pl.DataFrame, side: Side) -> list[pl.Expr]:
    found = []
    for name, (column, (_, kind)) in zip(key_names(side), side.keys.items(), strict=True):
        held = entity.schema[column]
        expression = cast(column, held, kind)
        if expression is None and held.is_float() and kind.startswith("int"):
            # pandas keeps integers with gaps as floats; that is no reason to refuse them.
            values = entity[column].fill_nan(None)
            if (values.drop_nulls() % 1 == 0).all():
                expression = pl.lit(values.cast(dtype(kind)))
        if expression is None:
            raise InvalidInput(
                f"the entity rows hold the join key {column!r} as {held}; {side.label} has it as {kind}",
                hint=f"cast {column!r} to {kind}",
            )
        found.append(expression.alias(name))
    return found


def _instants(held: pl.DataType, column: str, label: str) -> pl.Expr:
    if not isinstance(held, pl.Date | pl.Datetime | pl.Null):
        raise InvalidInput(
            f"{label}: {column!r} is {held}, not a time", hint="make it a timestamp; naive times are UTC"
        )
    return utc(column, held).to_physical()


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def _type(held: object) -> pl.DataType:
    return held() if isinstance(held, type) else held  # type: ignore[return-value]
