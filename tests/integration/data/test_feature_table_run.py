"""Feature tables on a Ray cluster: the same rows however they are partitioned, and nothing when in doubt."""

from __future__ import annotations

import secrets
import textwrap
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manta.data import tables
from manta.data.lake import Lake
from manta.definitions import Definition, FeatureTable
from manta.errors import DefinitionInvalid, NotFound
from manta.ledger.context import RunContext
from manta.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]
START = datetime(2013, 1, 1, tzinfo=UTC)

MEAN_DELAY = """
    import polars as pl

    def fn(inputs):
        flights, carriers = inputs["flights"], inputs["carriers"]
        assert carriers.height == 3  # has no origin: seen whole
        return (
            flights.join(carriers, on="carrier", maintain_order="left")
            .with_columns(pl.col("at").dt.truncate("1d"))
            .group_by("origin", "name", "at")
            .agg(pl.col("delay").mean().alias("mean_delay"), pl.len().alias("flights"))
        )
"""


@pytest.fixture
def inputs(
    settings: Settings, lake: Lake, succeed: Callable[[RunContext], None], context_of: Contexts
) -> None:
    """Versions 0 of `flights` and `carriers`, produced by a run that succeeded."""
    rows = range(5_000)
    flights = pl.DataFrame(
        {
            "origin": [("EWR", "JFK", "LGA", None)[row % 4] for row in rows],
            "carrier": [("UA", "AA", "B6")[row % 3] for row in rows],
            "at": [START + timedelta(minutes=row * 7) for row in rows],
            "delay": [float((row * 7919) % 61 - 10) for row in rows],
        }
    ).filter(pl.col("origin").is_not_null())
    carriers = pl.DataFrame({"carrier": ["UA", "AA", "B6"], "name": ["United", "American", "JetBlue"]})
    put(lake, context_of, succeed, flights=flights, carriers=carriers)


def put(
    lake: Lake, context_of: Contexts, succeed: Callable[[RunContext], None], **frames: pl.DataFrame
) -> None:
    for name, frame in frames.items():
        context = context_of(table("x:y", dataset=name))
        context.produced("dataset", name, lake.replace(name, frame, run_key=context.run_key))
        succeed(context)


@pytest.fixture
def function(settings: Settings) -> Callable[[str], str]:
    """Writes a module of the project; gives the path of its `fn`."""

    def write(source: str) -> str:
        name = f"mod_{secrets.token_hex(4)}"
        (settings.root / f"{name}.py").write_text(textwrap.dedent(source))
        return f"{name}:fn"

    return write


def table(fn: str, **changes: Any) -> FeatureTable:
    fields = {
        "dataset": "daily",
        "inputs_from": ("flights", "carriers"),
        "fn": fn,
        "key": ("origin", "name"),
        "time": "at",
    }
    return FeatureTable(**fields | changes)


@pytest.mark.usefixtures("inputs")
def test_partitioned_is_what_unpartitioned_is(
    lake: Lake, context_of: Contexts, function: Callable[[str], str]
) -> None:
    fn = function(MEAN_DELAY)
    tables.execute(context_of(table(fn)))
    whole = lake.read("daily")
    assert whole.height > 100
    assert whole.equals(whole.sort("origin", "name", "at"))
    for partitions in (0, 1, 2, 5):
        context = context_of(table(fn, dataset="parts", partition_by=("origin",), partitions=partitions))
        tables.execute(context)
        assert lake.read("parts").sort("origin", "name", "at").equals(whole)
        assert context.outputs[0].detail == {"rows": whole.height}
        assert {str(version) for version in context.ledger.run(context.run.id).inputs} == {
            "dataset:flights@0",
            "dataset:carriers@0",
        }


@pytest.mark.usefixtures("inputs")
def test_a_replay_gives_the_same_rows_in_the_same_order(
    lake: Lake, context_of: Contexts, function: Callable[[str], str]
) -> None:
    fn = function(MEAN_DELAY)
    for _ in range(2):
        tables.execute(context_of(table(fn, partition_by=("origin",), partitions=3)))
    assert lake.read("daily", 0).equals(lake.read("daily", 1))


@pytest.mark.usefixtures("inputs")
def test_inputs_are_read_at_the_versions_the_run_has_recorded(
    lake: Lake, context_of: Contexts, function: Callable[[str], str], succeed: Callable[[RunContext], None]
) -> None:
    context = context_of(table(function(MEAN_DELAY)))
    context.read("dataset", "flights")
    put(lake, context_of, succeed, flights=lake.read("flights").head(1))
    tables.execute(context)
    assert lake.read("daily")["flights"].sum() == lake.read("flights", 0).height
    later = context_of(table(function(MEAN_DELAY)))
    tables.execute(later)
    assert lake.read("daily")["flights"].sum() == 1


@pytest.mark.usefixtures("inputs")
def test_a_run_executed_again_after_its_commit_reports_what_it_made(
    lake: Lake, context_of: Contexts, function: Callable[[str], str]
) -> None:
    context = context_of(table(function(MEAN_DELAY)))
    tables.execute(context)
    again = RunContext(context.settings, context.ledger, context.run, context.definition, context.root)
    tables.execute(again)
    assert again.outputs == context.outputs
    assert lake.version("daily") == 0


def test_inputs_without_rows(
    lake: Lake, context_of: Contexts, function: Callable[[str], str], succeed: Callable[[RunContext], None]
) -> None:
    schema = {"origin": pl.String, "carrier": pl.String, "at": pl.Datetime("us", "UTC"), "delay": pl.Float64}
    put(lake, context_of, succeed, flights=pl.DataFrame(schema=schema))
    fn = function(
        MEAN_DELAY.replace("assert carriers.height == 3", "pass").replace('inputs["carriers"]', CARRIERS)
    )
    tables.execute(context_of(table(fn, inputs_from=("flights",), partition_by=("origin",), partitions=4)))
    assert lake.read("daily").is_empty()
    assert lake.read("daily").columns == ["origin", "name", "at", "mean_delay", "flights"]


CARRIERS = 'pl.DataFrame({"carrier": ["UA"], "name": ["United"]})'


def test_facts_without_a_time_and_types_that_delta_has_not(
    lake: Lake, context_of: Contexts, function: Callable[[str], str], succeed: Callable[[RunContext], None]
) -> None:
    put(lake, context_of, succeed, planes=pl.DataFrame({"tail": ["N2", "N1"], "year": [2001, None]}))
    fn = function("""
        import polars as pl

        def fn(inputs):
            return inputs["planes"].lazy().with_columns(
                pl.col("tail").cast(pl.Categorical),
                pl.col("year").cast(pl.UInt16),
                made=pl.datetime(2001, 1, 1, time_zone="America/New_York", time_unit="ns"),
            )
    """)
    tables.execute(context_of(table(fn, inputs_from=("planes",), key=("tail",), time=None)))
    assert lake.read("daily").to_dicts() == [
        {"tail": "N1", "year": None, "made": datetime(2001, 1, 1, 5, tzinfo=UTC)},
        {"tail": "N2", "year": 2001, "made": datetime(2001, 1, 1, 5, tzinfo=UTC)},
    ]


SPOILED = [
    ('flights.drop("at")', "gave no column at; it gave origin, carrier, delay"),
    ('flights.with_columns(pl.col("at").dt.replace_time_zone(None))', "gave 'at' without a time zone"),
    ('flights.with_columns(pl.col("at").cast(pl.String))', "gave 'at' as String, it must be a UTC time"),
    ('flights.with_columns(origin=None)', "gave 'origin' as Null, which a dataset cannot hold"),
    (
        'flights.with_columns(at=pl.when(pl.col("delay") < 0).then(None).otherwise("at"))',
        r"gave [\d,]+ rows without 'at', such as origin=",
    ),
    (
        'pl.concat([flights, flights.head(2)])',
        "gave 4 rows that share their origin, carrier, at, such as origin=EWR",
    ),
    ('flights["delay"]', "gave Series, not a polars.DataFrame"),
    ('flights.select("nothing")', r"failed: ColumnNotFoundError: .*nothing.* at mod_\w+.py:5"),
]  # fmt: skip


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize(("spoil", "message"), SPOILED)
def test_what_the_function_must_not_do(
    spoil: str, message: str, lake: Lake, context_of: Contexts, function: Callable[[str], str]
) -> None:
    fn = function(f"""
        import polars as pl
        def fn(inputs):
            flights = inputs["flights"]
            return {spoil}
    """)
    context = context_of(table(fn, key=("origin", "carrier")))
    with pytest.raises(DefinitionInvalid, match=message) as failed:
        tables.execute(context)
    if "failed" in message:
        assert "Traceback" in failed.value.__notes__[0]
        assert spoil in failed.value.__notes__[0]
    assert context.outputs == []
    assert lake.version("daily") is None
    assert not list(Path(lake.path("daily")).rglob("*.parquet"))


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            'flights.cast({"delay": pl.Int64 if "EWR" in flights["origin"] else pl.Float64})',
            r"partitions of different types: delay is (Int64|Float64) in partition \d and",
        ),
        ('flights.with_columns(origin=pl.lit("JFK"))', "gave a row of another partition"),
        (
            'flights.select("nope" if "EWR" in flights["origin"] else pl.all())',
            r"failed on partition \d of 16: Column",
        ),
    ],
)
def test_what_the_function_must_not_do_by_partition(
    spoil: str, message: str, lake: Lake, context_of: Contexts, function: Callable[[str], str]
) -> None:
    fn = function(f"""
        import polars as pl
        def fn(inputs):
            flights = inputs["flights"]
            return {spoil}
    """)
    definition = table(fn, key=("origin", "carrier"), partition_by=("origin",), partitions=16)
    with pytest.raises(DefinitionInvalid, match=message):
        tables.execute(context_of(definition))
    assert lake.version("daily") is None


@pytest.mark.usefixtures("inputs")
def test_definitions_that_cannot_be_computed(context_of: Contexts, function: Callable[[str], str]) -> None:
    fn = function(MEAN_DELAY)
    with pytest.raises(NotFound, match="dataset 'planes' has no version yet"):
        tables.execute(context_of(table(fn, inputs_from=("planes",))))
    with pytest.raises(DefinitionInvalid, match="none of its inputs has the columns name, origin"):
        tables.execute(context_of(table(fn, partition_by=("name", "origin"))))
    with pytest.raises(DefinitionInvalid, match="gone_away:fn cannot be imported"):
        tables.execute(context_of(table("gone_away:fn")))


def test_the_partitions_of_all_rows_are_all_the_rows() -> None:
    """Equal keys of unlike integer types meet; every row is in exactly one partition."""
    wide = pl.DataFrame({"a": range(-500, 500)})
    narrow = wide.cast(pl.Int16)
    work = table("x:y", key=("a",), time=None, partition_by=("a",))
    at = [
        frame.select(tables._hash(frame.schema, work.partition_by) % 7).to_series()
        for frame in (wide, narrow)
    ]
    assert at[0].equals(at[1])
    assert set(at[0]) == set(range(7))
