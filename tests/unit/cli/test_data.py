"""`manta data`: what each command prints, for people and for scripts."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from manta.cli import display
from manta.cli.root import app
from manta.data.reading import Datasets
from manta.errors import InvalidInput, MantaError, NotFound
from manta.settings import Settings

FLIGHTS = pl.DataFrame(
    {
        "id": range(200),
        "origin": [("JFK", "EWR", "[red]LGA")[n % 3] for n in range(200)],
        "delay": [n % 17 if n % 5 else None for n in range(200)],
        "at": [datetime(2013, 1, 1 + n % 20, tzinfo=UTC) for n in range(200)],
        "fare": pl.Series([Decimal(f"{n}.50") for n in range(200)], dtype=pl.Decimal(10, 2)),
        "codes": [[n, None] for n in range(200)],
        "raw": [b"\x00\xff"] * 200,
    }
)


class Data:
    """`manta data WORDS` in a project's folder."""

    def __call__(self, *words: str, text: str | None = None) -> str:
        done = CliRunner().invoke(app, ["data", *words], input=text, catch_exceptions=True)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.chdir(tmp_path)
    _terminal(monkeypatch, 120)
    return Data()


def _terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """As wide, also where something has made or asked the console before."""
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setattr(display.console, "_width", columns)


@pytest.fixture
def flights(data: Data, tmp_path: Path) -> Data:
    datasets = Datasets(Settings.load(tmp_path).datasets)
    for run, rows in ((3, 100), (12, 200)):
        told = {"ingest": "flights", "rows": rows, "refused": 1, "key": ["id"]}
        frame = FLIGHTS.head(rows).with_columns(
            delay=pl.col("delay") + (pl.col("id") < 7 if run == 12 else 0)
        )
        datasets.lake.replace("flights", frame, run_key=f"project-4f-{run}", metadata=told)
    datasets.lake.replace("origin-names", pl.DataFrame({"origin": ["JFK"]}), run_key="project-4f-4")
    return data


def test_nothing_is_there_yet(data: Data) -> None:
    assert "no dataset yet" in data("list")
    assert data.json("list") == []
    with pytest.raises(NotFound):
        data("show", "flights")


def test_list(flights: Data) -> None:
    said = flights("list")
    assert [line.split()[:2] for line in said.splitlines()[1:]] == [["flights", "1"], ["origin-names", "0"]]
    assert [(each["name"], each["rows"]) for each in flights.json("list")] == [
        ("flights", 200),
        ("origin-names", 1),
    ]


def test_show(flights: Data) -> None:
    said = flights("show", "flights")
    assert "flights@1  200 rows × 7 columns" in said
    assert "by run 12" in said
    assert "▇" not in said
    assert "[red]LGA 33 %" in said  # as it is: no markup of ours
    assert "100 rows" in flights("show", "flights@0")
    assert "100 rows" in flights("show", "flights", "--version", "0")
    shown = flights.json("show", "flights")
    assert shown["profile"]["columns"]["delay"]["nulls"] == 40
    assert shown["columns"]["fare"] == "decimal128(10, 2)"


def test_plot(flights: Data, tmp_path: Path) -> None:
    assert "█" in flights("show", "flights", "--plot")
    assert "drawn in f.png" in flights("show", "flights", "--plot", "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")
    flights("show", "flights", "--plot", "f.html")
    page = (tmp_path / "f.html").read_text()
    assert "<svg" in page
    assert "[red]LGA" in page
    with pytest.raises(InvalidInput, match=r"neither a \.png nor a \.html"):
        flights("show", "flights", "--plot", "f.pdf")
    with pytest.raises(InvalidInput, match=r"what is f\.png for"):
        flights("show", "flights", "f.png")


def test_history(flights: Data) -> None:
    lines = flights("history", "flights").splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["1", "0"]
    assert lines[1].split()[4:6] == ["flights", "12"]
    assert "and 1 older" in flights("history", "flights", "--limit", "1")
    assert [each["run"] for each in flights.json("history", "flights")] == [12, 3]


def test_diff(flights: Data) -> None:
    said = flights("diff", "flights", "0", "1", "--rows", "2")
    assert "100 → 200 rows, by id" in said
    assert "+ 100 rows added" in said
    assert "~ 5 rows changed" in said  # of seven, two had no delay
    assert "id=1: delay 1 → 2" in said
    assert "changed: delay in 5" in said
    assert said.count("id=1") == 3  # id=1, and two of the added: 100 and 101
    assert "the same rows and columns" in flights("diff", "flights", "1")
    found = flights.json("diff", "flights", "0")
    assert (found["added"], found["changed"], found["key"]) == (100, 5, ["id"])
    assert found["sample_added"][0]["fare"] == "100.50"
    assert found["sample_added"][0]["raw"] == "AP8="
    assert flights.json("diff", "flights", "0", "--key", "id", "--key", "fare")["key"] == ["id", "fare"]


def test_sample_and_quarantine(flights: Data) -> None:
    assert len(flights("sample", "flights", "--rows", "3").splitlines()) == 4
    rows = flights.json("sample", "flights", "--rows", "3")
    assert [set(row) for row in rows] == [set(FLIGHTS.columns)] * 3
    assert flights.json("sample", "flights", "--rows", "3") == rows
    assert flights.json("sample", "flights", "--rows", "3", "--seed", "7") != rows
    assert flights.json("sample", "flights", "--rows", "0") == []
    assert flights.json("quarantine", "flights") == []
    assert "reason" in flights("quarantine", "flights")


def test_what_the_terminal_has_no_room_for_is_named(flights: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    _terminal(monkeypatch, 40)
    said = flights("sample", "flights", "--rows", "1")
    assert "… and columns" in said
    assert "raw" in said
    assert all(len(line) <= 40 for line in said.splitlines())


def test_compact(flights: Data, tmp_path: Path) -> None:
    assert "nothing to do" in flights("compact", "flights")
    assert flights.json("compact", "flights")["version"] == 1


def test_sql(flights: Data, tmp_path: Path) -> None:
    query = "select origin, count(*) n from flights group by all order by origin"
    assert flights("sql", query).split() == ["origin", "n", "EWR", "67", "JFK", "67", "[red]LGA", "66"]
    assert flights("sql", "-", text=query) == flights("sql", query)
    assert flights.json("sql", query)[0] == {"origin": "EWR", "n": 67}
    assert flights.json("sql", "select 1 as one where false") == []
    assert flights.json("sql", "select count(*) n from flights@0") == [{"n": 100}]
    assert "Projections: origin" in flights("sql", query, "--explain")
    whole = flights("sql", "select * from flights order by id", "--csv")
    read = list(csv.DictReader(io.StringIO(whole)))
    assert len(read) == 200
    assert read[5] == {
        "id": "5", "origin": "[red]LGA", "delay": "", "at": "2013-01-06T00:00:00+00:00", "fare": "5.50",
        "codes": "[5, null]", "raw": "AP8=",
    }  # fmt: skip
    assert "200 rows in out.parquet" in flights("sql", "select * from flights", "--parquet", "out.parquet")
    assert pl.read_parquet(tmp_path / "out.parquet")["fare"].sum() == FLIGHTS["fare"].sum()
    assert "… and more" in flights("sql", "select id from flights", "--rows", "5")
    assert "… and more" not in flights("sql", "select id from flights limit 5", "--rows", "5")


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["show", "fligths"], NotFound, "no dataset 'fligths'"),
        (["show", "flights@5"], NotFound, "has no version 5"),
        (["show", "flights", "--as-of", "yesterday"], InvalidInput, "is no time"),
        (["diff", "flights", "0", "x"], InvalidInput, "'x' is no version"),
        (["sql", "delete from flights"], InvalidInput, "only one SELECT"),
        (["sql", "select 1", "--csv", "--json"], InvalidInput, "exclude each other"),
        (["sql", "select 1", "--memory", "x"], InvalidInput, "is no size"),
    ],
)
def test_mistakes_are_errors_of_the_tree(
    flights: Data, words: list[str], error: type[MantaError], said: str
) -> None:
    with pytest.raises(error, match=said):
        flights(*words)


def test_an_error_exits_as_all_commands_do(data: Data, tmp_path: Path) -> None:
    """And no platform need be up for it."""
    done = subprocess.run(
        [sys.executable, "-c", "from manta.cli import main; main()", "data", "show", "nothing"],
        cwd=tmp_path, env=os.environ | {"COLUMNS": "120"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 4
    assert "error not_found  there is no dataset 'nothing'" in done.stderr
    assert "next:" in done.stderr
