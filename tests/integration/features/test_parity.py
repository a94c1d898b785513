"""Parity on real stores: clean ones raise no alarm; each seeded skew is found, and named for what it is."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pytest

from manta.definitions import FeatureRepo, Materialize
from manta.errors import SkewFound
from manta.features import apply as applying
from manta.features import asof, parity
from manta.features import materialize as materializing
from manta.features.compiled import View
from manta.features.historical import side_of
from manta.features.materialize import materialize
from manta.features.stores import open_store_of
from manta.ledger.actor import OWNER
from manta.ledger.context import RunContext
from manta.ledger.parity import Cause, ParityReport
from manta.ledger.runs import EndReason, State
from manta.ledger.store import Ledger
from manta.worker.reasons import end_reason

from .conftest import START, Shop, every_store, hours

END = START + timedelta(hours=80)
TOWNS = [f"town{at:03d}" for at in range(120)]


def check(shop: Shop, name: str = "trip", until: datetime = END, **more: Any) -> ParityReport:
    given: dict[str, Any] = {"root": shop.root, "keys": 400} | more
    return parity.check(shop.manifest(name), name, shop.settings.datasets, shop.versions(), until, **given)


def towns() -> pl.DataFrame:
    """Three rows an hour apart for each town, to the odd half second; every value its own."""
    count = 3 * len(TOWNS)
    return pl.DataFrame(
        {
            "city": TOWNS * 3,
            "hour": [START + timedelta(hours=at // len(TOWNS), seconds=at % 7 * 0.5) for at in range(count)],
            "temp": [at + at / 7 for at in range(count)],
            "rain": [None if at % 11 == 0 else at / 3 for at in range(count)],
            "measured": [START + timedelta(minutes=at % 50) for at in range(count)],
        }
    )


@every_store
@pytest.mark.parametrize("name", ["trip", "plain"])
def test_what_was_materialized_is_the_same_on_both_sides(shop: Shop, name: str) -> None:
    materialize(shop.service(name), shop.settings.datasets, shop.versions(), until=END)
    found = check(shop, name)
    assert found.clean, "\n".join(found.lines())
    assert found.rows == 400
    assert found.values > 200 * len(shop.service(name).features)
    # And it does not compare nothing with nothing.
    assert not check(shop, name, until=START + timedelta(hours=5)).clean


@pytest.fixture
def seeded(shop: Shop) -> Callable[..., ParityReport]:
    """Put the weather of the towns online, changed by a function of (view, newest rows), and check."""
    shop.put("weather", towns())
    shop.put("weather", towns(), key="again")  # else all of it would have come late
    service = shop.service("trip")
    materialize(service, shop.settings.datasets, shop.versions(), until=END)

    def seed(change: Callable[[View, pl.DataFrame], tuple[View, pl.DataFrame]]) -> ParityReport:
        (view,) = [view for view in service.views if view.name == "weather"]
        newest = asof.newest(side_of(view, shop.lake.scan("weather")))
        with closing(open_store_of(service.store)) as store:
            store.write(*change(view, newest), whole=True)
        return check(shop)

    return seed


def of(found: ParityReport, feature: str) -> dict[Cause, int]:
    return {each.cause: each.values for each in found.found if each.feature == feature}


@every_store
def test_a_value_made_otherwise(seeded: Callable[..., ParityReport]) -> None:
    assert seeded(lambda view, rows: (view, rows)).clean
    found = seeded(lambda view, rows: (view, rows.with_columns(pl.col("temp") + 0.001)))
    assert set(of(found, "temp")) == {Cause.TRANSFORM}
    assert found.causes == (Cause.TRANSFORM,)


@every_store
def test_a_value_of_less_precision(seeded: Callable[..., ParityReport]) -> None:
    def single(view: View, rows: pl.DataFrame) -> tuple[View, pl.DataFrame]:
        features = tuple(replace(f, type="float32") if f.name == "temp" else f for f in view.features)
        return replace(view, features=features), rows.with_columns(pl.col("temp").cast(pl.Float32))

    assert found_only(seeded(single), Cause.TYPE)


def test_a_value_as_text(seeded: Callable[..., ParityReport]) -> None:
    def text(view: View, rows: pl.DataFrame) -> tuple[View, pl.DataFrame]:
        features = tuple(replace(f, type="string") if f.name == "temp" else f for f in view.features)
        return replace(view, features=features), rows.with_columns(pl.col("temp").cast(pl.String))

    found = seeded(text)
    assert found_only(found, Cause.TYPE)
    assert found.found[0].example.online.startswith("'")


@every_store
def test_keys_written_in_another_way(seeded: Callable[..., ParityReport]) -> None:
    found = seeded(lambda view, rows: (view, rows.with_columns(pl.col("__key_0").str.to_uppercase())))
    assert found_only(found, Cause.JOIN)


@every_store
def test_values_of_other_keys(seeded: Callable[..., ParityReport]) -> None:
    def turned(view: View, rows: pl.DataFrame) -> tuple[View, pl.DataFrame]:
        keys = rows["__key_0"]
        return view, rows.with_columns(__key_0=pl.concat([keys[1:], keys[:1]]))

    assert found_only(seeded(turned), Cause.JOIN)


@every_store
def test_values_of_an_earlier_time(seeded: Callable[..., ParityReport]) -> None:
    def before(view: View, rows: pl.DataFrame) -> tuple[View, pl.DataFrame]:
        old = asof.newest(side_of(view, towns().head(2 * len(TOWNS)).lazy()))
        return view, old

    found = seeded(before)
    assert found_only(found, Cause.STALE)
    first = found.found[0].example
    assert first.online_event is not None
    assert first.offline_event is not None
    assert first.online_event < first.offline_event


@every_store
def test_event_times_that_make_values_outlive_their_ttl(seeded: Callable[..., ParityReport]) -> None:
    later = timedelta(hours=1) // timedelta(microseconds=1)
    found = seeded(lambda view, rows: (view, rows.with_columns(pl.col(asof.TS) + later)))
    assert found_only(found, Cause.TTL)


def test_a_ttl_that_readers_do_not_know(shop: Shop) -> None:
    materialize(shop.service("trip"), shop.settings.datasets, shop.versions(), until=END)
    old = shop.manifest("trip")
    shop.change("views.py", "ttl=timedelta(hours=3)", "ttl=timedelta(hours=1)")
    found = check(shop, online=old)
    assert found.causes == (Cause.TTL,), "\n".join(found.lines())


@every_store
def test_a_row_that_came_late(shop: Shop) -> None:
    """Known by when it was written, and by the version before where nothing says when that was."""
    service = shop.service("trip")
    last = pl.col("city").is_in(TOWNS[:30]) & (pl.col("hour") >= hours(2)[0])
    shop.put("weather", towns().filter(~last))
    materialize(service, shop.settings.datasets, shop.versions(), until=END)
    assert check(shop).clean
    shop.put(
        "weather", towns().with_columns(pl.when(last).then(hours(1.75)[0]).otherwise("hour").alias("hour"))
    )
    assert found_only(check(shop), Cause.LATE)

    sales = pl.DataFrame(
        {
            "shop": [1, 2],
            "city": ["rom", "rom"],
            "at": hours(5, 5),
            "written": hours(6, 6),
            "sold": [1.5, 2.5],
            "buyers": [3, 4],
            "best": ["tea", "ham"],
            "open": [True, False],
            "last_sale": hours(4, 4),
            "recent": [[1.0], [2.0]],
        }
    )
    shop.put("sales", sales)
    materialize(service, shop.settings.datasets, shop.versions(), until=END)
    assert check(shop).clean
    late = sales.head(1).with_columns(at=hours(4.5)[0], written=hours(9)[0], shop=3)
    shop.put("sales", pl.concat([sales, late.cast(sales.schema)]))
    found = check(shop)
    assert found.causes == (Cause.LATE,), "\n".join(found.lines())


FROM_LEAST = """

def from_least(values):
    least = min((value for value in values if value is not None), default=0)
    return [None if value is None else value - least for value in values]
"""


def test_a_function_that_looks_at_other_rows(shop: Shop) -> None:
    materialize(shop.service("trip"), shop.settings.datasets, shop.versions(), until=END)
    assert check(shop).clean
    shop.change("asking.py", 'for value in columns["amount"]]', 'for value in from_least(columns["amount"])]')
    text = (shop.root / "features" / "asking.py").read_text()
    shop.write("asking.py", text + FROM_LEAST)
    found = check(shop)
    assert found.causes == (Cause.TRANSFORM,), "\n".join(found.lines())
    (one,) = found.found
    assert (one.view, one.feature) == ("asking", "amount_root")
    assert "alone, as a request does" in one.note


def found_only(found: ParityReport, cause: Cause) -> bool:
    """Of the weather, all of that cause; and of what is computed from it, through it."""
    assert not found.clean
    assert found.causes == (cause,), "\n".join(found.lines())
    assert {each.view for each in found.found if not each.through} == {"weather"}
    assert {each.view for each in found.found if each.through} <= {"asking"}
    return True


def run(
    shop: Shop, definition: FeatureRepo | Materialize, execute: Callable[[RunContext], None]
) -> RunContext:
    """As a worker runs it; what it made stays, whether or not it fails."""
    ledger = Ledger(shop.settings.ledger_url)
    shop.settings.home.mkdir(exist_ok=True)
    ledger.create()
    given = ledger.submit(
        key=secrets.token_hex(4),
        project="test",
        job=definition.name,
        kind=definition.kind,
        definition=definition.to_json(),
        fingerprint="f",
        package="",
        by=OWNER,
    )
    started = ledger.move(ledger.start(given, str(given.id)), State.RUNNING)
    context = RunContext(shop.settings, ledger, started, definition, shop.root)
    try:
        execute(context)
        ledger.move(started, State.SUCCEEDED, outputs=context.outputs, metrics=context.metrics)
    finally:
        ledger.close()
    return context


def test_a_materialization_that_is_to_check_fails_when_values_differ(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    def give(context: RunContext) -> None:
        for name, version in shop.versions().items():
            context.produced("dataset", name, version)

    run(shop, FeatureRepo(), applying.execute)
    run(shop, FeatureRepo(name="datasets"), give)
    wanted = Materialize(features="trip", parity=200)
    made = run(shop, wanted, materializing.execute)
    assert made.metrics["online_parity"]["skewed"] == 0
    assert datetime.fromisoformat(made.outputs[0].detail["until"]) < datetime.now(UTC)
    capsys.readouterr()

    text = (shop.root / "features" / "asking.py").read_text()
    shop.write("asking.py", text.replace("STEP = 0.5", "import time\nSTEP = time.time()"))
    shop.change("asking.py", "math.sqrt(value) + STEP", "math.sqrt(value) + time.time() - STEP")
    del sys.modules["features.asking"]  # as in another run, which is another process
    with pytest.raises(SkewFound, match=r"transform in asking\.amount_root") as skew:
        run(shop, wanted, materializing.execute)
    assert end_reason(skew.value) == EndReason.GATE_FAILED
    assert "no clock" in skew.value.hint
    said = capsys.readouterr().out
    assert "gives another value each time" in said
    assert "manta:   transform  asking.amount_root" in said
