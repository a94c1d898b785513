"""A package that somebody else has installed brings a connector."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import pytest

from manta.definitions import from_json
from manta.definitions.sources import Ask, connectors
from manta.project import load
from manta.settings import Settings
from tests.integration.api.conftest import serving

PACKAGE = """
from contextlib import contextmanager
from typing import Literal, NamedTuple

from manta.connectors import Ask, Reading, Rows, Source

class Line(NamedTuple):
    file: str
    size: int
    words: tuple

class Words(Source):
    kind: Literal["words"] = "words"
    text: str

    @contextmanager
    def opened(self, ask: Ask):
        words = tuple(self.text.split())
        yield Reading([Line("the text", len(self.text), words)], token=str(len(words)))

    def read(self, piece: Line, ask: Ask):
        import polars as pl

        yield Rows(len(piece.words), pl.DataFrame({"word": piece.words}).select(ask.columns), [], ["word"])
"""
PROJECT = """
from manta import Column, Contract, Ingest
from manta_words import Words

contract = Contract(columns={"word": Column(type="string")})
words = Ingest(dataset="words", source=Words(text="from far away"), contract=contract)
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pip leaves it: a package, and what it says of itself, in a folder where Python looks."""
    site = tmp_path / "site-packages"
    told = site / "manta_words-1.0.dist-info"
    told.mkdir(parents=True)
    (site / "manta_words.py").write_text(PACKAGE)
    (told / "METADATA").write_text("Metadata-Version: 2.1\nName: manta-words\nVersion: 1.0\n")
    (told / "entry_points.txt").write_text("[manta.connectors]\nwords = manta_words:Words\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.delitem(sys.modules, "manta_words", raising=False)
    importlib.invalidate_caches()


def test_an_installed_package_brings_a_connector(
    installed: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings.root / "jobs").mkdir()
    (settings.root / "jobs" / "words.py").write_text(PROJECT)
    assert "words" in connectors()
    project, content = load(settings)
    # What the server gets is JSON, of a class that it has not imported.
    monkeypatch.delitem(sys.modules, "manta_words", raising=False)
    with serving(settings) as served, served.http(served.owner_key) as http:
        served.platform.put_package(project.package, content)
        answer = http.post("/v1/projects/test/plan", json=project.model_dump(mode="json"))
        assert answer.status_code == 200, answer.text
        assert [(step["name"], step["action"]) for step in answer.json()["steps"]] == [("words", "run")]
        unknown = project.model_dump(mode="json")
        unknown["described"][0]["definition"]["source"]["kind"] = "sentences"
        answer = http.post("/v1/projects/test/plan", json=unknown)
        assert answer.status_code == 422
        assert "there is no connector 'sentences'; there are" in answer.text
    (described,) = project.described
    source = from_json(described.definition).source
    ask = Ask(settings.root, ("word",))
    with source.opened(ask) as reading:
        rows = [
            batch.values["word"].to_list() for piece in reading.pieces for batch in source.read(piece, ask)
        ]
    assert rows == [["from", "far", "away"]]
