"""The report of a training: self-contained, escaped, and all of it there."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from manta.ledger.manifest import Manifest
from manta.ledger.runs import Run, State
from manta.training import plots, report
from manta.training.evaluate import METRICS as OF_TASKS
from manta.training.gates import Champion, Piece, Result
from manta.training.refits import Spread
from manta.training.slices import Held
from tests.unit.test_definitions import TRAINING

METRICS = OF_TASKS["binary"]
EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)> \"quoted\" & 'so'"
FIGURES = dict.fromkeys(METRICS, 0.75) | {"baseline_roc_auc": 0.61}
SLICED = Result(
    gate="roc_auc >= 0.7 in each carrier",
    metric="roc_auc",
    value=0.61,
    bound=0.7,
    margin=-0.09,
    passed=False,
    reason="0.6100 in HA (523 rows), of 2; 1 not judged",
    pieces=(
        Piece("UA", 6_000, 0.77, 0.7, True),
        Piece("HA", 523, 0.61, 0.7, False),
        Piece("OO", 12, None, 0.7, None, "fewer than 500 rows"),
    ),
)
PASSED = Result("ece <= 0.1", "ece", 0.02, 0.1, 0.08, True)


def told(folder: Path, **fields: Any) -> report.Told:
    run = Run(
        id=41,
        project="flights",
        job="late",
        kind="training",
        definition={},
        fingerprint="f" * 16,
        package="p" * 16,
        state=State.RUNNING,
        created_at=datetime(2026, 3, 1, 12, tzinfo=UTC),
        submitted_by="ada",
    )
    manifest = Manifest(
        id="m" * 64,
        run=41,
        code={"package": "p" * 16, "commit": "c0ffee"},
        definition={},
        params={"epochs": 3},
        seed=7,
        reads={"dataset:flights": "12", "features:v1": "abc"},
        environment={"python": "3.11.9"},
    )
    given: dict[str, Any] = {
        "run": run,
        "training": TRAINING,
        "manifest": manifest,
        "metrics": FIGURES,
        "baseline": "route_late",
        "spread": {},
        "champion": None,
        "results": (PASSED,),
        "rows": {"rows_train": 1_000, "rows_test": 200},
        "inputs": {"carrier": "string"},
        "digest": "d" * 64,
        "figures": folder / "figures",
    }
    return report.Told(**(given | fields))


def held(labels: np.ndarray, **of: Any) -> Held:
    none = pl.DataFrame()
    return Held(none, none, "at", labels, **of)


class Page(HTMLParser):
    """What a browser would make of it: elements, what they refer to, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.open: list[str] = []
        self.words = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        if tag not in ("meta", "img", "line", "circle", "br"):
            self.open.append(tag)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += " " + data


def test_it_has_all_that_a_reviewer_asks_for(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    labels = (random.random(300) < 0.4).astype(np.float32)
    plots.draw(tmp_path / "figures", held(labels), random.random(300), random.random(300), "route_late")
    card = "Tells travellers of delays.\nNot for crews.\n\nKnown limits:\n- no cancelled flights\n- 2013 only"
    spread = {metric: Spread((0.75, 0.77)) for metric in METRICS}
    champion = Champion("3", dict.fromkeys(METRICS, 0.7444))
    page = Page(
        report.page(
            told(
                tmp_path,
                training=TRAINING.replace(card=card, repeats=2),
                results=(PASSED, SLICED),
                spread=spread,
                champion=champion,
            )
        )
    )
    assert page.open == [], "every element is closed"
    words = " ".join(page.words.split())
    for expected in (
        "refused: 1 of 2 gates failed",
        "Run 41 of late in flights, submitted by ada on 2026-03-01 12:00 UTC.",
        "Tells travellers of delays. Not for crews.",
        "no cancelled flights 2013 only",
        "passed ece <= 0.1 0.0200 0.1000 +0.0800",
        "failed roc_auc >= 0.7 in each carrier 0.6100 in HA (523 rows), of 2; 1 not judged 0.6100 0.7000",
        "failed HA 523 0.6100",
        "not judged OO 12 – fewer than 500 rows",
        "roc_auc ↑ 0.7500 0.6100 0.7444 0.7600 ± 0.0141",
        "baseline: route_late champion: version 3 mean ± deviation of 2 seeds",
        "dataset:flights 12",
        "code: commit c0ffee",
        "seeds 7 … 8",
        "rows train 1,000",
        "epochs 3",
        "python 3.11.9",
        "d" * 64,
        "m" * 64,
    ):
        assert expected in words, expected
    assert page.elements.count("li") == 2
    assert page.elements.count("img") == 4
    assert page.elements.count("circle") == 2


def test_nothing_is_loaded_and_nothing_runs(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    labels = (random.random(300) < 0.4).astype(np.float32)
    plots.draw(tmp_path / "figures", held(labels), random.random(300), random.random(300), "route_late")
    text = report.page(told(tmp_path, results=(SLICED,)))
    page = Page(text)
    assert all(reference.startswith("data:image/png;base64,") for reference in page.references)
    assert page.references
    assert not {"script", "link", "iframe", "object", "base"} & set(page.elements)
    assert page.handlers == []
    assert "default-src 'none'" in text
    assert not re.search(r"url\(|@import|https?://", text)


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    """Everywhere that a user, a dataset or a package can write something."""
    evil = EVIL
    piece = Piece(evil, 900, 0.8, 0.7, True)
    unjudged = Piece(evil, 9, None, 0.7, None, evil)
    manifest = told(tmp_path).manifest
    text = report.page(
        told(
            tmp_path,
            run=told(tmp_path).run.model_copy(update={"submitted_by": evil, "job": evil, "project": evil}),
            training=TRAINING.replace(card=f"{evil}\n\n- {evil}"),
            manifest=manifest.model_copy(
                update={
                    "code": {evil: evil},
                    "params": {evil: evil},
                    "reads": {evil: evil},
                    "environment": {evil: [evil]},
                }
            ),
            baseline=evil,
            champion=Champion(evil, None, evil),
            results=(Result(evil, evil, 0.5, 0.4, 0.1, True, evil, (piece, unjudged)),),
            rows={evil: 3},
            inputs={evil: evil},
            digest=evil,
        )
    )
    page = Page(text)
    assert not {"script", "img"} & set(page.elements)
    assert page.handlers == []
    assert page.words.count("<script>alert('x')</script>") >= 18
    assert "<script" not in text


def test_no_gates_a_replay_and_many_slices(tmp_path: Path) -> None:
    words = Page(report.page(told(tmp_path, results=(Result("same", "skewed", 0, 0.0, -0.0, True),)))).words
    assert "same 0.0000 0.0000 +0.0000" in " ".join(words.split())
    words = Page(report.page(told(tmp_path, results=()))).words
    assert "passed 0 gates" in " ".join(words.split())
    replay = told(tmp_path).run.model_copy(update={"replay_of": 12})
    words = " ".join(Page(report.page(told(tmp_path, results=None, run=replay))).words.split())
    assert "replay: not judged" in words
    assert "a replay of run 12" in words
    many = tuple(Piece(f"s{at}", 500 - at, 0.8, 0.7, at != 499) for at in range(500))
    sliced = Result("all", "roc_auc", 0.8, 0.7, 0.1, False, "", many)
    page = Page(report.page(told(tmp_path, results=(sliced,))))
    assert page.elements.count("circle") == report.MOST_PIECES
    assert "s499" in page.words, "what failed is shown"
    assert "and 400 more" in page.words


def test_it_is_written_whole_over_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = report.write(tmp_path, told(tmp_path))
    assert first == tmp_path / "report.html"
    before = first.read_text()

    def broken(_told: report.Told) -> str:
        raise RuntimeError

    monkeypatch.setattr(report, "page", broken)
    with pytest.raises(RuntimeError):
        report.write(tmp_path, told(tmp_path))
    assert first.read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_several_classes_are_named_and_drawn(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    names = ("left", EVIL, "a class with a rather long name")
    labels, p = random.choice(3, 300), random.dirichlet([1, 1, 1], 300)
    drawn = plots.draw(tmp_path / "figures", held(labels, task="multiclass", classes=names), p, p, "constant")
    assert [path.stem for path in drawn] == ["confusion", "by_class", "calibration"]
    metrics = dict.fromkeys(OF_TASKS["multiclass"], 0.75) | {"baseline_accuracy": 0.5}
    page = Page(
        report.page(
            told(
                tmp_path,
                training=TRAINING.replace(task="multiclass", gates=()),
                metrics=metrics,
                baseline="constant",
                classes=names,
            )
        )
    )
    words = " ".join(page.words.split())
    assert "accuracy ↑ 0.7500 0.5000" in words
    assert "macro_f1 ↑" in words
    assert "brier" not in words
    assert "A probability of each of 3 classes of y: left, <script>" in words
    assert page.elements.count("img") == 3
    assert "script" not in page.elements
    assert page.open == []


@pytest.mark.parametrize("count", [2, 16, 60, 1000])
def test_however_many_classes_there_are_they_are_drawn(tmp_path: Path, count: int) -> None:
    random = np.random.default_rng(1)
    labels = np.concatenate([np.zeros(50, dtype=np.int64), random.choice(count, 300)])
    p = random.dirichlet(np.ones(count), 350)
    classes = tuple(f"class {at}" for at in range(count))
    drawn = plots.draw(tmp_path, held(labels, task="multiclass", classes=classes), p, p, "constant")
    assert all(path.stat().st_size > 1_000 for path in drawn)


def test_numbers_are_drawn_and_small_ones_are_told_in_digits(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    labels = random.normal(40, 9, 6_000).astype(np.float32)
    answers = labels + random.normal(0, 3, 6_000)
    without = np.full(6_000, 40.0)
    drawn = plots.draw(tmp_path / "figures", held(labels, task="regression"), answers, without, "constant")
    assert [path.stem for path in drawn] == ["predicted", "residuals", "residual_sizes"]
    page = Page(
        report.page(
            told(
                tmp_path,
                training=TRAINING.replace(task="regression", gates=()),
                metrics={"rmse": 1234.56, "mae": 0.000123, "r2": 0.5},
                baseline="constant",
            )
        )
    )
    words = " ".join(page.words.split())
    assert "rmse ↓ 1,234.6 – mae ↓ 0.00012 – r2 ↑ 0.5000" in words
    assert "A number: y." in words
    assert page.elements.count("img") == 3
