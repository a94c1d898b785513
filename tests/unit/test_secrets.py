"""Secrets: named, read where they are used, and taken out of whatever is written."""

from __future__ import annotations

import base64
import json
import pickle
import urllib.parse
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from manta import Job, Secret, Settings
from manta.control.doctor import _passwords
from manta.control.engine import RayEngine
from manta.control.parts import all_parts
from manta.errors import DefinitionInvalid, SecretUnreadable, Unavailable
from manta.ledger.database import Database
from manta.models.registry import Registry
from manta.secrets import Redactor, redactor, references, resolve, resolve_url, without_passwords

VALUE = "c@nary/7f3a:ünd+mehr"


def test_a_secret_is_its_reference_wherever_it_is_kept() -> None:
    secret = Secret("env:TOKEN")
    job = Job(name="pull", fn="jobs.pull:pull", params={"token": secret, "url": f"https://me:{secret}@x/"})
    assert job.to_json()["params"] == {"token": "${env:TOKEN}", "url": "https://me:${env:TOKEN}@x/"}
    assert references(job.to_json()) == ["env:TOKEN"]
    assert pickle.loads(pickle.dumps(secret)) == secret == Secret("${env:TOKEN}")


@pytest.mark.parametrize("name", ["hunter2secret", "env:A B", "file:relative", "k8s:ns/name", "vault:x", ""])
def test_what_is_no_name_is_refused_without_being_repeated(name: str) -> None:
    with pytest.raises(DefinitionInvalid) as refused:
        Secret(name)
    assert not name or name not in str(refused.value)


def test_references_are_replaced_at_any_depth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKEN", VALUE)
    (tmp_path / "key").write_text("of a file\n")
    given = {"a": ["${env:TOKEN}", 1], "b": {"c": f"<${{file:{tmp_path}/key}}>"}, "d": "${other}", "e": None}
    assert resolve(given) == {"a": [VALUE, 1], "b": {"c": "<of a file>"}, "d": "${other}", "e": None}
    assert urllib.parse.urlsplit(resolve_url("x://u:${env:TOKEN}@h/")).hostname == "h"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("env:NOT_SET", "env:NOT_SET is not set"),
        ("env:EMPTY", "env:EMPTY is empty"),
        ("env:SHORT", "fewer than 4"),
        ("file:/nowhere/x", "No such file"),
        ("k8s:prod/db/password", "not a pod"),
    ],
)
def test_one_that_is_not_there_is_named(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMPTY", "")
    monkeypatch.setenv("SHORT", "xyz")
    with pytest.raises(SecretUnreadable, match=says) as missing:
        resolve({"p": [f"${{{name}}}"]})
    assert name in missing.value.message
    assert missing.value.hint
    assert "xyz" not in missing.value.message


def test_a_mounted_kubernetes_secret_is_read_from_its_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("manta.secrets.MOUNTS", tmp_path)
    (tmp_path / "db").mkdir()
    (tmp_path / "db/password").write_text("of the mount")
    assert resolve("${k8s:prod/db/password}") == "of the mount"


def encodings(value: str) -> list[str]:
    raw = value.encode()
    return [
        value,
        urllib.parse.quote(value, safe=""),
        urllib.parse.quote_plus(value),
        json.dumps(value)[1:-1],
        repr(value)[1:-1],
        raw.hex(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode(),
        base64.b64encode(b"user:" + raw).decode(),
        base64.b64encode(b"users:" + raw + b";").decode(),
    ]


@pytest.mark.parametrize("at", range(10))
def test_no_usual_encoding_of_a_secret_gets_through(at: int) -> None:
    ours = Redactor()
    ours.add("env:TOKEN", VALUE)
    written = encodings(VALUE)[at]
    shown = ours.text(f"before {written} after")
    assert shown.startswith("before ")
    assert shown.endswith(" after")
    assert "[secret env:TOKEN]" in shown
    for start in range(len(written) - 10):
        assert written[start : start + 11] not in shown


def test_each_line_of_a_key_is_taken_out() -> None:
    ours = Redactor()
    ours.add("file:/key", "-----BEGIN KEY-----\nMIIBOgIBAAJBAK\nq3dOa9+fT1s\n-----END KEY-----")
    assert ours.text("    MIIBOgIBAAJBAK") == "    [secret file:/key]"


TEXTS = st.text(alphabet="abcS", min_size=4, max_size=9)


@given(
    values=st.lists(TEXTS, min_size=1, max_size=3),
    around=st.lists(st.text(alphabet="abcS\n", max_size=12), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 7), min_size=1, max_size=60),
)
def test_a_secret_cut_in_pieces_is_taken_out_as_if_it_were_not(
    values: list[str], around: list[str], sizes: list[int]
) -> None:
    ours = Redactor()
    for number, value in enumerate(values):
        ours.add(f"env:V{number}", value)
    written = "".join(text + values[at % len(values)] for at, text in enumerate(around)).encode()
    pieces, at = [], 0
    for size in [*sizes, len(written)]:
        pieces.append(written[at : at + size])
        at += size
    assert b"".join(ours.stream(pieces)) == ours.data(written)


def test_nothing_is_held_back_that_cannot_be_a_secret() -> None:
    ours = Redactor()
    ours.add("env:TOKEN", "hunter2secret")
    stream = ours.stream(iter([b"working\n", b"hun", b"t\n", b"hunter2", b"secret", b"\n"]))
    assert next(stream) == b"working\n"
    assert list(stream) == [b"hunt\n", b"[secret env:TOKEN]", b"\n"]


def test_a_url_is_shown_without_its_password() -> None:
    shown = without_passwords("connect to postgresql://manta:hunter2@db:5432/x?password=alsothis&a=1 failed")
    assert shown == "connect to postgresql://manta:***@db:5432/x?password=***&a=1 failed"
    named = "postgresql://manta:${file:/run/secrets/db}@db/x"
    assert without_passwords(named) == named


# --- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["postgresql://manta:hun%40ter2@db/x", "postgresql://db/x?user=manta&password=hun%40ter2"]
)
def test_workers_are_handed_no_password(
    url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = settings.model_copy(update={"ledger_url": url, "mlflow_url": "https://me:other9@mlflow/"})
    handed = ours.for_worker()
    assert handed == ours.for_worker()
    for word in ("hun", "ter2", "other9"):
        assert word not in handed
    folder = ours.home / "secrets"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in folder.iterdir()] == [0o600, 0o600]
    monkeypatch.setenv("MANTA_SETTINGS", handed)
    there = Settings.load("/")
    assert resolve_url(there.ledger_url) == url
    assert resolve_url(there.mlflow_url) == "https://me:other9@mlflow/"
    assert "hun" not in json.dumps(ours.shown())


def test_the_ledger_s_password_is_read_by_who_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD_", "p@ss/wörd")
    database = Database("postgresql://manta:${env:PGPASSWORD_}@127.0.0.1:1/x")
    assert database.engine.url.password == "p@ss/wörd"
    assert "p@ss" not in database.url
    assert redactor.text("p@ss/wörd") == "[secret env:PGPASSWORD_]"
    plain = Database("postgresql://manta:hunter2@127.0.0.1:1/x")
    assert plain.url == "postgresql://manta:***@127.0.0.1:1/x"


def test_doctor_finds_a_password_that_is_written_out(settings: Settings) -> None:
    folder = settings.root / "cluster"
    folder.mkdir()
    (folder / "local.yaml").write_text("ledger_url: postgresql://m:${env:PW}@db/x\n")
    (folder / "prod.yaml").write_text("project: x\nledger_url: postgresql://m:hunter2@db/x\n")
    good, bad = _passwords(folder)
    assert (good.ok, bad.ok, bad.detail) == (True, False, "written out in line 2")
    assert "hunter2" not in repr(bad)


def test_addresses_are_shown_without_their_password(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PW", "hunter2secret")
    ours = settings.model_copy(
        update={
            "mlflow_url": "http://me:hunter2secret@127.0.0.1:9/",
            "ray_url": "http://me:${env:PW}@127.0.0.1:9",
        }
    )
    shown = [spec.address for spec in all_parts(ours)]
    shown += [spec.name for spec in all_parts(ours) if spec.attached and not spec.answers()]
    assert {"mlflow", "ray"} < set(shown)
    for ask in (RayEngine(ours).jobs, Registry(ours.mlflow_url, "test").check):
        with pytest.raises(Unavailable) as down:
            ask()
        shown.append(str(down.value))
    assert "hunter2secret" not in repr(shown)
