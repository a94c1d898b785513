"""Rows of (entity key, feature, value, event time), as tables hold them, put into columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from manta.features.compiled import View
from manta.features.stores import Held

Micros = Callable[[Sequence[Any]], list[int]]


def place_of(view: View) -> dict[str, int]:
    """Where in the view each feature stands."""
    return {feature.name: at for at, feature in enumerate(view.features)}


def held_of(cells: list[Any], width: int, places: Mapping[Any, int], micros: Micros) -> Held:
    """What is held of one view.

    Args:
        cells: one row after the other, each of ``width`` cells, the first four of which are an entity key, a
            feature, its value and its event time; no feature twice under a key.
        places: feature, as the rows name it → its place in the view, in that order. Others are passed over.
        micros: event times, as the rows have them → in microseconds since 1970 UTC.
    """
    keys, names = cells[0::width], cells[1::width]
    if keys and keys.count(keys[0]) == len(keys):
        values, times = dict(zip(names, cells[2::width], strict=True)), cells[3::width]
        if values.keys() <= places.keys() and times.count(times[0]) == len(times):
            return Held(keys[:1], [(values.get(name),) for name in places], [micros(times[:1])])
    each = next((at for at, key in enumerate(keys) if key != keys[0]), len(keys)) or 1
    order = names[:each]
    # The rule is that the same features are under every key, in the same order: then a feature is every so
    # many rows. As no feature is twice under a key, the rows of a key are then these and no others.
    if names != order * (len(keys) // each) or any(keys[0::each] != keys[at::each] for at in range(1, each)):
        return _ragged(cells, width, places, micros)
    starts: list[int | None] = [None] * len(places)
    for at, name in enumerate(order):
        if name in places:
            starts[places[name]] = at * width
    there = [start for start in starts if start is not None]
    if not there:
        return Held((), [()] * len(places), [()])
    step = each * width
    times = [cells[start + 3 :: step] for start in there]
    nothing = [None] * (len(keys) // each)
    shared = all(column == times[0] for column in times)
    return Held(
        keys[0::each],
        [nothing if start is None else cells[start + 2 :: step] for start in starts],
        [micros(times[0])]
        if shared
        else [nothing if start is None else micros(cells[start + 3 :: step]) for start in starts],
    )


def _ragged(cells: list[Any], width: int, places: Mapping[Any, int], micros: Micros) -> Held:
    """As :func:`held_of`, whatever is held under each key."""
    found: dict[bytes, int] = {}
    by_place: list[dict[int, tuple[bytes, int]]] = [{} for _ in places]
    events = micros(cells[3::width])
    for key, name, value, event in zip(
        cells[0::width], cells[1::width], cells[2::width], events, strict=True
    ):
        place = places.get(name)
        if place is not None:
            by_place[place][found.setdefault(key, len(found))] = value, event
    rows = range(len(found))
    values = [[column[row][0] if row in column else None for row in rows] for column in by_place]
    times = [[column[row][1] if row in column else None for row in rows] for column in by_place]
    of_key = [{time for time in of if time is not None} for of in zip(*times, strict=True)]
    if all(len(of) == 1 for of in of_key):
        times = [[time for of in of_key for time in of]]
    return Held(list(found), values, times)
