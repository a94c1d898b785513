"""Staleness contracts: how old what a feature service serves may be, and what happens when it is older.

A contract stands in the tags of a Feast `FeatureService`, so that it is registered with it; whatever reads
the service by its manifest obeys it. A view's TTL says until when a value means anything, in training too;
the contract says what callers are owed, and only online. A view is stale in a row whose newest value there is
older than ``max_age`` at the time that is asked about, or older than the view's TTL. A key that nothing is
known of is missing, not stale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal

from manta.errors import DefinitionInvalid, FeaturesStale

TAG = "manta.staleness"
Then = Literal["refuse", "default", "flag"]
THEN: tuple[Then, ...] = ("refuse", "default", "flag")


@dataclass(frozen=True)
class Staleness:
    """A contract as a manifest holds it. ``defaults``: feature → value; ``views``: those that it is about."""

    max_age_seconds: float
    then: Then
    views: tuple[str, ...]
    defaults: dict[str, Any] = field(default_factory=dict)


def staleness(
    max_age: timedelta,
    then: Then,
    *,
    defaults: Mapping[str, Any] | None = None,
    views: Sequence[str] = (),
) -> dict[str, str]:
    """Tags for a FeatureService: `FeatureService(name=…, features=[…], tags=staleness(…))`.

    Args:
        max_age: the oldest that a value may be.
        then: of what is older: "refuse" the request; answer with ``defaults`` in its place; or answer with it
            all the same, and "flag" it in the response. Defaults are flagged too.
        defaults: the values of features of stale views, for "default"; a feature without one is missing.
        views: the views that it is about; all that have a time, unless given.

    Raises:
        DefinitionInvalid: these do not go together.
    """
    said: dict[str, Any] = {"max_age_seconds": max_age.total_seconds(), "then": then, "views": list(views)}
    said |= {"defaults": dict(defaults)} if defaults else {}
    tags = {TAG: json.dumps(said, sort_keys=True)}
    _parsed(tags[TAG], "the staleness of a feature service")
    return tags


def contract_of(
    service: str, tags: Mapping[str, str], timed: Sequence[str], features: Mapping[str, str]
) -> dict[str, Any] | None:
    """What the tags of a service say, for its manifest; None when nothing.

    Args:
        timed: its views that have a time. features: those of its views, feature → view.

    Raises:
        DefinitionInvalid: the tag cannot be read, or names what the service does not have.
    """
    if TAG not in tags:
        return None
    where = f"the staleness of feature service {service!r}"
    said = _parsed(tags[TAG], where)
    unknown = sorted(set(said.views) - set(timed))
    if unknown:
        raise DefinitionInvalid(
            f"{where} names {', '.join(unknown)}, which is no view of it with a time",
            hint=f"one of {', '.join(timed)}",
        )
    views = said.views or tuple(timed)
    unknown = sorted(name for name in said.defaults if features.get(name) not in views)
    if unknown:
        raise DefinitionInvalid(
            f"{where} has a default of {', '.join(unknown)}, which is no feature of {', '.join(views)}",
            hint="give defaults of features that are kept online; what is on demand is computed from those",
        )
    return {
        "max_age_seconds": said.max_age_seconds,
        "then": said.then,
        "views": list(views),
        "defaults": said.defaults,
    }


def _parsed(tag: str, where: str) -> Staleness:
    try:
        said = json.loads(tag)
        found = Staleness(
            float(said["max_age_seconds"]),
            said["then"],
            tuple(said.get("views", ())),
            said.get("defaults", {}),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DefinitionInvalid(
            f"{where} cannot be read: {tag!r:.200}", hint="write it with manta.features.staleness(…)"
        ) from error
    if found.then not in THEN or found.max_age_seconds <= 0 or (found.defaults and found.then != "default"):
        raise DefinitionInvalid(
            f"{where}: max_age must be positive, then one of {', '.join(THEN)}, and defaults go with "
            'then="default"'
        )
    return found


def stale_rows(
    contract: Staleness, event: Sequence[int | None], expired: Sequence[bool], at: Sequence[int]
) -> list[bool]:
    """In which rows a view is stale. ``event``: its oldest event time in each, and ``at`` when is asked, in
    microseconds; ``expired``: it was older than its TTL."""
    most = round(contract.max_age_seconds * 1e6)
    return [
        old or (when is not None and asked - when > most)
        for when, old, asked in zip(event, expired, at, strict=True)
    ]


def refuse(service: str, contract: Staleness, stale: Mapping[str, Sequence[bool]]) -> None:
    """Raises:
    FeaturesStale: a view is stale in a row.
    """
    views = [view for view, rows in stale.items() if any(rows)]
    if views:
        rows = sum(any(each) for each in zip(*stale.values(), strict=True))
        most = timedelta(seconds=contract.max_age_seconds)
        raise FeaturesStale(
            f"{', '.join(views)} of {service}: older than the {most} that is allowed, in {rows} of "
            f"{len(stale[views[0]])} rows",
            hint=f"`manta features freshness {service}` shows how old it is; `manta features materialize "
            f"{service}` puts online what the lake has",
            views=views,
        )
