"""Ingests on a Ray cluster: from files to a version, or to nothing at all."""

from __future__ import annotations

import csv
import io
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from manta.connectors import formats
from manta.connectors.files import Files
from manta.connectors.formats import csv as csv_format
from manta.data import ingest, landing
from manta.data.lake import Lake
from manta.definitions import Definition, Ingest, from_json
from manta.definitions.datasets import Column, Contract
from manta.errors import ContractBroken, DefinitionInvalid, MantaError, SourceUnreadable
from manta.ledger.context import RunContext
from manta.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]

CONTRACT = Contract(
    columns={
        "flight": Column(type="int64", min=1),
        "carrier": Column(type="string", one_of=("UA", "AA")),
        "delay": Column(type="float64", nullable=True),
        "at": Column(type="timestamp"),
    },
    key=("carrier", "flight"),
    max_refused=0.5,
)
FLIGHTS = Ingest(
    dataset="flights", source=Files(path="data/*.csv", null_values=("", "NA")), contract=CONTRACT
)
HEADER = "at,carrier,flight,unused,delay\n"


@pytest.fixture
def data(settings: Settings) -> Path:
    folder = settings.root / "data"
    folder.mkdir()
    return folder


def line(flight: object, carrier: str = "UA", delay: str = "1.5", at: str = "2013-01-01T05:00:00Z") -> str:
    return f"{at},{carrier},{flight},x,{delay}\n"


def nothing_is_left(lake: Lake, dataset: str = "flights") -> bool:
    return lake.version(dataset) is None and not list(Path(lake.path(dataset)).rglob("*.parquet"))


def test_good_rows_land_and_bad_ones_go_to_quarantine(data: Path, lake: Lake, context_of: Contexts) -> None:
    (data / "1.csv").write_text(
        HEADER + line(1) + line("x", delay="late") + line(2, delay="NA") + line(1, "AA")
    )
    (data / "2.csv").write_text(HEADER + line(1, delay="9") + "too,few\n" + line(3, at="2013-01-01 00:00"))
    context = context_of(FLIGHTS)
    ingest.execute(context)

    rows = lake.read("flights")
    assert rows.columns == list(CONTRACT.columns)
    assert rows.schema["at"] == pl.Datetime("us", "UTC")
    assert rows.select("carrier", "flight", "delay").rows() == [
        ("UA", 1, 1.5),
        ("UA", 2, None),
        ("AA", 1, 1.5),
        ("UA", 3, 1.5),
    ]
    refused = lake.read("flights__quarantine")
    assert set(refused["run"]) == {context.run_key}
    assert sorted(refused.select("file", "row", "reason").iter_rows()) == [
        ("1.csv", 2, "flight: 'x' is not int64; delay: 'late' is not float64"),
        ("2.csv", 1, "key (carrier, flight) is that of 1.csv row 1"),
        ("2.csv", 2, "the row has 2 fields, the header 5"),
    ]
    assert refused.filter(pl.col("row") == 2, pl.col("file") == "2.csv")["source"].item() == "too,few"
    (output,) = context.outputs
    assert (str(output), output.detail) == ("dataset:flights@0", {"rows": 4, "refused": 3})
    assert context.metrics == {"rows": 4, "refused": 3}
    run = context.ledger.run(context.run.id)
    token = FLIGHTS.source.observe(context.root)
    assert [str(version) for version in run.inputs] == [f"source:flights@{token}"]
    assert run.progress is not None
    assert run.progress.done == pytest.approx(run.progress.total)
    assert lake.metadata("flights")["source"] == token


def test_each_run_replaces_the_content_and_the_quarantine(
    data: Path, lake: Lake, context_of: Contexts
) -> None:
    (data / "1.csv").write_text(HEADER + line(1) + line("x"))
    ingest.execute(context_of(FLIGHTS))
    (data / "1.csv").write_text(HEADER + line(7) + line(8))
    ingest.execute(context_of(FLIGHTS))
    assert lake.read("flights")["flight"].to_list() == [7, 8]
    assert lake.read("flights", 0)["flight"].to_list() == [1]
    assert lake.read("flights__quarantine").is_empty()


def test_too_many_refused_rows_commit_nothing(data: Path, lake: Lake, context_of: Contexts) -> None:
    (data / "1.csv").write_text(HEADER + line(1) + line("x") + line("y") + line(1) + "\n")
    with pytest.raises(ContractBroken) as failed:
        ingest.execute(context_of(FLIGHTS))
    message = str(failed.value)
    assert "3 of 4 rows (75.000%) are refused, the contract allows 50.000%; nothing was committed" in message
    assert "2 × flight is not int64 (1.csv row 2: flight: 'x' is not int64)" in message
    assert "1 × key (carrier, flight) is repeated (1.csv row 4:" in message
    assert nothing_is_left(lake)
    assert nothing_is_left(lake, "flights__quarantine")


def test_a_failed_run_leaves_the_version_before_it(data: Path, lake: Lake, context_of: Contexts) -> None:
    (data / "1.csv").write_text(HEADER + line(1))
    ingest.execute(context_of(FLIGHTS))
    (data / "1.csv").write_text(HEADER + line("x"))
    context = context_of(FLIGHTS)
    with pytest.raises(ContractBroken):
        ingest.execute(context)
    assert context.outputs == []
    assert lake.version("flights") == 0
    assert len(list(Path(lake.path("flights")).rglob("*.parquet"))) == 1


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (
            HEADER.replace("delay", "dep_delay") + line(1),
            ContractBroken,
            r"1.csv has no column 'delay' .*'dep_delay': renamed",
        ),
        (None, SourceUnreadable, r"no file matches 'data/\*.csv'"),
        ("", SourceUnreadable, r"1.csv is empty: its first line must name the columns"),
    ],
)
def test_a_source_that_cannot_be_used(
    content: str | None, error: type[MantaError], message: str, data: Path, lake: Lake, context_of: Contexts
) -> None:
    (data / "0.csv").write_text(HEADER + line(1))
    if content is None:
        (data / "0.csv").unlink()
    else:
        (data / "1.csv").write_text(content)
    with pytest.raises(error, match=message) as failed:
        ingest.execute(context_of(FLIGHTS))
    assert failed.value.hint
    assert nothing_is_left(lake)


def test_a_source_without_rows_makes_an_empty_version(data: Path, lake: Lake, context_of: Contexts) -> None:
    (data / "1.csv").write_text(HEADER)
    ingest.execute(context_of(FLIGHTS))
    assert lake.read("flights").columns == list(CONTRACT.columns)
    assert lake.read("flights").is_empty()


def test_an_unknown_kind_of_source() -> None:
    definition = FLIGHTS.to_json() | {"source": {"kind": "pigeon", "path": "data/*.csv"}}
    with pytest.raises(DefinitionInvalid, match=r"no connector 'pigeon'; there are .*files"):
        from_json(definition)


def test_a_source_that_changes_while_it_is_read(
    data: Path, lake: Lake, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data / "1.csv").write_text(HEADER + line(1))
    land = ingest.land

    def land_while_somebody_writes(*arguments: object) -> object:
        landed = land(*arguments)  # type: ignore[arg-type]
        (data / "2.csv").write_text(HEADER + line(2))
        return landed

    monkeypatch.setattr(ingest, "land", land_while_somebody_writes)
    with pytest.raises(SourceUnreadable, match="changed while they were read"):
        ingest.execute(context_of(FLIGHTS))
    assert nothing_is_left(lake)


def test_a_run_executed_again_after_its_commit_reports_what_it_made(
    data: Path, lake: Lake, context_of: Contexts
) -> None:
    (data / "1.csv").write_text(HEADER + line(1) + line("x"))
    context = context_of(FLIGHTS)
    ingest.execute(context)
    (data / "1.csv").write_text(HEADER + line(5))
    again = RunContext(context.settings, context.ledger, context.run, FLIGHTS, context.root)
    ingest.execute(again)
    assert again.outputs == context.outputs
    assert again.metrics == context.metrics
    assert lake.version("flights") == 0
    assert lake.version("flights__quarantine") == 0


def test_large_csv_files_are_cut_between_records(
    data: Path, lake: Lake, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Quoted newlines, broken rows and repeated keys: all with the row numbers of the whole file."""
    for module in (formats, csv_format):
        monkeypatch.setattr(module, "PIECE_BYTES", 5_000)
    monkeypatch.setattr(landing, "TASK_MEGABYTES", 0.02)  # and several tasks at work on it
    text = io.StringIO()
    text.write("id,note,extra\n")
    writer = csv.writer(text, lineterminator="\r\n")
    bad = set(range(100, 6_000, 371))
    for row in range(1, 6_001):
        if row in bad:
            text.write(f"{row},lost\r\n")
        else:
            writer.writerow(
                [row if row != 5_500 else 17, f'say "{row}",\nor\n\n"not"' if row % 5 else "", "z"]
            )
    (data / "big.csv").write_text(text.getvalue(), newline="")
    contract = Contract(
        columns={"id": Column(type="int64"), "note": Column(type="string", nullable=True)},
        key=("id",),
        max_refused=0.1,
    )
    job = Ingest(dataset="notes", source=Files(path="data/big.csv"), contract=contract)
    ingest.execute(context_of(job))
    rows = lake.read("notes")
    assert rows["id"].to_list() == [row for row in range(1, 6_001) if row not in bad and row != 5_500]
    assert rows["note"][6] == 'say "7",\nor\n\n"not"'
    assert len(list(Path(lake.path("notes")).rglob("*.parquet"))) > 10
    refused = lake.read("notes__quarantine").sort("row")
    assert refused["row"].to_list() == sorted(bad | {5_500})
    assert refused.filter(pl.col("row") == 5_500)["reason"].item() == "key (id) is that of big.csv row 17"


def test_a_csv_with_stray_quotes_is_read_in_one_piece(
    data: Path, lake: Lake, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_format, "PIECE_BYTES", 500)
    notes = ['a 5" pipe', '"two\nlines"']
    (data / "big.csv").write_text("id,note\n" + "".join(f"{row},{notes[row % 2]}\n" for row in range(400)))
    contract = Contract(columns={"id": Column(type="int64"), "note": Column(type="string")})
    ingest.execute(context_of(Ingest(dataset="pipes", source=Files(path="data/big.csv"), contract=contract)))
    assert lake.read("pipes").rows() == [(row, ['a 5" pipe', "two\nlines"][row % 2]) for row in range(400)]


def test_jsonl_and_parquet(data: Path, lake: Lake, context_of: Contexts) -> None:
    contract = Contract(
        columns={"id": Column(type="int64"), "tag": Column(type="string", nullable=True)}, max_refused=0.5
    )
    (data / "a.jsonl").write_text('{"id": 1, "tag": "x"}\n{"id": "2"}\nnonsense\n{"id": 2.5}\n')
    source = Files(path="data/a.jsonl", format="jsonl")
    ingest.execute(context_of(Ingest(dataset="a", source=source, contract=contract)))
    assert lake.read("a").rows() == [(1, "x"), (2, None)]
    assert lake.read("a__quarantine")["row"].to_list() == [3, 4]

    pl.DataFrame({"tag": ["x", None], "id": [1, 2]}).write_parquet(data / "b.parquet")
    source = Files(path="data/b.parquet", format="parquet")
    ingest.execute(context_of(Ingest(dataset="b", source=source, contract=contract)))
    assert lake.read("b").rows() == [(1, "x"), (2, None)]


def test_a_name_that_no_json_object_has_is_a_renamed_column(
    data: Path, lake: Lake, context_of: Contexts
) -> None:
    contract = Contract(columns={"id": Column(type="int64"), "tag": Column(type="string", nullable=True)})
    (data / "a.jsonl").write_text(json.dumps({"id": 1, "tags": "x"}) + "\n")
    source = Files(path="data/a.jsonl", format="jsonl")
    with pytest.raises(ContractBroken, match=r"no column 'tag' \(the closest is 'tags'"):
        ingest.execute(context_of(Ingest(dataset="a", source=source, contract=contract)))
    assert nothing_is_left(lake, "a")


def test_a_damaged_file_among_good_ones_is_named(data: Path, lake: Lake, context_of: Contexts) -> None:
    for number in range(4):
        pl.DataFrame({"id": [number]}).write_parquet(data / f"{number}.parquet")
    damaged = bytearray((data / "2.parquet").read_bytes())
    damaged[4:20] = os.urandom(16)
    (data / "2.parquet").write_bytes(damaged)
    contract = Contract(columns={"id": Column(type="int64")})
    source = Files(path="data/*.parquet", format="parquet")
    with pytest.raises(SourceUnreadable, match=r"2.parquet cannot be read as parquet"):
        ingest.execute(context_of(Ingest(dataset="a", source=source, contract=contract)))
    assert nothing_is_left(lake, "a")


def test_concurrent_runs_of_one_ingest_each_make_a_version(
    data: Path, lake: Lake, context_of: Contexts
) -> None:
    (data / "1.csv").write_text(HEADER + "".join(line(row) for row in range(1, 500)))
    contexts = [context_of(FLIGHTS) for _ in range(3)]
    threads = [threading.Thread(target=ingest.execute, args=(context,)) for context in contexts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(context.outputs[0].version for context in contexts) == ["0", "1", "2"]
    assert all(lake.read("flights", version).height == 499 for version in range(3))


def test_a_run_that_died_before_its_commit_is_done_by_the_next_attempt(
    data: Path, lake: Lake, context_of: Contexts
) -> None:
    (data / "1.csv").write_text(HEADER + line(1) + line("x"))
    context = context_of(FLIGHTS)
    in_the_way = Path(lake.path("flights")) / "_delta_log"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.write_text("not a folder")
    with pytest.raises(Exception, match=r"(?i)not a directory|exists|_delta_log"):
        ingest.execute(context)
    assert lake.version("flights") is None
    in_the_way.unlink()
    again = RunContext(context.settings, context.ledger, context.run, FLIGHTS, context.root)
    ingest.execute(again)
    assert lake.read("flights")["flight"].to_list() == [1]
    assert lake.version("flights__quarantine") == 0
    # What the first attempt had staged is gone.
    assert len(list(Path(lake.path("flights")).rglob("*.parquet"))) == 1
