"""Settings: the file, the variables over it, and the hand-over to workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from manta.errors import SettingsInvalid
from manta.secrets import resolve
from manta.settings import CLUSTER_VARIABLE, WORKER_VARIABLE, Settings


def write(root: Path, text: str) -> None:
    (root / "cluster").mkdir()
    (root / "cluster/local.yaml").write_text(text)


def test_an_empty_folder_needs_no_settings(tmp_path: Path) -> None:
    settings = Settings.load(tmp_path)
    assert settings.home == tmp_path / ".manta"
    assert settings.server_url == "http://127.0.0.1:7260"


def test_a_variable_beats_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "project: mine\nports: {mlflow: 5555, serve: 8123}\n")
    monkeypatch.setenv("MANTA_PORTS__MLFLOW", "6666")
    settings = Settings.load(tmp_path)
    assert (settings.project, settings.ports.mlflow, settings.ports.serve) == ("mine", 6666, 8123)
    assert settings.mlflow_url == "http://127.0.0.1:6666"


def test_a_worker_gets_what_its_starter_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "project: mine\n")
    settings = Settings.load(tmp_path)
    monkeypatch.setenv(WORKER_VARIABLE, settings.for_worker())
    assert Settings.load("/") == settings


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("prject: x\n", "prject"),
        ("ports: {mlflow: many}\n", "ports.mlflow"),
        ("- a\n", "names"),
        ("a: [", "YAML"),
    ],
)
def test_a_wrong_file_is_named_with_the_field(tmp_path: Path, text: str, word: str) -> None:
    write(tmp_path, text)
    with pytest.raises(SettingsInvalid, match=r"local\.yaml") as error:
        Settings.load(tmp_path)
    assert word in error.value.message


def test_an_unknown_profile_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match="prod"):
        Settings.load(tmp_path, profile="prod")


def test_a_job_straight_on_ray_finds_the_platform_and_not_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = Settings(
        project="theirs",
        home=tmp_path / "home",
        server_url="http://head:1",
        ledger_url="postgresql://ada:s3cret@db:5432/ledger",
    )._resolved()
    monkeypatch.setenv(CLUSTER_VARIABLE, head.for_cluster())
    assert "s3cret" not in head.for_cluster()
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/local.yaml").write_text("project: mine\nlake: /elsewhere")
    mine = Settings.on_cluster(tmp_path)
    assert (mine.project, mine.root) == ("mine", tmp_path)
    assert (mine.server_url, mine.home, mine.lake) == (head.server_url, head.home, head.lake)
    assert resolve(mine.ledger_url) == head.ledger_url != mine.ledger_url  # names the file that holds it
    monkeypatch.setenv("MANTA_LEDGER_URL", head.ledger_url)  # as a cluster hands a secret to its pods
    assert Settings.on_cluster(tmp_path).ledger_url == head.ledger_url


def test_a_job_on_a_cluster_of_nobody_has_the_settings_of_its_project(tmp_path: Path) -> None:
    assert Settings.on_cluster(tmp_path) == Settings.load(tmp_path)
