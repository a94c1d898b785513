"""Replays on a Ray cluster: the same versions give the same rows, and nothing becomes anybody's newest."""

from __future__ import annotations

import os
import secrets
import textwrap
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from manta.connectors.files import Files
from manta.data import ingest, tables
from manta.data.lake import Lake
from manta.definitions import Definition, FeatureTable, Ingest, Ref, from_json
from manta.definitions.datasets import Column, Contract
from manta.errors import InvalidInput, NotFound, SourceUnreadable
from manta.ledger.actor import OWNER
from manta.ledger.comparison import Comparison, comparison_of
from manta.ledger.context import RunContext
from manta.ledger.runs import State
from manta.settings import Settings
from manta.worker.replay import differ, repeat

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]
EXECUTE = {"ingest": ingest.execute, "feature-table": tables.execute}

FLIGHTS = Ingest(
    dataset="flights",
    source=Files(path="data/*.csv"),
    contract=Contract(
        columns={"flight": Column(type="int64"), "carrier": Column(type="string")}, key=("flight",)
    ),
)
COUNTS = """
    import polars as pl

    def fn(inputs):
        return inputs["flights"].group_by("carrier").agg(pl.len().alias("flights"))
"""
CHANCE = """
    import random
    import polars as pl

    def fn(inputs):
        counts = inputs["flights"].group_by("carrier").agg(pl.len().alias("flights"))
        chance = pl.when(pl.col("carrier") == "AA").then(random.random()).otherwise(0.5)
        return counts.with_columns(chance=chance)
"""


@pytest.fixture
def source(settings: Settings) -> Path:
    folder = settings.root / "data"
    folder.mkdir()
    for number in range(3):
        rows = "".join(f"{number * 1000 + row},{('UA', 'AA', 'B6')[row % 3]}\n" for row in range(500))
        (folder / f"{number}.csv").write_text("flight,carrier\n" + rows)
    return folder


def table(settings: Settings, code: str) -> FeatureTable:
    name = f"mod_{secrets.token_hex(4)}"
    (settings.root / f"{name}.py").write_text(textwrap.dedent(code))
    return FeatureTable(
        dataset="counts",
        inputs_from=("flights",),
        fn=f"{name}:fn",
        key=("carrier",),
        partition_by=("carrier",),
        partitions=3,
    )


@pytest.fixture
def ran(context_of: Contexts, succeed: Callable[[RunContext], None]) -> Callable[[Definition], RunContext]:
    def run(definition: Definition) -> RunContext:
        context = context_of(definition)
        EXECUTE[definition.kind](context)
        succeed(context)
        return context

    return run


def replayed(first: RunContext) -> RunContext:
    """A run that repeats ``first``, as the worker executes it."""
    run = first.ledger.submit(
        key=secrets.token_hex(8),
        project=first.run.project,
        job=first.run.job,
        kind=first.run.kind,
        definition=first.run.definition,
        fingerprint="f",
        package="p",
        replay_of=first.run.id,
        by=OWNER,
    )
    run = first.ledger.move(first.ledger.start(run, f"s-{run.id}"), State.RUNNING)
    context = RunContext(first.settings, first.ledger, run, from_json(run.definition), first.root)
    repeat(EXECUTE[run.kind], context)
    first.ledger.move(run, State.SUCCEEDED, outputs=context.outputs, metrics=context.metrics)
    return context


def compared(context: RunContext) -> Comparison:
    return comparison_of(context.ledger.run(context.run.id))


def test_an_ingest_is_repeated_exactly(source: Path, lake: Lake, ran: Contexts) -> None:
    first = ran(FLIGHTS)
    again = replayed(first)
    found = compared(again)
    assert found.equal is True
    (output,) = found.outputs
    assert output.output == "dataset:flights"
    assert (output.version, output.repeated) == ("0", "flights__replay@0")
    assert output.by == "content"
    assert lake.version("flights") == 0
    head = first.ledger.versions.head("test", Ref("dataset", "flights"))
    assert head is not None
    assert head.version == "0"
    assert first.ledger.last_success("test", "flights") == first.ledger.run(first.run.id)


def test_a_source_that_has_changed_is_refused(source: Path, lake: Lake, ran: Contexts) -> None:
    first = ran(FLIGHTS)
    os.utime(source / "1.csv", (1, 1))
    with pytest.raises(SourceUnreadable, match="has changed since run 1 read it"):
        replayed(first)
    assert lake.version("flights__replay") is None


def test_a_feature_table_reads_the_versions_of_then(
    source: Path, settings: Settings, lake: Lake, ran: Contexts
) -> None:
    ran(FLIGHTS)
    first = ran(table(settings, COUNTS))
    (source / "9.csv").write_text("flight,carrier\n99999,UA\n")
    ran(FLIGHTS)
    newer = ran(table(settings, COUNTS))
    again = replayed(first)
    assert compared(again).equal is True
    assert [str(each) for each in again.ledger.run(again.run.id).inputs] == ["dataset:flights@0"]
    assert lake.read("counts__replay").sort("carrier").equals(lake.read("counts", 0).sort("carrier"))
    assert lake.read("counts")["flights"].sum() == 1501
    head = first.ledger.versions.head("test", Ref("dataset", "counts"))
    assert head is not None
    assert head.version == newer.outputs[0].version == "1"


def test_what_differs_is_said(source: Path, settings: Settings, ran: Contexts) -> None:
    ran(FLIGHTS)
    found = compared(replayed(ran(table(settings, CHANCE))))
    assert found.equal is False
    (output,) = found.outputs
    assert output.detail == "1 rows are gone, 1 are new"


def test_what_the_first_run_did_not_read_is_not_guessed(
    source: Path,
    settings: Settings,
    context_of: Contexts,
    succeed: Callable[[RunContext], None],
    ran: Contexts,
) -> None:
    ran(FLIGHTS)
    blind = context_of(table(settings, COUNTS))
    succeed(blind)
    with pytest.raises(NotFound, match="run 2, which this run repeats, did not read dataset:flights"):
        replayed(blind)


ROWS = pl.DataFrame({"a": [1, 2, 2, None], "b": ["x", "y", "y", None]})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (ROWS.sample(fraction=1.0, shuffle=True, seed=3), ""),
        (ROWS.unique(), "1 rows are gone, 0 are new"),
        (pl.concat([ROWS, ROWS.head(1)]), "0 rows are gone, 1 are new"),
        (ROWS.with_columns(b=pl.col("b").fill_null("")), "1 rows are gone, 1 are new"),
        (ROWS.with_columns(pl.col("a").cast(pl.Float64)), "columns a"),
        (ROWS.with_columns(c=pl.lit(1)), "columns c"),
        (ROWS.select("b", "a"), "the order of columns"),
    ],
)
def test_tables_are_compared_row_by_row_whatever_their_order(other: pl.DataFrame, says: str) -> None:
    assert differ(ROWS.lazy(), other.lazy()) == says


def test_only_what_changes_nothing_may_be_repeated(source: Path, ran: Contexts) -> None:
    from manta.control.replay import check

    first = ran(FLIGHTS)
    run = first.ledger.run(first.run.id)
    check(run)
    for changed, says in (
        ({"kind": "materialize"}, "online store"),
        ({"kind": "feature-repo"}, "register"),
        ({"state": State.FAILED}, "nothing to compare"),
        ({"replay_of": 7}, "of run 7"),
    ):
        with pytest.raises(InvalidInput, match=says):
            check(run.model_copy(update=changed))
