"""Which commit a project's files are of."""

from __future__ import annotations

import subprocess
from pathlib import Path

from manta.project import commit_of


def test_clean_changed_and_outside_of_a_repository(tmp_path: Path) -> None:
    assert commit_of(tmp_path) == ""
    assert commit_of(tmp_path / "nowhere") == ""
    _git(tmp_path, "init", "-q")
    assert commit_of(tmp_path) == ""  # nothing is committed yet
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-q", "-m", "first")
    head = _git(tmp_path, "rev-parse", "HEAD")
    assert commit_of(tmp_path / "one") == head
    (tmp_path / "two" / "new").write_text("not committed")
    assert commit_of(tmp_path / "one") == head
    assert commit_of(tmp_path / "two") == commit_of(tmp_path) == f"{head}+changes"


def _git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.com", "-c", "commit.gpgsign=false"]
    asked = ["git", "-C", str(folder), *who, *words]
    return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
