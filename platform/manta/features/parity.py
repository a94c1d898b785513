"""Parity: what is served online is what the as-of join gives. Sampled, compared by value, and explained.

A check reads rows made of keys that the lake has, at instants at which the newest row of a view is due: right
then, some time within the TTL, just before it runs out, and just after. Offline they go through the as-of
join over the datasets as the materialization read them; online through the reader that replicas have, the
first of them one by one, as requests come. What differs is looked up on both sides, whatever its age, and
named.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from manta.data.lake import Lake
from manta.definitions import load_function
from manta.errors import DefinitionInvalid, NotFound
from manta.features.compiled import OnDemand, Service, View, service_of
from manta.features.historical import values_as_of
from manta.features.on_demand import Function, compute
from manta.features.online import OnlineReader
from manta.features.parity_facts import facts_of
from manta.features.parity_sample import AT, frames_of, rows_of_keys, sample
from manta.features.skew import (
    SECOND,
    Facts,
    Failed,
    Values,
    allowed_by_the_second,
    causes_of,
    differ,
    on_demand_causes,
    typed,
)
from manta.ledger.parity import Cause, Example, ParityReport, Skewed

ONE_BY_ONE = 100  # rows that are read in a request each
TOGETHER = 100  # and the others, so many in a request


def check(
    manifest: dict[str, Any],
    name: str,
    lake: str,
    versions: Mapping[str, int],
    watermark: datetime,
    *,
    root: Path,
    keys: int = 1000,
    seed: int = 0,
    online: dict[str, Any] | None = None,
) -> ParityReport:
    """Compare ``keys`` rows of the service ``name``, as ``manifest`` describes it.

    Args:
        versions: what the last materialization read of each dataset; watermark: up to when.
        root: the project folder, from which on-demand functions are imported.
        online: the manifest by which the online side is read, where it is another.

    Raises:
        NotFound: a dataset or its version is not in the lake, or is not named.
        FeaturesUnavailable: the online store cannot be read.
        DefinitionInvalid: an on-demand function fails.
    """
    began = time.monotonic()
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    service = service_of(manifest, name)
    frames = frames_of(service, Lake(lake), versions, watermark)
    rows, latest, events = sample(service, frames, keys, seed, watermark)
    demands = [(view, load_function(view.function)) for view in service.on_demand]
    expected = values_as_of(
        rows, AT, service.views, demands, lambda view: latest[view.name].lazy(), hide_late=False
    )
    served = _served(service, online or manifest, rows)

    read = service_of(online or manifest, name)
    functions = {view.name: function for view, function in demands}

    def note(demand: OnDemand, feature: str, row: int) -> str:
        return _asked_again(demand, functions[demand.name], feature, rows, expected, served, row)

    def of_keys(view: View) -> pl.DataFrame:
        return rows_of_keys(frames[view.name], view, rows).collect()

    def earlier(view: View) -> pl.LazyFrame | None:
        before = versions[view.dataset] - 1
        try:
            return Lake(lake).scan(view.dataset, before) if before >= 0 else None
        except NotFound:
            return None

    return report(
        service,
        rows,
        expected,
        served,
        comparable(service, events, rows[AT]),
        lambda view, places: facts_of(
            service, view, rows[places], frames[view.name], of_keys(view), earlier(view)
        ),
        watermark,
        ttls={view.name: view.ttl_seconds for view in read.views},
        note_of=note,
    ).model_copy(update={"seconds": round(time.monotonic() - began, 3)})


# --- reading ------------------------------------------------------------------------------------------------


def _served(service: Service, manifest: dict[str, Any], rows: pl.DataFrame) -> dict[tuple[str, str], Values]:
    """Every feature of the service, as requests for these rows get it. What an on-demand function fails to
    give, or the reader does not have, is :class:`Failed`."""
    manifest = {**manifest, "service": {**manifest["service"], "staleness": None}}  # which callers are owed
    reader = OnlineReader(manifest, service.name)
    columns = {name: rows[name].to_list() for name in (*service.join_keys, *service.request)}
    at = rows[AT].to_list()
    found: dict[str, list[Any]] = {name: [] for name in service.types}

    def ask(which: OnlineReader, start: int, end: int) -> None:
        looked = which.read({name: values[start:end] for name, values in columns.items()}, at[start:end])
        for name, values in found.items():
            values += looked.values.get(name, [Failed()] * (end - start))

    start = 0
    while start < rows.height:
        end = start + 1 if start < ONE_BY_ONE else min(rows.height, start + TOGETHER)
        try:
            ask(reader, start, end)
        except DefinitionInvalid:
            for row in range(start, end):
                try:
                    ask(reader, row, row + 1)
                except DefinitionInvalid:
                    ask(OnlineReader(_stored_only(manifest), service.name), row, row + 1)
        start = end
    return {(view, name): typed(found[name], service.types[name]) for view, name in service.features}


def _stored_only(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same service without what is computed."""
    body = manifest["service"]
    views = {view["name"] for view in body["views"]}
    features = [feature for feature in body["features"] if feature[0] in views]
    return {**manifest, "service": {**body, "on_demand": [], "features": features}}


def comparable(service: Service, events: Mapping[str, pl.Series], at: pl.Series) -> dict[str, pl.Series]:
    """By view and on-demand view, the rows in which it can be compared: those that are asked when the newest
    row of each view behind it is due. For an earlier one, online has nothing to answer with."""
    asked = at.to_physical()
    due = {name: (event <= asked).fill_null(True) for name, event in events.items()}
    found = dict(due)
    for demand in service.on_demand:
        mask = pl.repeat(True, len(at), eager=True)
        for source, _ in demand.inputs:
            mask &= due[source]
        found[demand.name] = mask
    return found


def _asked_again(
    demand: OnDemand,
    function: Function,
    feature: str,
    rows: pl.DataFrame,
    expected: Mapping[tuple[str, str], pl.Series],
    served: Mapping[tuple[str, str], Values],
    row: int,
) -> str:
    """What calling the function once more, with the offline input of one row, says of why it differs."""
    known = {name: [rows[name][row]] for name in rows.columns if name != AT}
    inputs = {f"{view}__{name}": [expected[view, name][row]] for view, name in demand.inputs}
    kind = demand.features[feature]
    try:
        alone = typed(compute(demand, function, inputs, known, 1)[feature], kind)
    except DefinitionInvalid as error:
        return f"asked for this row alone: {error.message}"
    ours = expected[demand.name, feature].gather([row])
    theirs = served[demand.name, feature].gather([row])
    if not differ(ours, alone).item():
        return f"{demand.function} gave another value online for the same input"
    if not differ(theirs.column, alone).item():
        return (
            f"{demand.function} gives {_text(alone.at(0))} when asked for this row alone, as a request does, "
            f"and {_text(ours[0])} among {rows.height} rows: it looks at other rows than it is asked for"
        )
    return (
        f"{demand.function} gives another value each time: by the clock, by chance, or by what it remembers"
    )


# --- judging ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Mask:
    """Of one feature: where it differs, and what is behind each of those places."""

    places: list[int]
    causes: list[Cause]
    through: dict[int, str]


def report(
    service: Service,
    rows: pl.DataFrame,
    expected: Mapping[tuple[str, str], pl.Series],
    served: Mapping[tuple[str, str], Values],
    compared: Mapping[str, pl.Series],
    facts_of_view: Callable[[View, list[int]], Facts],
    watermark: datetime,
    *,
    ttls: Mapping[str, float] = MappingProxyType({}),
    note_of: Callable[[OnDemand, str, int], str] = lambda demand, name, row: "",
) -> ParityReport:
    """Compare, and explain what differs.

    Args:
        expected: the features of the service, and all that its on-demand views read; served: the features.
        compared: by view and on-demand view, the rows in which it is.
        facts_of_view: asked for the facts of the rows that differ.
        ttls: by view, the TTL that the reader obeys, where it is not the service's.
        note_of: asked for what else can be said of an on-demand feature that differs by itself in a row.
    """
    until = round(watermark.timestamp() * SECOND)
    differing = {
        place: differ(expected[place], served[place]) & compared[place[0]] for place in service.features
    }
    forgiven: dict[str, set[int]] = {}
    facts: dict[str, tuple[list[int], Facts]] = {}
    masks: dict[tuple[str, str], _Mask] = {}
    for view in service.views:
        mine = [place for place in service.features if place[0] == view.name]
        read = [place for demand in service.on_demand for place in demand.inputs if place[0] == view.name]
        wrong = [differing[place] for place in mine]
        wrong += [_any_of(demand, differing, rows.height) for demand in service.on_demand
                  if any(place[0] == view.name for place in demand.inputs)]  # fmt: skip
        places = _places(wrong)
        if not places:
            continue
        known = facts_of_view(view, places)
        facts[view.name] = (places, known)
        at = rows[AT].to_physical().gather(places)
        pushed = (known.held_event > known.lake_event).fill_null(known.held_event.is_not_null())
        excused = pushed if view.pushed else pl.repeat(False, len(places), eager=True)
        for place in dict.fromkeys([*mine, *read]):
            ours = expected[place].gather(places)
            if place in served:
                theirs = served[place].gather(places)
            else:  # read by an on-demand view only: as the store holds it, and the TTL leaves it
                ttl = ttls.get(view.name, view.ttl_seconds)
                theirs = _due(known.held[place[1]], known.held_event, at, ttl)
            unlike = differ(ours, theirs) & compared[view.name].gather(places)
            by_second = pl.repeat(False, len(places), eager=True)
            if view.ttl_seconds:
                by_second = allowed_by_the_second(at, known.lake_event, view.ttl_seconds, ours, theirs)
            free = unlike & (excused | by_second)
            forgiven.setdefault(view.name, set()).update(places[i] for i in free.arg_true().to_list())
            causes = causes_of(place[1], known, until).to_list()
            real = (unlike & ~free).arg_true().to_list()
            masks[place] = _Mask([places[i] for i in real], [Cause(causes[i]) for i in real], {})
    for demand in service.on_demand:
        for name in demand.features:
            place = (demand.name, name)
            if place in differing:
                masks[place] = _on_demand_mask(
                    demand, differing[place], expected[place], served[place], masks, forgiven
                )
    shown = set(service.features)
    counts = {place: int(compared[place[0]].sum()) for place in service.features}
    found = [
        each
        for place, mask in masks.items()
        if place in shown
        for each in _skewed(service, place, mask, rows, expected, served, facts, counts, note_of)
    ]
    found.sort(key=lambda each: (bool(each.through), -each.values))
    return ParityReport(
        service=service.name,
        watermark=watermark,
        rows=rows.height,
        values=sum(counts.values()),
        skewed=sum(each.values for each in found),
        compared={f"{view}.{name}": count for (view, name), count in counts.items()},
        found=tuple(found),
    )


def _any_of(demand: OnDemand, differing: Mapping[tuple[str, str], pl.Series], height: int) -> pl.Series:
    mask = pl.repeat(False, height, eager=True)
    for name in demand.features:
        if (demand.name, name) in differing:
            mask |= differing[demand.name, name]
    return mask


def _places(masks: Sequence[pl.Series]) -> list[int]:
    if not masks:
        return []
    every = masks[0]
    for mask in masks[1:]:
        every = every | mask
    found: list[int] = every.arg_true().to_list()
    return found


def _due(held: Values, event: pl.Series, at: pl.Series, ttl_seconds: float) -> Values:
    if not ttl_seconds:
        return held
    due = (event >= at - round(ttl_seconds * SECOND)).fill_null(False)
    frame = pl.DataFrame({"held": held.column, "due": due})
    kept = frame.select(pl.when("due").then("held"))["held"]
    return Values(kept, {place: value for place, value in held.odd.items() if due[place]})


def _on_demand_mask(
    demand: OnDemand,
    differing: pl.Series,
    expected: pl.Series,
    served: Values,
    masks: Mapping[tuple[str, str], _Mask],
    forgiven: Mapping[str, set[int]],
) -> _Mask:
    """An on-demand feature differs for the cause of an input that does; else for one of its own."""
    brought: dict[int, tuple[Cause, str]] = {}
    free: set[int] = set()
    for view, name in demand.inputs:
        mask = masks.get((view, name))
        if mask:
            for place, cause in zip(mask.places, mask.causes, strict=True):
                brought.setdefault(place, (cause, f"{view}.{name}"))
        free |= forgiven.get(view, set())
    places = [place for place in differing.arg_true().to_list() if place in brought or place not in free]
    own = on_demand_causes(expected.gather(places), served.gather(places)).to_list()
    causes = [brought[place][0] if place in brought else Cause(own[i]) for i, place in enumerate(places)]
    return _Mask(places, causes, {place: brought[place][1] for place in places if place in brought})


def _skewed(
    service: Service,
    place: tuple[str, str],
    mask: _Mask,
    rows: pl.DataFrame,
    expected: Mapping[tuple[str, str], pl.Series],
    served: Mapping[tuple[str, str], Values],
    facts: Mapping[str, tuple[list[int], Facts]],
    counts: Mapping[tuple[str, str], int],
    note_of: Callable[[OnDemand, str, int], str],
) -> list[Skewed]:
    groups: dict[tuple[Cause, str], list[int]] = {}
    for row, cause in zip(mask.places, mask.causes, strict=True):
        groups.setdefault((cause, mask.through.get(row, "")), []).append(row)
    demand = next((view for view in service.on_demand if view.name == place[0]), None)
    found = []
    for (cause, through), of in groups.items():
        row = of[0]
        names = _asked(service, place[0])
        events: dict[str, Any] = {}
        if place[0] in facts:
            places, known = facts[place[0]]
            here = places.index(row)
            events = {
                "offline_event": _when(known.lake_event[here]),
                "online_event": _when(known.held_event[here]),
            }
        found.append(
            Skewed(
                view=place[0],
                feature=place[1],
                cause=cause,
                values=len(of),
                of=counts[place],
                through=through,
                note=note_of(demand, place[1], row) if demand and not through else "",
                example=Example(
                    keys={name: _plain(rows[name][row]) for name in names},
                    at=rows[AT][row],
                    offline=_text(expected[place][row]),
                    online=_text(served[place].at(row)),
                    **events,
                ),
            )
        )
    return found


def _asked(service: Service, view: str) -> list[str]:
    for each in service.views:
        if each.name == view:
            return [key.column for key in each.keys]
    for demand in service.on_demand:
        if demand.name == view:
            of = {source for source, _ in demand.inputs}
            keys = [key.column for each in service.views if each.name in of for key in each.keys]
            return list(dict.fromkeys([*keys, *demand.request]))
    return []


def _when(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros // SECOND, UTC)


def _text(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, pl.Series):
        value = value.to_list()
    if isinstance(value, datetime):
        return value.isoformat(sep=" ")
    return f"{value!r}"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool | None) else repr(value)
