"""Models made elsewhere, at the platform's door: kept by digest, submitted as runs of a training."""

from __future__ import annotations

import hashlib
import io
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from manta.client import Client, Transport
from manta.client import models as client_models
from manta.definitions import Examples, TimeSplit, Torch, Training
from manta.errors import InvalidInput, NotFound
from manta.ledger.actor import Actor
from manta.project import Project
from tests.integration.api.test_promotion import resting

CONTENT = b"whatever it is"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TRAINING = Training(
    model="delay",
    fn="jobs.work:train",
    module="jobs.work:Net",
    trainer=Torch(),
    examples=Examples(dataset="flights", label="late", time="at"),
    features="weather_v1",
    split=TimeSplit(test_from=datetime(2013, 2, 20)),
    params={"epochs": 3},
)


def project(served: Any, name: str = "mine") -> dict[str, Any]:
    made: dict[str, Any] = served.project(name)
    described = {"definition": TRAINING.to_json(), "fingerprint": "t", "where": "jobs.work:delay"}
    return made | {"described": [*made["described"], described]}


def body(served: Any, **more: Any) -> dict[str, Any]:
    return {"project": project(served), "training": "delay", "sha256": SHA256, "file": "m.onnx", **more}


def test_a_file_is_kept_by_its_digest_and_not_looked_into(served) -> None:
    developer = served.http(served.person("user:dev", mine="developer"))
    place = f"/v1/foreign/{SHA256}"
    assert developer.head(place).status_code == 404
    wrong = developer.put(place, content=CONTENT + b"!")
    assert (wrong.status_code, wrong.json()["code"]) == (400, "invalid_input")
    assert developer.head(place).status_code == 404
    for _ in range(2):
        assert developer.put(place, content=CONTENT).status_code == 204
    assert developer.head(place).status_code == 200
    held = list((served.settings.home / "foreign").iterdir())
    assert [each.name for each in held] == [SHA256]
    assert held[0].read_bytes() == CONTENT
    for key, status in ((served.person("user:viewer", mine="viewer"), 403), (None, 401)):
        assert served.http(key).put(place, content=CONTENT).status_code == status
    assert developer.put("/v1/foreign/../../etc/passwd", content=b"x").status_code == 404


def test_an_import_is_a_run_of_the_training_that_says_what_it_takes(served) -> None:
    resting(served)
    developer = served.http(served.person("user:dev", mine="developer"))
    path = "/v1/projects/mine/imports"
    missing = developer.post(path, json=body(served))
    assert (missing.status_code, "has not been put" in missing.json()["detail"]) == (404, True)
    developer.put(f"/v1/foreign/{SHA256}", content=CONTENT)
    before = developer.post("/v1/projects/mine/plan", json=project(served)).json()
    first = developer.post(path, json=body(served, key="k"))
    assert first.status_code == 201
    run = first.json()
    assert (run["job"], run["kind"], run["submitted_by"]) == ("import:delay", "training", "user:dev")
    assert run["definition"]["trainer"] == {"kind": "imported", "sha256": SHA256, "file": "m.onnx"}
    assert run["definition"]["gates"] == TRAINING.to_json()["gates"]
    assert run["definition"]["examples"] == TRAINING.to_json()["examples"]
    assert developer.post(path, json=body(served, key="k")).json()["id"] == run["id"]
    assert developer.post("/v1/projects/mine/plan", json=project(served)).json() == before
    other = developer.post(path, json=body(served, training="work"))
    assert (other.status_code, "no training 'work'" in other.json()["detail"]) == (404, True)
    for wrong in ({"file": "../m.onnx"}, {"file": ""}, {"sha256": "x"}):
        assert developer.post(path, json=body(served, **wrong)).status_code == 400
    viewer = served.http(served.person("user:viewer", mine="viewer"))
    assert viewer.post(path, json=body(served)).status_code == 403
    assert len(served.platform.runs("mine")) == 1


@pytest.fixture
def client(served, monkeypatch: pytest.MonkeyPatch) -> Client:
    resting(served)
    settings = served.settings.model_copy(update={"project": "mine"})
    client = Client(settings, Transport(served.url, served.owner_key))
    monkeypatch.setattr(client, "load", lambda: Project(**project(served)))
    return client


def test_the_client_sends_a_file_or_a_folder(served, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "m.onnx"
    file.write_bytes(CONTENT)
    run = client.import_model(file, "delay").data
    assert run.definition["trainer"] == {"kind": "imported", "sha256": SHA256, "file": "m.onnx"}
    folder = tmp_path / "mlmodel"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}")
    (folder / "data/model.onnx").write_bytes(CONTENT)
    first, second = (client.import_model(folder, "delay").data.definition["trainer"] for _ in range(2))
    assert first == second
    assert first["file"] == "mlmodel.zip"
    kept = (served.settings.home / "foreign" / first["sha256"]).read_bytes()
    with zipfile.ZipFile(io.BytesIO(kept)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            "MLmodel": b"flavors: {}",
            "data/model.onnx": CONTENT,
        }
    with pytest.raises(NotFound, match="no training 'other'"):
        client.import_model(file, "other")


def test_what_cannot_be_sent_is_said_before_it_is_sent(
    served, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        client.import_model(tmp_path / "nothing.onnx", "delay")
    (tmp_path / "m.onnx").write_bytes(CONTENT)
    monkeypatch.setattr(client_models, "MOST_IMPORT_BYTES", 10)
    with pytest.raises(InvalidInput, match="larger than"):
        client.import_model(tmp_path / "m.onnx", "delay")
    assert not (served.settings.home / "foreign").exists()
    assert served.platform.ledger.audit.entries(actor=Actor("owner", "http").name, project="mine") == []
