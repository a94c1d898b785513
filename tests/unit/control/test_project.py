"""Loading and packaging a project folder: what it defines, and clear words when it does not load."""

from __future__ import annotations

import io
import os
import tempfile
import textwrap
import zipfile
from pathlib import Path

import pytest

from manta.errors import Conflict, DefinitionInvalid, InvalidInput
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
        (
            {
                "jobs/bad.py": "from manta import Check, Column, Contract, Files, Ingest\n"
                "columns = {'a': Column(type='int64')}\n"
                "x = Ingest(dataset='x', source=Files(path='data/one.csv', format='csv'),\n"
                "    contract=Contract(columns=columns, checks=(Check('more', 'b > 1'),)))\n"
            },
            ["check 'more' (b > 1) cannot be made", "b"],
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


def test_a_missing_source_is_the_matter_of_its_run_alone(settings: Settings, root: Path) -> None:
    assert "raw" in load(settings)[0].sources
    (root / "data/one.csv").unlink()
    project, _ = load(settings)
    assert "raw" in project.jobs()
    assert "raw" not in project.sources


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


def packaged(root: Path) -> list[str]:
    return zipfile.ZipFile(io.BytesIO(pack(root)[1])).namelist()


def test_secrets_in_hidden_files_stay_behind_whatever_the_ignore_file_says(root: Path) -> None:
    secret = ["cluster/.env", ".env", ".aws/credentials", "jobs/.netrc", ".git/config"]
    write(root, {**dict.fromkeys(secret, "x"), ".mantaignore": "!.env\n!.aws/\n!**/.netrc\n"})
    assert packaged(root) == ["data/one.csv", *sorted(n for n in packaged(root) if n.startswith("jobs/"))]
    assert not [name for name in packaged(root) if "/." in f"/{name}"]


def test_a_build_folder_is_packaged_when_the_ignore_file_asks_for_it(root: Path) -> None:
    write(root, {"build/rules.py": "x"})
    assert "build/rules.py" not in packaged(root)
    write(root, {".mantaignore": "!build/\n"})
    assert "build/rules.py" in packaged(root)


def test_an_ignore_file_that_cannot_be_read_says_so(root: Path) -> None:
    write(root, {".mantaignore": "!\n"})
    with pytest.raises(InvalidInput, match="mantaignore"):
        pack(root)


def test_a_link_within_the_project_is_packaged_as_what_it_leads_to(root: Path) -> None:
    (root / "data/two.csv").symlink_to("one.csv")
    archive = zipfile.ZipFile(io.BytesIO(pack(root)[1]))
    assert archive.read("data/two.csv") == archive.read("data/one.csv")


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside.csv", "nowhere.csv", "../jobs", "/etc"])
def test_a_link_that_leads_elsewhere_is_refused(root: Path, target: str) -> None:
    (root.parent / "outside.csv").write_text("x")
    (root / "data/two.csv").symlink_to(target)
    with pytest.raises(InvalidInput, match=r"data/two\.csv is a link to") as error:
        pack(root)
    assert ".mantaignore" in error.value.hint
    write(root, {".mantaignore": "data/two.csv\n"})
    assert "data/two.csv" not in packaged(root)


@pytest.mark.timeout(30)
def test_a_pipe_is_refused_and_not_waited_for(root: Path) -> None:
    os.mkfifo(root / "data/pipe")
    with pytest.raises(InvalidInput, match="data/pipe is a pipe"):
        pack(root)


@pytest.mark.parametrize("locked", ["data/one.csv", "data"])
def test_what_cannot_be_read_is_named(locked: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, {"jobs/raw.py": JOBS, "data/one.csv": "a\n1\n"})
        root.chmod(0o755)
        (root / locked).chmod(0)
        mine = os.geteuid()
        try:
            if mine == 0:
                os.seteuid(65534)  # the superuser may read everything
            with pytest.raises(InvalidInput, match=rf"{locked} cannot be read: Permission denied"):
                pack(root)
        finally:
            os.seteuid(mine)
            (root / locked).chmod(0o755)


def test_too_many_files_are_refused_naming_the_fullest_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("manta.project.MOST_FILES", 50)
    write(root, {f"data/images/{at}.txt": "x" for at in range(60)})
    with pytest.raises(InvalidInput, match="more than 50 files") as error:
        pack(root)
    assert "data/images (60 files)" in error.value.hint
    write(root, {".mantaignore": "data/images/\n"})
    assert len(packaged(root)) < 50


def test_an_ignored_tree_is_not_even_looked_at(root: Path) -> None:
    write(root, {".mantaignore": "data/deep/\n"})
    (root / "data/deep").mkdir()
    os.mkfifo(root / "data/deep/pipe")
    (root / "data/deep/loop").symlink_to("..")
    assert "data/one.csv" in packaged(root)


def test_a_file_changed_while_the_project_is_loaded_is_loaded_again(settings: Settings, root: Path) -> None:
    """The module changes its neighbour when it is first imported, as an editor may do at that moment."""
    jobs = "a = 1\n" + JOBS.replace('key=("a",)', 'key=("a",), name="second"')
    write(root, {"later.txt": jobs})
    write(
        root,
        {
            "jobs/raw.py": "from pathlib import Path\nlater = Path('later.txt')\n"
            "Path(__file__).write_text(later.read_text())\n" + JOBS,
        },
    )
    project, content = load(settings)
    assert "second" in project.jobs()
    assert zipfile.ZipFile(io.BytesIO(content)).read("jobs/raw.py").decode() == jobs
    assert load(settings)[0] == project


def test_files_that_never_keep_still_are_named(settings: Settings, root: Path) -> None:
    write(
        root,
        {
            "jobs/restless.py": "import time\nfrom pathlib import Path\n"
            "Path('data/log.txt').write_text(str(time.time_ns()))\n",
        },
    )
    with pytest.raises(Conflict, match=r"files keep changing .*data/log\.txt") as error:
        load(settings)
    assert ".mantaignore" in error.value.hint
