"""Feature values as of the time of each row: the as-of join over a service's views, then its on-demand views.

The one way in which features are computed offline: training sets and Feast's own `get_historical_features`
both come here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from manta.errors import InvalidInput
from manta.features import asof
from manta.features.compiled import OnDemand, View
from manta.features.on_demand import Function, compute

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
