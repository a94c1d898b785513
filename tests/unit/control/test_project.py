"""Loading and packaging a project folder: what it defines, and clear words when it does not load."""

from __future__ import annotations

import io
import os
import textwrap
import zipfile
from pathlib import Path

import pytest

from manta.errors import DefinitionInvalid, InvalidInput, SourceUnreadable
from manta.project import Project, load, pack
from manta.settings import Settings

JOBS = """
from manta import Column, Contract, FeatureTable, Files, Ingest
from jobs.maths import double

numbers = Contract(columns={"a": Column(type="int64")})
raw = Ingest(dataset="raw", source=Files(path="data/*.csv"), contract=numbers)
again = raw

def table(inputs):
    return double(inputs["raw"])

rates = FeatureTable(dataset="rates", inputs_from=("raw",), fn=table, key=("a",))
"""


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture
def root(settings: Settings) -> Path:
    write(
        settings.root,
        {
            "jobs/raw.py": JOBS,
            "jobs/maths.py": "from jobs.deeper import two\n\ndef double(x):\n    return x * two\n",
            "jobs/deeper.py": "two = 2\n",
            "jobs/unrelated.py": "x = 1\n",
            "data/one.csv": "a\n1\n",
        },
    )
    return settings.root


def loaded(settings: Settings) -> Project:
    return load(settings)[0]


def fingerprints(project: Project) -> dict[str, str]:
    return {name: fingerprint for name, (_, fingerprint) in project.jobs().items()}


def test_definitions_are_found_once_with_where_they_stand(settings: Settings, root: Path) -> None:
    project = loaded(settings)
    assert {d.where for d in project.described} == {"jobs.raw:raw", "jobs.raw:rates"}
    assert set(project.sources) == {"raw"}


def test_a_fingerprint_covers_the_code_that_runs_and_no_other(settings: Settings, root: Path) -> None:
    before = fingerprints(loaded(settings))
    write(root, {"jobs/unrelated.py": "x = 2\n", "data/one.csv": "a\n2\n"})
    assert fingerprints(loaded(settings)) == before
    write(root, {"jobs/deeper.py": "two = 3\n"})
    after = fingerprints(loaded(settings))
    assert after["rates"] != before["rates"]
    assert after["raw"] == before["raw"]


def test_a_changed_source_has_another_token(settings: Settings, root: Path) -> None:
    before = loaded(settings).sources
    write(root, {"data/two.csv": "a\n2\n"})
    assert loaded(settings).sources != before


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (
            {"jobs/bad.py": "import nowhere_to_be_found\n"},
            ["jobs.bad", "nowhere_to_be_found", "jobs/bad.py:1"],
        ),
        ({"jobs/bad.py": "def x(:\n"}, ["jobs.bad", "SyntaxError"]),
        ({"jobs/bad.py": "from manta import Ingest\nx = Ingest(dataset='A b')\n"}, ["dataset", "A b"]),
        (
            {"jobs/bad.py": "from jobs.raw import raw\nother = raw.replace(dataset='other')\n"},
            ["jobs.bad:other", "jobs.raw", "'raw'"],
        ),
        (
            {
                "jobs/bad.py": "from jobs.raw import rates\n"
                "x = rates.replace(name='x', dataset='x', inputs_from=('rax',))\n"
            },
            ["'x'", "dataset:rax"],
        ),
    ],
)
def test_a_project_that_does_not_load_says_where(
    settings: Settings, root: Path, files: dict[str, str], words: list[str]
) -> None:
    write(root, files)
    with pytest.raises(DefinitionInvalid) as error:
        load(settings)
    assert [word for word in words if word not in error.value.message] == []


def test_a_missing_source_names_the_ingest_and_the_place(settings: Settings, root: Path) -> None:
    (root / "data/one.csv").unlink()
    with pytest.raises(SourceUnreadable, match=r"ingest 'raw': no file matches 'data/\*.csv'"):
        load(settings)


def test_a_folder_that_is_no_project_says_how_to_make_one(settings: Settings) -> None:
    with pytest.raises(DefinitionInvalid) as error:
        load(settings)
    assert "manta init" in error.value.hint


def test_a_package_depends_on_names_and_contents_only(root: Path) -> None:
    first, content = pack(root)
    os.utime(root / "jobs/raw.py", (1, 1))
    write(root, {".hidden": "x", "jobs/__pycache__/raw.pyc": "x", ".manta/ledger.db": "x"})
    assert pack(root) == (first, content)
    assert "jobs/raw.py" in zipfile.ZipFile(io.BytesIO(content)).namelist()
    write(root, {"jobs/unrelated.py": "x = 3\n"})
    assert pack(root)[0] != first


def test_what_mantaignore_names_stays_behind(root: Path) -> None:
    write(root, {".mantaignore": "data/\n*.md\n", "notes.md": "x"})
    names = zipfile.ZipFile(io.BytesIO(pack(root)[1])).namelist()
    assert not [name for name in names if name.startswith("data/") or name.endswith(".md")]


def test_too_big_a_project_is_refused_naming_the_biggest(root: Path) -> None:
    with (root / "data/big.bin").open("wb") as big:
        big.truncate(70 * 2**20)
    with pytest.raises(InvalidInput) as error:
        pack(root)
    assert "data/big.bin (70 MiB)" in error.value.hint
