"""The notebooks as they are kept: without outputs, so that a change shows what was changed."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def test_they_are_there() -> None:
    assert {path.name for path in NOTEBOOKS} >= {"quickstart.ipynb", "bring_your_own_model.ipynb"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_no_outputs_are_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    kept = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and (cell.outputs or cell.execution_count is not None)
    ]
    assert kept == []
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_each_promises_something_that_its_cells_assert(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert sum("assert " in cell.source for cell in notebook.cells if cell.cell_type == "code") >= 3
