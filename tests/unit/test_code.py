"""The project's code that something executes, found by reading it."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.definitions.code import code_of, file_of


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "jobs/a.py": "import numpy.linalg\nfrom jobs import b\nfrom .deep.c import x\n",
        "jobs/b.py": "from jobs.a import y\n",
        "jobs/deep/__init__.py": "from ..e import z\n",
        "jobs/deep/c.py": "from . import d\n",
        "jobs/deep/d.py": "def late():\n    import feast\n",
        "jobs/e.py": "",
        "jobs/unrelated.py": "import jobs.a\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_is_imported_is_followed_in_circles_and_by_every_way_to_write_it(root: Path) -> None:
    code = code_of(root, [root / "jobs/a.py"])
    # `from . import d` may import the package too.
    named = {"a", "b", "deep/__init__", "deep/c", "deep/d", "e"}
    assert set(code.files) == {f"jobs/{name}.py" for name in named}
    assert code.packages == {"numpy", "jobs", "feast"}


def test_a_change_of_a_file_is_a_change_of_its_hash_alone(root: Path) -> None:
    before = code_of(root, [root / "jobs/a.py"]).files
    (root / "jobs/e.py").write_text("z = 1\n")
    (root / "jobs/unrelated.py").write_text("")
    after = code_of(root, [root / "jobs/a.py"]).files
    assert {name for name in after if after[name] != before[name]} == {"jobs/e.py"}


def test_what_is_not_the_projects_is_left_out(root: Path) -> None:
    assert code_of(root / "jobs" / "deep", [root / "jobs/a.py"]).files == {}
    assert file_of(root, "numpy") is None
    assert file_of(root, "") is None
    assert file_of(root, "jobs.deep") == root / "jobs/deep/__init__.py"
