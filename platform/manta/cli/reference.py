"""The reference project, where this installation keeps it, and copies of it under another name."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import manta
from manta.errors import Conflict, InvalidInput, NotFound

PARTS = ("jobs", "features", "serve", "cluster/local.yaml", "tests/project")
NAME = "flights"


def reference_root() -> Path:
    """In a wheel it lies inside the package; in a clone it is the repository itself."""
    package = Path(manta.__file__).parent
    for root in (package / "reference", package.parents[1]):
        if (root / "jobs").is_dir() and (root / "features").is_dir():
            return root
    raise NotFound("this installation carries no reference project", hint="install manta-ml again")


def copy_reference(directory: Path, name: str = "") -> str:
    """Copy it into ``directory`` and rename it; the name is returned.

    Raises:
        Conflict: the folder is not empty.
        InvalidInput: the name cannot be a project's.
    """
    name = name or re.sub(r"[^a-z0-9]+", "_", directory.resolve().name.lower()).strip("_")
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise InvalidInput(
            f"{name!r} cannot be a project's name", hint="small letters, digits and _: --name my_project"
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise Conflict(f"{directory} is not an empty folder", hint="name one that does not exist yet")
    root = reference_root()
    directory.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        source, target = root / part, directory / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target)
    for path in (directory / "cluster/local.yaml", directory / "features/feature_store.yaml"):
        path.write_text(re.sub(rf"^project: {NAME}$", f"project: {name}", path.read_text(), flags=re.M))
    (directory / ".gitignore").write_text(".manta/\n.venv/\n__pycache__/\ndata/digits/\n")
    (directory / ".mantaignore").write_text(
        "# Not needed by a run (gitignore's syntax)\ntests/\ncluster/\ndata/digits/\n"
    )
    (directory / "pyproject.toml").write_text(PYPROJECT.format(name=name))
    return name


PYPROJECT = """\
[project]
name = "{name}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["manta-ml[examples]"]

[project.optional-dependencies]
dev = ["pytest>=8"]

[tool.pytest.ini_options]
testpaths = ["tests"]
"""
