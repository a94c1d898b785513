"""What every connector must do alike.

    class TestMine(ConnectorConformance):
        def put(self, rows, place):                       # into something real that the source can read
            rows.write_csv(place / "rows.csv")
            return Mine(path=str(place / "rows.csv"))

    ``place`` is a fixture: an empty folder, unless the class has its own (a server's address …).

    Further hooks, each for what a connector can do: ``more`` (an incremental source), ``broken`` (one that
    cannot be read, made without a server). What a source has no type for, it is given as :func:`texts`.

Ray must be up, or able to start. The rows are the same for every connector, and so is their :data:`CHECKSUM`.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import json
import pickle
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from manta.data import ingest
from manta.data.contract import check
from manta.data.lake import Lake, quarantine_of
from manta.data.values import schema
from manta.definitions import Column, Contract, Definition, Ingest, from_json
from manta.definitions.sources import Ask, Rows, Source
from manta.errors import SourceUnreadable
from manta.ledger.actor import OWNER
from manta.ledger.context import RunContext
from manta.ledger.runs import State
from manta.ledger.store import Ledger
from manta.settings import Settings

COUNT = 1000
START = datetime(2024, 2, 28, 23, 59, 59, 123456, tzinfo=UTC)
WORDS = [
    "plain",
    "naïve café",
    "日本語",
    "😀 emoji",
    'quo"ted',
    "com,ma",
    "semi;colon",
    " spaced ",
    "O'Hara",
    "back\\slash",
    "NULL",
    "0",
]

COLUMNS = {
    "id": Column(type="int64"),
    "amount": Column(type="int64", nullable=True),
    "ratio": Column(type="float64", nullable=True),
    "flag": Column(type="bool"),
    "name": Column(type="string", nullable=True),
    "at": Column(type="timestamp"),
    "day": Column(type="date", nullable=True),
    "price": Column(type="decimal(20, 4)", nullable=True),
    "local": Column(type="datetime", nullable=True),
    "blob": Column(type="binary", nullable=True),
    "tags": Column(type="list[string]", nullable=True),
    "place": Column(type="struct{city: string, lat: float64}", nullable=True),
    "nothing": Column(type="string", nullable=True),
}
CONTRACT = Contract(columns=COLUMNS, key=("id",))
# Of sha256 over the rows, in the order of their ids: see `checksum`.
CHECKSUM = "76e3a5d494d8de97"

_keys = count()


def rows(number: int = COUNT, start: int = 0) -> pl.DataFrame:
    """Rows whose values are hard on connectors: large integers, exact floats, unicode, quotes, nulls, a leap
    day; in the types of COLUMNS."""
    made = []
    for n in range(start, start + number):
        made.append(
            {
                "id": n,
                "amount": None if n % 11 == 3 else (-1) ** n * (2**53 + n),
                "ratio": None if n % 13 == 5 else n / 7 - 50,
                "flag": n % 3 == 0,
                "name": None if n % 17 == 2 else WORDS[n % len(WORDS)],
                "at": START + timedelta(microseconds=n * 86_399_999_999),
                "day": None if n % 19 == 7 else date(1969, 12, 30) + timedelta(days=n * 20),
                "price": None if n % 23 == 4 else Decimal((-1) ** n * (10**17 + n)).scaleb(-4),
                "local": None if n % 7 == 6 else datetime(1999, 12, 31, 23, 59, 59, n),
                "blob": None if n % 5 == 4 else bytes([n % 256, 0, 255]),
                "tags": None if n % 29 == 8 else [WORDS[n % len(WORDS)], "", None][: n % 4],
                "place": None if n % 31 == 9 else {"city": WORDS[n % 5], "lat": n / 3},
                "nothing": None,
            }
        )
    return pl.DataFrame(made, schema=schema(CONTRACT))


def texts(rows: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """The same with these columns as the texts that a contract reads: for a source that has no such type."""

    def text(value: Any) -> str | None:
        if value is None:
            return None
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        return json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else str(value)

    made = [pl.Series(name, [text(value) for value in rows[name].to_list()], pl.String) for name in columns]
    return rows.with_columns(made)


def checksum(frame: pl.DataFrame) -> str:
    """Of the values themselves, written out, so that no library's way of storing them counts."""
    digest = hashlib.sha256()
    for row in frame.sort("id").select(list(COLUMNS)).iter_rows():
        digest.update(repr([_plain(value) for value in row]).encode())
    return digest.hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return (value.astimezone(UTC) if value.tzinfo else value).isoformat()
    if isinstance(value, (date, Decimal)):
        return str(value)
    return value


def run_of(settings: Settings, definition: Definition) -> RunContext:
    """A run of the definition, as the worker would begin it, in the ledger of ``settings``."""
    settings.home.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(settings.ledger_url)
    ledger.create()
    run = ledger.submit(
        key=f"conformance-{next(_keys)}",
        project=settings.project,
        job=definition.name,
        kind=definition.kind,
        definition=definition.to_json(),
        fingerprint="f",
        package="p",
        by=OWNER,
    )
    run = ledger.move(ledger.start(run, f"s-{run.id}"), State.RUNNING)
    return RunContext(settings, ledger, run, definition, settings.root)


class ConnectorConformance:
    """Subclass it and write ``put``; see the module."""

    not_supported: ClassVar[Mapping[str, str]] = {}  # tests, each with the reason: strict xfails
    incremental: ClassVar[bool] = False  # whether `more` is there

    def put(self, rows: pl.DataFrame, place: Any) -> Source:
        """Write the rows, whose columns have the types of :func:`rows`, where the source reads them."""
        raise NotImplementedError

    def more(self, rows: pl.DataFrame, place: Any) -> None:
        """Add rows to what ``put`` has written; for an incremental source."""
        raise NotImplementedError

    def broken(self, place: Any) -> Source:
        """A source of this kind that is not there: no file, nobody listening."""
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> Any:
        folder = tmp_path / "place"
        folder.mkdir()
        return folder

    @pytest.fixture
    def project(self, tmp_path: Path) -> Settings:
        root = tmp_path / "project"
        root.mkdir()
        return Settings(project="conformance", root=root, home=root / ".manta")._resolved()

    @pytest.fixture(autouse=True)
    def _declared_gaps(self, request: pytest.FixtureRequest) -> None:
        name = getattr(request.node, "originalname", request.node.name)
        if name in self.not_supported:
            request.applymarker(pytest.mark.xfail(strict=True, reason=self.not_supported[name]))

    # --- without a cluster ----------------------------------------------------------------------------

    def test_the_rows_are_those_put(self, place: Any, project: Settings) -> None:
        source = self.put(rows(), place)
        assert_same(self.read(source, project), rows())

    def test_only_the_columns_asked_for(self, place: Any, project: Settings) -> None:
        source = self.put(rows(20), place)
        for batch in self.batches(source, Ask(project.root, ("name", "id"))):
            assert set(batch.values.columns) == {"name", "id"}

    def test_no_rows(self, place: Any, project: Settings) -> None:
        source = self.put(rows(0), place)
        assert self.read(source, project).is_empty()

    def test_a_column_that_is_not_there_is_not_made_up(self, place: Any, project: Settings) -> None:
        source = self.put(rows(20), place)
        found = self.batches(source, Ask(project.root, ("id", "colour")))
        assert not any("colour" in batch.columns for batch in found)
        # Of a format whose rows need not have all columns it is null; it is never a value.
        assert not any(batch.values["colour"].count() for batch in found if "colour" in batch.values.columns)

    def test_a_piece_read_again_gives_the_same(self, place: Any, project: Settings) -> None:
        """As when the process that read it died."""
        source = self.put(rows(200), place)
        ask = Ask(project.root, tuple(COLUMNS))
        with source.opened(ask) as reading:
            for piece in reading.pieces:
                again = pickle.loads(pickle.dumps(piece))
                first, second = ([*source.read(each, ask)] for each in (piece, again))
                assert [_batch(batch) for batch in first] == [_batch(batch) for batch in second]
                assert piece.file == again.file
                assert piece.size >= 0

    def test_rows_are_numbered_once(self, place: Any, project: Settings) -> None:
        source = self.put(rows(200), place)
        ask = Ask(project.root, ("id",))
        with source.opened(ask) as reading:
            numbers = [
                (piece.file, number)
                for piece in reading.pieces
                for batch in source.read(piece, ask)
                if batch.numbers is not None
                for number in batch.numbers
            ]
        assert len(numbers) == len(set(numbers))

    def test_its_definition_survives_json(self, place: Any) -> None:
        source = self.put(rows(1), place)
        job = Ingest(dataset="rows", source=source, contract=CONTRACT)
        assert from_json(job.to_json()) == job
        assert job.to_json()["source"]["kind"] == source.kind

    def test_a_source_that_is_not_there(self, place: Any, project: Settings) -> None:
        source = self.broken(place)
        with pytest.raises(SourceUnreadable) as failed:
            self.batches(source, Ask(project.root, ("id",)))
        assert failed.value.hint

    def test_importing_it_imports_no_driver(self, place: Any) -> None:
        module = type(self.put(rows(0), place)).__module__
        code = (
            f"import sys, {module}; heavy = {{'polars', 'pyarrow', 'ray', 'pandas', 'deltalake', 'numpy'}}; "
            "print(*sorted(heavy & set(sys.modules)))"
        )
        importlib.import_module(module)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == []

    def test_reading_on(self, place: Any, project: Settings) -> None:
        """Each row once, when every reading begins where the one before has ended."""
        if not self.incremental:
            assert not self.put(rows(1), place).incremental, "say `incremental = True`, and write `more`"
            return
        source = self.put(rows(300), place)
        assert source.incremental
        found, cursor = [], None
        for start in (300, 301, None):
            with source.opened(
                Ask(project.root, tuple(COLUMNS), pickle.loads(pickle.dumps(cursor)))
            ) as reading:
                ask = Ask(project.root, tuple(COLUMNS), cursor)
                found += [batch for piece in reading.pieces for batch in source.read(piece, ask)]
                cursor = reading.cursor
            if start is not None:
                self.more(rows(1 if start == 300 else 199, start), place)
        with source.opened(Ask(project.root, tuple(COLUMNS), cursor)) as reading:
            assert list(reading.pieces) == []
            assert reading.cursor == cursor
        frame = self.checked(found)
        if source.overlaps:
            frame = frame.unique("id")
        assert_same(frame, rows(500))

    # --- on a cluster ---------------------------------------------------------------------------------

    def test_ingested_it_has_the_checksum(self, place: Any, project: Settings) -> None:
        source = self.put(rows(), place)
        context = run_of(project, Ingest(dataset="rows", source=source, contract=CONTRACT))
        ingest.execute(context)
        lake = Lake(project.datasets)
        assert lake.version(quarantine_of("rows")) is None
        assert checksum(lake.read("rows")) == CHECKSUM
        assert context.metrics == {"rows": COUNT, "refused": 0}

    # --- inside ---------------------------------------------------------------------------------------

    def batches(self, source: Source, ask: Ask) -> list[Rows]:
        with source.opened(ask) as reading:
            found = [batch for piece in reading.pieces for batch in source.read(piece, ask)]
            reading.verify()
        return found

    def read(self, source: Source, project: Settings) -> pl.DataFrame:
        return self.checked(self.batches(source, Ask(project.root, tuple(COLUMNS))))

    def checked(self, batches: list[Rows]) -> pl.DataFrame:
        """What the contract makes of them; it must refuse none."""
        found = [rows(0)]
        for batch in batches:
            assert batch.broken == []
            assert batch.height == batch.values.height
            if batch.height:
                positions = pl.DataFrame({"file": "x", "row": range(batch.height)})
                good, refused = check(batch.values, CONTRACT, positions)
                assert refused.is_empty(), refused["reason"].head(3).to_list()
                found.append(good)
        return pl.concat(found)


def assert_same(found: pl.DataFrame, wanted: pl.DataFrame) -> None:
    """The same rows, in any order."""
    found = found.select(wanted.columns).sort("id")
    assert found.schema == wanted.schema
    for name in wanted.columns:
        assert found[name].to_list() == wanted[name].to_list(), name


def _batch(batch: Rows) -> tuple[Any, ...]:
    return batch.height, batch.values.to_dicts(), batch.broken, list(batch.columns), batch.numbers
