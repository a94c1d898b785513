"""What runs have made, as people and jobs read it: with the runs' own ids, refusals, keys and profiles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import manta
from manta.connectors.files import Files
from manta.data import ingest
from manta.data.lake import Lake
from manta.data.profile import finish, sketch
from manta.data.reading import Datasets
from manta.definitions import Column, Contract, Definition, Ingest, Job
from manta.errors import NotFound, Unavailable
from manta.ledger.context import RunContext
from manta.settings import Settings
from manta.worker import job

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]

PRICES = Ingest(
    dataset="prices",
    source=Files(path="prices.csv"),
    mode="upsert",
    contract=Contract(
        columns={"sku": Column(type="string"), "price": Column(type="float64", min=0)},
        key=("sku",),
        max_refused=0.5,
    ),
)


@pytest.fixture
def prices(
    settings: Settings, context_of: Contexts, succeed: Callable[[RunContext], None]
) -> Callable[[str], int]:
    """Run the ingest over these rows; the run's id."""

    def run(rows: str) -> int:
        Path(settings.root, "prices.csv").write_text("sku,price\n" + rows.replace(" ", "\n"))
        context = context_of(PRICES)
        ingest.execute(context)
        succeed(context)
        return context.run.id

    return run


def test_what_ingests_made_is_read_by_version(
    settings: Settings, lake: Lake, prices: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = prices("a,1 b,2 c,-1 d,4"), prices("b,20 d,4 e,5 f,-1 g,-1")
    datasets = Datasets(settings.datasets)
    newest, oldest = datasets.history("prices")
    assert [(each.version, each.run, each.mode, each.by) for each in (oldest, newest)] == [
        (0, first, "upsert", "prices"),
        (1, second, "upsert", "prices"),
    ]
    assert [(each.rows, each.refused) for each in (oldest, newest)] == [(3, 1), (3, 2)]
    assert datasets.list()[0].quarantined == 3
    refused = datasets.quarantine("prices")
    assert refused["row"].to_list() == [3, 4, 5]
    assert datasets.quarantine("prices", 0)["reason"].to_list() == [refused["reason"][0]]
    assert datasets.quarantine("prices@1").height == 2
    # The profile that the ingest kept is of the rows that it brought: of the whole only in the first version.
    for version in (0, 1):
        rows = datasets.read("prices", version).polars()
        assert datasets.profile("prices", version)["columns"] == finish(sketch(rows))["columns"]
    # As of then, and over both.
    assert datasets.read("prices", as_of=oldest.at).version == 0
    query = "select sum(n.price - o.price) from prices n join prices@0 o using (sku)"
    assert datasets.sql(query).polars().item() == 18
    # Compaction comes between two ingests, and the next finds the cursors and keys that it needs.
    before = datasets.read("prices").polars()
    assert datasets.compact("prices").version == 2
    assert datasets.read("prices").polars().equals(before)
    prices("a,9")
    assert sorted(datasets.read("prices").polars().rows()) == [
        ("a", 9.0),
        ("b", 20.0),
        ("d", 4.0),
        ("e", 5.0),
    ]
    assert datasets.quarantine("prices").height == 3

    # A notebook: the key is the contract's, as the run's definition has it.
    monkeypatch.setenv("MANTA_PROJECT", settings.project)
    with manta.connect(root=settings.root) as client:
        found = client.data.diff("prices", 0, 1)
        assert client.data.names() == ["prices"]
    assert found.key == ("sku",)
    assert (found.added, found.removed, found.changed) == (1, 0, 1)
    assert found.sample_changed[0].values == {"price": [2.0, 20.0]}


def test_ray_reads_the_same_rows(lake: Lake) -> None:
    rows = pl.DataFrame({"n": range(1000), "text": [f"t{n}" for n in range(1000)]})
    lake.replace("d", rows, run_key="r-1")
    datasets = Datasets(lake.folder)
    assert sorted(row["n"] for row in datasets.read("d").ray().take_all()) == list(range(1000))
    chosen = datasets.read("d", columns=["text"]).ray()
    assert chosen.schema().names == ["text"]
    lake.commit("bare", [], run_key="r-2", schema=rows.to_arrow().schema)
    assert datasets.read("bare").ray().count() == 0


def read_in_a_job(context: RunContext) -> None:
    rows = context.dataset("d")
    context.measured(total=rows.polars()["n"].sum(), version=rows.version, again=context.dataset("d").version)


def test_a_job_reads_the_version_that_it_records(
    lake: Lake, settings: Settings, context_of: Contexts, succeed: Callable[[RunContext], None]
) -> None:
    def commit(n: int) -> None:
        context = context_of(PRICES)
        version = lake.replace("d", pl.DataFrame({"n": [n]}), run_key=context.run_key)
        context.produced("dataset", "d", version)
        succeed(context)

    definition = Job(name="reads", fn="tests.integration.data.test_reading_run:read_in_a_job")
    context = context_of(definition)
    with pytest.raises(Unavailable):
        context.dataset("d")
    with pytest.raises(NotFound, match="'d' has no version yet"):
        job.execute(context)
    commit(7)
    lake.replace("d", pl.DataFrame({"n": [100]}), run_key="nobodys-run")  # the ledger does not know of it
    job.execute(context)
    assert context.metrics == {"total": 7, "version": 0, "again": 0}
    read: list[Any] = context.ledger.versions.inputs(context.run.id)
    assert [(each.kind, each.name, each.version) for each in read] == [("dataset", "d", "0")]
    commit(9)
    job.execute(context)  # another attempt of the run reads the same
    assert context.metrics["total"] == 7
