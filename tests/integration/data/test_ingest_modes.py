"""Ingests that add to what is there: append, upsert, cursors, runs in between, contracts that change."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
import pytest

from manta.data import cursors, ingest
from manta.data.lake import Lake
from manta.definitions import Check, Column, Contract, Definition, Ingest, from_json
from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import ContractBroken, DefinitionInvalid, SchemaChanged
from manta.ledger.context import RunContext
from manta.settings import Settings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]
Contexts = Callable[[Definition], RunContext]
READ = threading.Event()


class Span(NamedTuple):
    file: str
    size: int
    path: str
    start: int
    stop: int


class Lines(Source):
    """A file of numbers, one a line, that only grows; what it gives is numbered by the line, from 0."""

    kind: Literal["files"] = "files"  # (JSON goes through the real one; nothing here parses it)
    path: str
    again: int = 0  # lines before the cursor that are read again

    @property
    def incremental(self) -> bool:
        return True

    @property
    def overlaps(self) -> bool:
        return self.again > 0

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        path = ask.root / self.path
        lines = len(path.read_text().splitlines())
        begin = max(0, (ask.cursor or 0) - self.again)
        READ.set()
        new = lines > (ask.cursor or 0)
        spans = [Span("lines", 1, str(path), at, min(at + 3, lines)) for at in range(begin, lines, 3)]
        yield Reading(spans if new else [], f"{begin}-{lines}", cursor=lines)

    def read(self, piece: Span, ask: Ask) -> Iterator[Rows]:
        lines = Path(piece.path).read_text().splitlines()[piece.start : piece.stop]
        frame = pl.DataFrame([line.split() for line in lines], schema=["key", "value"], orient="row")
        yield Rows(frame.height, frame, [], frame.columns, numbers=range(piece.start, piece.stop))


COLUMNS = {"key": Column(type="int64"), "value": Column(type="int64", min=0)}
PLAIN = Contract(columns=COLUMNS, max_refused=0.5)
KEYED = Contract(columns=COLUMNS, key=("key",), max_refused=0.5)


@pytest.fixture
def grow(settings: Settings) -> Callable[[str], None]:
    def write(lines: str) -> None:
        with (settings.root / "lines.txt").open("a") as file:
            file.writelines(f"{line.strip()}\n" for line in lines.split(","))

    return write


def pairs(lake: Lake, version: int | None = None) -> list[tuple[Any, ...]]:
    return sorted(lake.read("numbers", version).rows())


def profile(lake: Lake, version: int) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(
        Path(lake.path("numbers"), lake.metadata("numbers", version)["profile"]).read_text()
    )
    return told


def run(context: RunContext) -> int:
    ingest.execute(context)
    return int(context.outputs[0].version)


def test_append_reads_on_where_it_stopped(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts
) -> None:
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt"), contract=PLAIN)
    assert job.mode == "append"
    grow("1 10, 2 20, 3 -1, 4 40")
    assert run(context_of(job)) == 0
    grow("1 11, 5 -5")
    second = context_of(job)
    assert run(second) == 1
    assert pairs(lake, 0) == [(1, 10), (2, 20), (4, 40)]
    assert pairs(lake) == [(1, 10), (1, 11), (2, 20), (4, 40)]
    assert second.metrics == {"rows": 1, "refused": 1}
    assert lake.metadata("numbers")["cursors"] == {"numbers": 6}
    assert profile(lake, 0)["columns"]["value"]["max"] == 40
    assert profile(lake, 1)["rows"] == 1  # of what the version added
    refused = lake.read("numbers__quarantine").sort("row")
    assert refused["row"].to_list() == [2, 5]  # as the source numbers them
    assert refused["run"].n_unique() == 2
    # Nothing new: no version, and the run reports the one there is.
    third = context_of(job)
    assert run(third) == 1
    assert third.metrics == {"rows": 0, "refused": 0}
    assert lake.version("numbers") == 1


def test_a_long_cursor_is_kept_beside_the_rows(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursors, "LONGEST", 0)
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt"), contract=PLAIN)
    grow("1 1, 2 -2")
    run(context_of(job))
    grow("3 -3, 4 -4")  # none of them good: the version has no file but the cursor's and the profile's
    run(context_of(job.replace(contract=Contract(columns=COLUMNS, max_refused=1.0))))
    grow("5 5")
    run(context_of(job))
    assert pairs(lake) == [(1, 1), (5, 5)]
    (kept,) = lake.metadata("numbers")["cursors"].values()
    assert Path(lake.path("numbers"), kept["manta:file"]).read_text() == "5"


def test_a_version_without_rows_has_a_profile_too(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts
) -> None:
    grow("1 -1")
    contract = Contract(columns=COLUMNS, max_refused=1.0)
    run(context_of(Ingest(dataset="numbers", source=Lines(path="lines.txt"), contract=contract)))
    told = profile(lake, 0)
    assert told["rows"] == 0
    assert list(told["columns"]) == ["key", "value"]


def test_append_refuses_a_key_that_an_earlier_version_has(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts
) -> None:
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt"), contract=KEYED, mode="append")
    grow("1 10, 2 20")
    run(context_of(job))
    grow("3 30, 2 21, 4 40, 4 41")
    run(context_of(job))
    assert pairs(lake) == [(1, 10), (2, 20), (3, 30), (4, 40)]
    assert sorted(lake.read("numbers__quarantine").select("row", "reason").rows()) == [
        (3, "key (key) is in version 0 already"),
        (5, "key (key) is that of lines row 4"),
    ]


def test_upsert_replaces_rows_by_key_and_leaves_other_files_alone(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts
) -> None:
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt", again=2), contract=KEYED)
    assert job.mode == "upsert"
    grow(", ".join(f"{key} 0" for key in range(9)))
    run(context_of(job))
    before = set(lake.files("numbers"))
    assert len(before) == 3
    grow("0 1, 9 1, 0 2")  # and lines 7 and 8 come again
    run(context_of(job))
    assert pairs(lake) == [(0, 2), *((key, 0) for key in range(1, 9)), (9, 1)]
    assert len(before & set(lake.files("numbers"))) == 1, "the file of keys 3 to 5 holds nothing that came"
    assert pairs(lake, 0) == [(key, 0) for key in range(9)], "versions stay what they were"
    assert lake.metadata("numbers")["refused"] == 0


def test_what_is_rewritten_again_and_again_keeps_a_short_name(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts
) -> None:
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt", again=1), contract=KEYED)
    longest = []
    for lines in ("0 0, 1 0, 2 0", "0 1, 3 1", "1 2, 3 2", "0 3, 3 3"):  # files of one name in each folder
        grow(lines)
        run(context_of(job))
        longest.append(max(len(Path(file).name) for file in lake.files("numbers")))
    assert pairs(lake) == [(0, 3), (1, 2), (2, 0), (3, 3)]
    assert longest[1] == longest[-1], "of the file that still holds key 2, rewritten twice"


def test_a_run_that_is_overtaken_reads_again(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run commits the same rows while this one reads them: none is doubled, none is lost."""
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt"), contract=PLAIN)
    grow("1 1, 2 2")
    other = context_of(job)
    land = ingest.land

    def land_late(*arguments: Any) -> Any:
        landed = land(*arguments)
        monkeypatch.setattr(ingest, "land", land)
        run(other)
        grow("3 3, 4 -4")
        return landed

    monkeypatch.setattr(ingest, "land", land_late)
    assert run(context_of(job)) == 1
    assert pairs(lake) == [(1, 1), (2, 2), (3, 3)]
    assert lake.metadata("numbers")["cursors"] == {"numbers": 4}


def test_a_contract_may_add_columns_and_nothing_else(
    settings: Settings, lake: Lake, context_of: Contexts, grow: Callable[[str], None]
) -> None:
    source = Lines(path="lines.txt")
    job = Ingest(dataset="numbers", source=source, contract=PLAIN)
    grow("1 1")
    run(context_of(job))
    note = Column(type="string", nullable=True)

    def with_columns(**columns: Column) -> Ingest:
        return job.replace(contract=Contract(columns=columns))

    for changed, told in [
        (with_columns(key=Column(type="string"), value=COLUMNS["value"]), "'key' is int64 and would become"),
        (with_columns(key=COLUMNS["key"]), "'value' is dropped"),
        (with_columns(**COLUMNS, note=Column(type="string")), "'note' is added and may not be null"),
        (with_columns(**COLUMNS, note=note).replace(evolve="refuse"), "'note' is added"),
    ]:
        with pytest.raises(SchemaChanged, match=told):
            run(context_of(changed))
    assert lake.version("numbers") == 0


def test_an_added_column_is_null_in_the_rows_there_are(lake: Lake) -> None:
    lake.replace("d", pl.DataFrame({"a": [1]}), run_key="r1", metadata={"cursors": {"d": 1}})
    wider = pl.DataFrame({"a": [2], "b": ["x"]})
    from manta.data.lake import Change, write_part

    path = f"{lake.stage('d', 'r2')}/0.parquet"
    write_part(wider, path)
    seen = []

    def change(head: Any) -> Change:
        seen.append(head.metadata["cursors"])
        return Change([path], (), {"cursors": {"d": 2}})

    version = lake.change("d", change, run_key="r2", schema=wider.to_arrow().schema)
    assert lake.read("d").sort("a").rows() == [(1, None), (2, "x")]
    assert lake.committed("d", "r2") == version == lake.version("d")
    assert lake.read("d", 0).rows() == [(1,)]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"mode": "replace"}, "would lose what was there"),
        ({"source": Lines(path="x", again=1), "mode": "append"}, "takes mode='upsert'"),
        ({"mode": "upsert"}, "needs the contract's key"),
        ({"evolve": "any"}, "goes with mode='replace'"),
        (
            {"contract": Contract(columns={"key": Column(type="int64", nullable=True)}, key=("key",))},
            "may not be null",
        ),
    ],
)
def test_modes_that_do_not_fit_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(DefinitionInvalid, match=told):
        Ingest(**{"dataset": "numbers", "source": Lines(path="x"), "contract": PLAIN, **fields})


def test_the_mode_chosen_is_in_the_json_form() -> None:
    job = Ingest(dataset="numbers", source=Lines(path="x"), contract=KEYED)
    assert job.to_json()["mode"] == "upsert"
    assert job.to_json()["source"] == {"kind": "files", "path": "x", "again": 0}
    with pytest.raises(DefinitionInvalid, match=r"Files: again: Extra inputs"):
        from_json(job.to_json())


def test_a_row_too_few_or_one_check_broken_commits_nothing(
    grow: Callable[[str], None], lake: Lake, context_of: Contexts
) -> None:
    contract = Contract(columns=COLUMNS, min_rows=2, checks=(Check("grows", "value > key"),), max_refused=0.5)
    job = Ingest(dataset="numbers", source=Lines(path="lines.txt"), contract=contract)
    grow("1 10, 2 1")
    with pytest.raises(ContractBroken, match="1 good rows are fewer than min_rows=2; nothing was committed"):
        run(context_of(job))
    assert lake.version("numbers") is None
    assert lake.version("numbers__quarantine") is None
    grow("3 30")
    run(context_of(job))
    assert pairs(lake) == [(1, 10), (3, 30)]
    assert lake.read("numbers__quarantine")["reason"].to_list() == [
        "grows: not value > key (value = 1, key = 2)"
    ]
    wrong = job.replace(contract=contract.replace(checks=(Check("it", "nothing > 1"),)))
    with pytest.raises(DefinitionInvalid, match=r"check 'it'.*nothing"):
        run(context_of(wrong))
