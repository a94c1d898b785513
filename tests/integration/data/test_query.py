"""Datasets made by a query over others: of the versions that the run read, and the same when repeated."""

from __future__ import annotations

from collections.abc import Callable

import polars as pl
import pytest

from manta import Query
from manta.data import ingest
from manta.data.lake import Lake, quarantine_of
from manta.definitions import Column, Contract, Definition, Ingest, Ref
from manta.errors import ContractBroken, DefinitionInvalid, SourceUnreadable
from manta.ledger.context import RunContext
from manta.ledger.runs import State

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]
Succeed = Callable[[RunContext], None]

SQL = """
select carrier, avg(f.delay) as delay, count(*) as flights
from flights f join carriers c using (carrier) where c.known group by carrier;
"""
DAILY = Ingest(
    dataset="daily",
    source=Query(sql=SQL, inputs=("flights", "carriers")),
    contract=Contract(
        columns={
            "carrier": Column(type="string", pattern="[A-Z]+"),
            "delay": Column(type="float64", max=100.0),
            "flights": Column(type="int64"),
        },
        key=("carrier",),
        max_refused=0.5,
    ),
)


@pytest.fixture
def inputs(lake: Lake, context_of: Contexts) -> Callable[..., None]:
    """Makes a version of a dataset, and tells the ledger."""

    def make(name: str, frame: pl.DataFrame) -> None:
        definition = Ingest(
            dataset=name, source=Query(sql="select 1", inputs=("x",)), contract=Contract(columns={})
        )
        context = context_of(definition)
        version = lake.replace(name, frame, run_key=context.run_key)
        context.produced("dataset", name, version)
        context.ledger.move(context.ledger.run(context.run.id), State.SUCCEEDED, outputs=context.outputs)

    return make


def flights(*rows: tuple[str, float]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema={"carrier": pl.String, "delay": pl.Float64}, orient="row")


def carriers(*names: str) -> pl.DataFrame:
    return pl.DataFrame({"carrier": names, "known": [True] * len(names)})


def test_a_query_reads_pinned_versions_and_is_held_to_the_contract(
    inputs: Callable[..., None], lake: Lake, context_of: Contexts
) -> None:
    inputs("flights", flights(("UA", 1.0), ("UA", 3.0), ("AA", 500.0), ("XX", 1.0)))
    inputs("carriers", carriers("UA", "AA"))
    assert DAILY.inputs() == (Ref("dataset", "flights"), Ref("dataset", "carriers"))
    context = context_of(DAILY)
    ingest.execute(context)
    assert lake.read("daily").rows() == [("UA", 2.0, 2)]
    (refused,) = lake.read(quarantine_of("daily")).rows(named=True)
    assert refused["reason"] == "delay: 500.0 is above 100"
    read = context.ledger.run(context.run.id).inputs
    assert {str(version) for version in read} == {"dataset:flights@0", "dataset:carriers@0"}


def test_of_the_same_versions_it_makes_the_same(
    inputs: Callable[..., None], lake: Lake, context_of: Contexts
) -> None:
    many = pl.DataFrame({"carrier": ["UA", "AA", "DL"] * 40_000}).with_columns(
        delay=(pl.int_range(pl.len()) * 0.1).sin()
    )
    inputs("flights", many)
    inputs("carriers", carriers("UA", "AA", "DL"))
    for _ in range(2):
        ingest.execute(context_of(DAILY))
    assert lake.read("daily", 0).equals(lake.read("daily", 1)), "to the last bit, and in the same order"
    oracle = many.group_by("carrier").agg(pl.col("delay").mean())
    made = lake.read("daily").join(oracle, on="carrier")
    assert made["delay"].to_list() == pytest.approx(made["delay_right"].to_list())


def test_inputs_without_rows_and_with_added_columns(
    inputs: Callable[..., None], lake: Lake, context_of: Contexts
) -> None:
    inputs("flights", flights())
    inputs("carriers", carriers("UA"))
    ingest.execute(context_of(DAILY))
    assert lake.read("daily").is_empty()


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("select * from flight", "Table with name flight does not exist"),
        ("select * from read_csv('/etc/passwd')", "disabled"),
        ("copy flights to '/tmp/x.csv'", "syntax error|Parser"),
        ("select carrier, cast(carrier as int) as delay, 1 as flights from flights", "Could not convert"),
    ],
)
def test_queries_that_cannot_be_run(
    inputs: Callable[..., None], lake: Lake, context_of: Contexts, sql: str, told: str
) -> None:
    inputs("flights", flights(("UA", 1.0)))
    job = DAILY.replace(source=Query(sql=sql, inputs=("flights",)))
    with pytest.raises(SourceUnreadable, match=told) as failed:
        ingest.execute(context_of(job))
    assert "manta data sql" in failed.value.hint
    assert lake.version("daily") is None


def test_a_query_needs_its_inputs_named() -> None:
    with pytest.raises(DefinitionInvalid, match="at least 1 item"):
        Ingest(**(DAILY.model_dump() | {"source": {"kind": "query", "sql": "select 1", "inputs": []}}))


def test_a_query_without_any_column_of_the_contract_is_refused(
    inputs: Callable[..., None], lake: Lake, context_of: Contexts
) -> None:
    inputs("flights", flights(("UA", 1.0)))
    other = DAILY.replace(source=Query(sql="select carrier as airline from flights", inputs=("flights",)))
    with pytest.raises(ContractBroken, match="has no column 'carrier'"):
        ingest.execute(context_of(other))
    assert lake.version("daily") is None
