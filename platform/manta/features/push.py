"""Pushed rows: checked, typed, and written to the dataset behind the views and to the online store.

A row names its columns as the dataset does; a feature may also go by the feature's name, and the times by
`event_timestamp` and `created`, as Feast's remote store sends them. The dataset is written first, in one
commit, and then the online store: whatever is online can be made again from the dataset. The same rows pushed
twice are added once, and online the newest event time wins; so a push that failed may be sent again.
"""

from __future__ import annotations

import hashlib
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from manta.data.lake import Change, Head, Lake, write_part
from manta.definitions import digest
from manta.errors import NotFound, RequestInvalid
from manta.features import asof
from manta.features.compiled import View
from manta.features.historical import side_of
from manta.features.stores import OnlineStore

EVENT_TIME, CREATED = "event_timestamp", "created"  # as Feast's remote store names them
# A row wins online until there is one of a later time. One of next year would win for a year over all that
# comes, so it is refused; clocks that are wrong by minutes, or by daylight saving time, are not.
FUTURE_SECONDS = 3600.0
Columns = Mapping[str, Sequence[Any]]


def push(views: Sequence[View], columns: Columns, store: OnlineStore | None, lake: str | None) -> int:
    """Write the rows of ``columns`` (JSON values, one length) to the dataset of ``views``, when ``lake`` is
    given, and to the online ``store``, when it is; gives their number.

    Raises:
        RequestInvalid: a column is missing, or holds a value of another type, or no key or no time, or a
            time more than an hour ahead of now; the message names it. Nothing has been written.
        NotFound: there is no such dataset yet.
        FeaturesUnavailable: the online store cannot be written; the rows are in the dataset.
    """
    now = datetime.now(UTC)
    frames = {view.name: typed(view, columns, now) for view in views}
    rows = len(next(iter(columns.values())))
    if not rows:
        return 0
    if lake is not None:
        append(Lake(lake), views[0], columns, now)
    if store is not None:
        for view in views:
            # Of each key the newest, unless the store has a newer one.
            store.write(view, asof.newest(side_of(view, frames[view.name].lazy())))
    return rows


def typed(view: View, columns: Columns, now: datetime) -> pl.DataFrame:
    """The rows as the view reads them from its dataset: keys, times and features, by the dataset's names.

    Where the view has a created time and the rows have none, it is ``now``.

    Raises:
        RequestInvalid: see :func:`push`.
    """
    assert view.time is not None  # else it is not pushed to: see repo.py
    wanted: dict[str, tuple[tuple[str, ...], str, bool]] = {}
    wanted |= {key.join_key: ((key.join_key,), key.type, True) for key in view.keys}
    wanted[view.time] = ((view.time, EVENT_TIME), "timestamp", True)
    wanted |= {each.column: ((each.column, each.name), each.type, False) for each in view.features}
    found = {}
    for column, (names, kind, required) in wanted.items():
        name = next((name for name in names if name in columns), None)
        if name is None:
            raise RequestInvalid(
                f"df: the column {column!r} is missing, which {view.name!r} reads",
                hint=f"it reads: {', '.join(wanted)}",
                fields=[column],
            )
        found[column] = _series(column, name, columns[name], kind, required)
    _require_past(found[view.time], next(name for name in wanted[view.time][0] if name in columns), now)
    if view.created is not None:
        name = next((name for name in (view.created, CREATED) if name in columns), None)
        times = columns[name] if name else [None] * len(found[view.time])
        held = _series(view.created, name or view.created, times, "timestamp", required=False)
        found[view.created] = held.fill_null(now)
    return pl.DataFrame(list(found.values()))


def _require_past(times: pl.Series, name: str, now: datetime) -> None:
    """Raises:
    RequestInvalid: a row is of a time more than :data:`FUTURE_SECONDS` ahead.
    """
    late = times.arg_max()
    if late is not None and times[late] > now + timedelta(seconds=FUTURE_SECONDS):
        raise RequestInvalid(
            f"df: {name!r} of row {late} is {times[late].isoformat()}, more than an hour ahead of now: it "
            "would win online over all rows until then",
            hint="see that the clock is right, and that times without an offset are UTC",
            fields=[name],
        )


def append(lake: Lake, view: View, columns: Columns, now: datetime) -> int:
    """Add the rows to the view's dataset, in one commit; gives its version. The same rows are added once.

    Columns of the dataset that are not given, and may be null, are null.

    Raises:
        RequestInvalid: a column is not the dataset's, or one that must not be null is missing or has nulls.
        NotFound: there is no such dataset yet.
    """
    try:
        schema = lake.schema(view.dataset)
    except NotFound as error:
        raise NotFound(
            f"there is no dataset {view.dataset!r} yet to push to", hint="run the job that makes it first"
        ) from error
    renamed = {each.name: each.column for each in view.features}
    renamed |= {EVENT_TIME: str(view.time)} | ({CREATED: view.created} if view.created else {})
    given = {
        name if name in schema.names else renamed.get(name, name): held for name, held in columns.items()
    }
    unknown = sorted(set(given) - set(schema.names))
    if unknown:
        raise RequestInvalid(
            f"df: dataset {view.dataset!r} has no column {', '.join(unknown)}",
            hint=f"it has: {', '.join(schema.names)}",
            fields=unknown,
        )
    types = pl.DataFrame(schema.empty_table()).schema
    rows = len(next(iter(columns.values())))
    found = []
    for field in schema:
        values = given.get(field.name)
        if values is None and field.name == view.created:
            values = [now.isoformat()] * rows
        if values is None and not field.nullable:
            raise RequestInvalid(f"df: the column {field.name!r} is missing", fields=[field.name])
        kind, held = _kind(field.name, types[field.name]), values or [None] * rows
        series = _series(field.name, field.name, held, kind, required=not field.nullable)
        found.append(_as_held(series, types[field.name]))
    key = f"push-{digest([view.dataset, hashlib.sha256(repr(sorted(columns.items())).encode()).hexdigest()])}"
    frame = pl.DataFrame(found)

    def change(head: Head) -> Change:
        # What ingests keep in the newest commit stays there: their cursors above all.
        kept = {name: value for name, value in head.metadata.items() if name not in ("run_key", "profile")}
        return Change([path], (), {**kept, "mode": "push", "pushed": rows})

    made = lake.committed(view.dataset, key)
    if made is not None:
        return made
    with lake.staged(view.dataset, key) as folder:
        path = f"{folder}/00000.parquet"
        write_part(frame, path)
        return lake.change(view.dataset, change, run_key=key, schema=schema)


# --- values -------------------------------------------------------------------------------------------


def _series(column: str, name: str, values: Sequence[Any], kind: str, required: bool) -> pl.Series:
    convert = _CONVERT[kind.removeprefix("list[").removesuffix("]")]
    try:
        if kind.startswith("list["):
            gaps = kind in ("list[float32]", "list[float64]")
            held = [None if each is None else _list(each, convert, gaps) for each in values]
        else:
            held = [None if each is None else convert(each) for each in values]
        series = pl.Series(column, held, dtype=asof.dtype(kind), strict=True)
    except (TypeError, ValueError, OverflowError, OSError, pl.exceptions.PolarsError) as error:
        raise RequestInvalid(
            f"df: {name!r} takes values of type {kind}: {error}"[:300],
            hint="times are seconds since 1970, or ISO 8601; bytes are base64",
            fields=[name],
        ) from None
    if required and series.null_count():
        raise RequestInvalid(f"df: {name!r} must not be null", fields=[name])
    return series


def _list(values: Any, convert: Callable[[Any], Any], gaps: bool) -> list[Any]:
    if not isinstance(values, list):
        raise TypeError(f"{values!r:.80} is not a list")
    if not gaps and None in values:
        raise TypeError("it has null inside a list")
    return [None if each is None else convert(each) for each in values]


def _exactly(*types: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{value!r:.80}")
        return value

    return convert


def _integer(value: Any) -> int:
    # pandas keeps integers with gaps as floats; that is no reason to refuse them.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return int(_exactly(int)(value))


def _number(value: Any) -> float:
    return float(_exactly(int, float)(value))


def _instant(value: Any) -> datetime:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, UTC)
    at = datetime.fromisoformat(_exactly(str)(value))
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "string": _exactly(str),
    "bytes": lambda value: b64decode(_exactly(str)(value), validate=True),
    "int32": _integer,
    "int64": _integer,
    "float32": _number,
    "float64": _number,
    "bool": _exactly(bool),
    "timestamp": _instant,
}


def _kind(column: str, held: pl.DataType) -> str:
    """The type of `wire.py` that JSON values of a dataset's column are read as."""
    if isinstance(held, pl.List | pl.Array):
        inner = held.inner
        return f"list[{_kind(column, inner() if isinstance(inner, type) else inner)}]"
    for kind, fits in (
        ("string", held == pl.String),
        ("bytes", held == pl.Binary),
        ("bool", held == pl.Boolean),
        ("int64", held.is_integer()),
        ("float64", held.is_float()),
        ("timestamp", isinstance(held, pl.Date | pl.Datetime)),
    ):
        if fits:
            return kind
    raise RequestInvalid(
        f"the dataset's column {column!r} is {held}, which cannot be pushed",
        hint='push to "online", or load it with an Ingest',
        fields=[column],
    )


def _as_held(series: pl.Series, held: pl.DataType) -> pl.Series:
    if isinstance(held, pl.Datetime) and held.time_zone is None:
        series = series.dt.replace_time_zone(None)
    try:
        return series.cast(held, strict=True)
    except pl.exceptions.PolarsError as error:
        raise RequestInvalid(
            f"df: {series.name!r} does not fit the dataset's {held}: {error}"[:300], fields=[series.name]
        ) from None
