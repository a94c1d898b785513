"""What the contracts make of the real data, and of data that is not as it should be."""

from __future__ import annotations

import polars as pl
import pytest

from manta import Ingest
from manta.data.contract import Checked, check
from manta.errors import ContractBroken

Frames = dict[str, pl.DataFrame]


def test_the_real_data_passes_but_for_what_cannot_be_true(checked: dict[str, Checked]) -> None:
    assert {name: each.good.height for name, each in checked.items()} == {
        "flights": 336_776,
        "weather": 26_114,
        "planes": 3_322,
        "airlines": 16,
        "airports": 1_455,
    }
    # A wind that no hurricane has; an airport in the Arctic Ocean; two in Asia.
    in_asia = "tz: 8 is above -4; tzone: 'Asia/Chongqing' does not match (America|Pacific)/.+"
    reasons = {
        name: each.refused["reason"].to_list() for name, each in checked.items() if each.refused.height
    }
    assert reasons == {
        "weather": ["wind_speed: 1048.36058 is above 253"],
        "airports": [in_asia, "lat: 72.270833 is above 72", in_asia],
    }


def test_keys_name_each_row_once(checked: dict[str, Checked], ingests: dict[str, Ingest]) -> None:
    for name, each in checked.items():
        key = list(ingests[name].contract.key)
        assert key, name
        assert not each.good.select(key).is_duplicated().any(), name
    # Some flights of one carrier have the same number on one day: they leave from different airports.
    without_origin = checked["flights"].good.select("year", "month", "day", "carrier", "flight")
    assert without_origin.is_duplicated().sum() == 48


def test_refusals_are_within_what_is_tolerated(
    checked: dict[str, Checked], ingests: dict[str, Ingest]
) -> None:
    for name, each in checked.items():
        share = each.refused.height / (each.refused.height + each.good.height)
        assert share <= ingests[name].contract.max_refused, name


def test_missing_values_are_where_flights_did_not_go(inputs: Frames) -> None:
    flights = inputs["flights"]
    nulls = {name: count for name, count in flights.null_count().row(0, named=True).items() if count}
    assert nulls == {
        "dep_time": 8_255,
        "dep_delay": 8_255,
        "arr_time": 8_713,
        "arr_delay": 9_430,
        "air_time": 9_430,
        "tailnum": 2_512,
    }
    assert flights.filter(pl.col("tailnum").is_null())["dep_time"].null_count() == 2_512
    assert inputs["planes"]["year"].null_count() == 70


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("origin", "BOS", "origin: 'BOS' is not one of EWR, JFK, LGA"),
        ("dep_delay", "1440", "dep_delay: 1440 is above 1439"),
        ("sched_dep_time", None, "sched_dep_time: is missing"),
        ("month", "13", "month: 13 is above 12"),
        ("distance", "far", "distance: 'far' is not int64"),
        ("carrier", "United", "carrier: 'United' does not match [A-Z0-9]{2}"),
    ],
)
def test_a_bad_flight_is_refused_with_its_reason(
    column: str, value: str | None, reason: str, sources: Frames, ingests: dict[str, Ingest]
) -> None:
    rows = sources["flights"].head(3)
    spoilt = rows.with_columns(
        pl.when(pl.int_range(pl.len()) == 1).then(pl.lit(value)).otherwise(column).alias(column)
    )
    positions = pl.DataFrame({"file": ["x"] * 3, "row": [1, 2, 3]})
    told = check(spoilt, ingests["flights"].contract, positions)
    assert told.good.height == 2
    assert told.refused.select("row", "reason").rows() == [(2, reason)]


def test_a_renamed_column_is_named(sources: Frames, ingests: dict[str, Ingest]) -> None:
    rows = sources["weather"].head(1).rename({"temp": "temperature"})
    with pytest.raises(ContractBroken, match=r"'temp' \(the closest is 'temperature': renamed\?\)"):
        check(rows, ingests["weather"].contract, pl.DataFrame({"file": ["weather.csv"], "row": [1]}))
