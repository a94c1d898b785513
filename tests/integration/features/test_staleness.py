"""Staleness contracts, from the tags of a feature service to what a look-up answers."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from manta.errors import DefinitionInvalid, FeaturesStale
from manta.features.materialize import materialize
from manta.features.online import Looked, OnlineReader, Status
from manta.features.stale import TAG, staleness

from .conftest import START, Shop

END = START + timedelta(hours=50)
ASKED: dict[str, list[Any]] = {
    "shop": [1, 1, 9],
    "city": ["rom", "bari", "oslo"],
    "amount": [4.0] * 3,
    "at": [START] * 3,
}
SERVICE = 'trip = FeatureService(name="trip", features=[sales, weather[["temp"]], facts, world, asking]'


def look(shop: Shop, tags: str, at: float) -> Looked:
    """Rome's weather is of hour 6, Bari's of hour 2; nothing is known of Oslo before hour 40."""
    shop.change("views.py", SERVICE, f"{SERVICE}, tags=staleness({tags})")
    shop.change(
        "views.py",
        "from manta.features import DatasetSource",
        "from manta.features import DatasetSource, staleness",
    )
    service = shop.service("trip")
    materialize(service, shop.settings.datasets, shop.versions(), until=START + timedelta(hours=30))
    return OnlineReader(shop.manifest("trip"), "trip").read(ASKED, [START + timedelta(hours=at)] * 3)


def test_what_is_older_is_flagged(shop: Shop) -> None:
    found = look(shop, 'timedelta(hours=1), "flag", views=["weather"]', 6.5)
    assert found.stale == {"weather": [False, True, False]}
    assert found.values["temp"] == [25.0, None, None]  # Bari's is older than the TTL too
    assert found.status["weather"] == [Status.PRESENT, Status.OUTSIDE_MAX_AGE, Status.NOT_FOUND]


def test_what_is_older_and_yet_within_its_ttl_is_flagged_and_given(shop: Shop) -> None:
    found = look(shop, 'timedelta(minutes=20), "flag", views=["weather"]', 6.5)
    assert found.stale == {"weather": [True, True, False]}
    assert found.values["temp"] == [25.0, None, None]


def test_a_default_takes_the_place_of_what_is_older_before_anything_is_computed_from_it(shop: Shop) -> None:
    found = look(shop, 'timedelta(minutes=20), "default", defaults={"temp": 30.5}, views=["weather"]', 6.5)
    assert found.values["temp"] == [30.5, 30.5, None]
    assert found.values["warmer"] == [True, True, None]
    assert found.values["age"] == [None, None, None]  # of a stale view, and without a default: missing
    assert found.stale == {"weather": [True, True, False]}


def test_what_is_older_is_refused_with_the_next_step(shop: Shop) -> None:
    with pytest.raises(
        FeaturesStale, match=r"weather of trip: older than the 0:20:00 .* 2 of 3 rows"
    ) as refused:
        look(shop, 'timedelta(minutes=20), "refuse", views=["weather"]', 6.5)
    assert "manta features materialize trip" in refused.value.hint
    assert refused.value.detail == {"views": ["weather"]}


def test_all_views_with_a_time_are_meant_unless_some_are_named(shop: Shop) -> None:
    found = look(shop, 'timedelta(hours=20), "flag"', 29.0)
    assert set(found.stale) == {"sales", "weather"}  # `world` is of hour 24; `facts` has no time


def test_fresh_values_are_given_as_ever(shop: Shop) -> None:
    assert look(shop, 'timedelta(hours=20), "refuse", views=["weather"]', 5.0).stale == {}


@pytest.mark.parametrize(
    ("tags", "wrong"),
    [
        ('timedelta(hours=1), "flag", views=["facts"]', "facts, which is no view of it with a time"),
        ('timedelta(hours=1), "default", defaults={"warmer": True}', "default of warmer"),
        ('timedelta(hours=1), "default", defaults={"sold": 1}, views=["weather"]', "default of sold"),
    ],
)
def test_a_contract_about_what_is_not_there_is_refused_when_it_is_applied(
    shop: Shop, tags: str, wrong: str
) -> None:
    with pytest.raises(DefinitionInvalid, match=wrong):
        look(shop, tags, 6.0)


def test_a_contract_that_contradicts_itself_is_refused_when_it_is_written() -> None:
    with pytest.raises(DefinitionInvalid, match="max_age must be positive"):
        staleness(timedelta(0), "flag")
    with pytest.raises(DefinitionInvalid, match="then one of refuse, default, flag"):
        staleness(timedelta(1), "ignore")  # type: ignore[arg-type]
    with pytest.raises(DefinitionInvalid, match='defaults go with then="default"'):
        staleness(timedelta(1), "flag", defaults={"temp": 1})
    assert set(staleness(timedelta(1), "flag")) == {TAG}
