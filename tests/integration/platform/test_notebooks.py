"""The notebooks, each from a clean kernel: the quickstart in the reference project that is up, the other in
an empty folder, where it starts a platform of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from tests.integration.platform.conftest import BIN, Commands, environment, left_by

pytestmark = [pytest.mark.platform, pytest.mark.timeout(900)]

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


def executed(name: str, folder: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The notebook with its outputs. A cell that raises fails the test with the cell and the error."""
    for variable in [each for each in os.environ if each.startswith("MANTA_")]:
        monkeypatch.delenv(variable)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(NOTEBOOKS / name, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def shown(notebook: Any) -> str:
    """All that its cells show: text, HTML, and the names of pictures."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    texts = [output.get("text", "") for output in outputs]
    texts += [str(value) for output in outputs for value in output.get("data", {}).values()]
    return "\n".join(texts)


def test_quickstart(flights: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(executed("quickstart.ipynb", flights.root, flights.env, monkeypatch))
    assert "succeeded" in said  # what `follow` showed last
    assert "airlines" in said
    assert said.count("data:image/png") == 3
    assert "late with probability" in said
    assert "Nothing to do" in flights("plan")


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder without a project, and an environment with its own ports; what is started there is stopped."""
    env = environment()
    yield tmp_path, env
    if (tmp_path / ".manta").exists():
        subprocess.run([BIN / "manta", "down"], cwd=tmp_path, env=env, check=True, capture_output=True)
    assert left_by(tmp_path / ".manta") == []


def test_bring_your_own_model(empty: tuple[Path, dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(executed("bring_your_own_model.ipynb", *empty, monkeypatch))
    assert "passed roc_auc" in said
    assert said.count("data:image/png") == 3
    assert "stopped" in said  # by `manta down`, whose end the notebook shows
