"""An endpoint on a real Ray Serve, put there as the controller does it: it answers, swaps, and refuses."""

from __future__ import annotations

import io
import json
import shutil
import statistics
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from manta.control import processes
from manta.control.engine import RayEngine
from manta.control.local import Local
from manta.control.parts import ray, ray_folder
from manta.definitions import Lookup
from manta.settings import Settings
from tests.conftest import free_ports
from tests.integration.api.conftest import serving as serving_manta
from tests.integration.local.web_part import listening
from tests.unit.serving import tiny
from tests.unit.serving.tiny import ENDPOINT, KEYS, probability

pytestmark = pytest.mark.platform

ROUTE = "/test/trips"
WHO = {"ours": "test", "other": "hotels"}
Put = Callable[[dict[str, str]], None]


@pytest.fixture(scope="module")
def its(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    root = tmp_path_factory.mktemp("s")
    return Settings(project="test", root=root, home=root / ".manta", ports=free_ports(), cpus=3)._resolved()


@pytest.fixture(scope="module")
def put(its: Settings) -> Iterator[Put]:
    """Sends the endpoint to Serve with a configuration; returns when Serve has taken it."""
    local = Local(its, [ray(its)])
    local.up(lambda *_: None)
    engine = RayEngine(its)
    project = its.root / "project"
    tiny.write_project(project)
    content = zipped(project)

    def send(config: dict[str, str]) -> None:
        app = {
            "name": "test-trips",
            "route": ROUTE,
            "import_path": "manta.serving.app:build",
            "package": "tiny",
            "content": content,
            "args": {"endpoint": ENDPOINT.to_json(), "project": "test"},
            "replicas": 1,
            "cpus": 0.5,
            "user_config": config,
        }
        engine.put_apps([app, door(its, project, content)])

    try:
        yield send
    finally:
        local.down(lambda *_: None)
        shutil.rmtree(ray_folder(its).parent, ignore_errors=True)


def door(its: Settings, project: Path, content: bytes) -> dict[str, Any]:
    """A look-up door beside the endpoint, over the same features."""
    manifest = tiny.write_manifest(project / "manifest.json", its.root / "project" / "online.db")
    service = json.loads(Path(manifest).read_text())["service"]
    named = {name: service[name] for name in ("project", "store", "views", "on_demand")}
    catalog = named | {"services": {"trip_v1": service}, "pushes": {}}
    (project / "catalog.json").write_text(json.dumps({"format": 1, "catalog": catalog}))
    return {
        "name": "test-lookup",
        "route": "/test/lookup",
        "import_path": "manta.serving.lookup.app:build",
        "package": "tiny",
        "content": content,
        "args": {"lookup": Lookup(features=("trip_v1",)).to_json(), "project": "test"},
        "replicas": 1,
        "cpus": 0.5,
        "user_config": {"version": "c1", "catalog": str(project / "catalog.json")},
    }


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in folder.rglob("*.py"):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


@pytest.fixture(scope="module")
def first(its: Settings) -> dict[str, str]:
    return tiny.write_all(its.root / "project", bias=0.25, version="1")


@pytest.fixture(scope="module")
def http(its: Settings, put: Put, first: dict[str, str]) -> Iterator[httpx.Client]:
    """A client of the endpoint, which serves version 1."""
    put(first)
    with httpx.Client(base_url=its.serve_url, timeout=30.0) as client:
        served(client, "1")
        yield client


def served(http: httpx.Client, version: str) -> dict[str, Any]:
    """The endpoint's description, once it serves that version."""
    return until(http, lambda described: described.get("version") == version)


def until(
    http: httpx.Client, condition: Callable[[dict[str, Any]], bool], route: str = ROUTE
) -> dict[str, Any]:
    deadline = time.monotonic() + 90
    while True:
        try:
            answer = http.get(route)
            described: dict[str, Any] = answer.json() if answer.status_code == 200 else {"error": answer.text}
        except httpx.HTTPError as error:
            described = {"error": str(error)}
        if condition(described):
            return described
        assert time.monotonic() < deadline, described
        time.sleep(0.1)


def ask(http: httpx.Client, body: Any, **options: Any) -> httpx.Response:
    return http.post(f"{ROUTE}/predict", json=body, **options)


def test_by_keys_one_and_many(http: httpx.Client) -> None:
    one = ask(http, {"keys": KEYS})
    assert one.status_code == 200
    [prediction] = one.json()["predictions"]
    assert prediction == {"probability": pytest.approx(probability(0.25, 5.0)), "prediction": True}
    assert (one.json()["model"], one.json()["version"]) == ("trip", "1")

    many = ask(http, {"keys": [KEYS, KEYS | {"driver": "nobody"}] * 100}).json()["predictions"]
    assert [each["probability"] for each in many] == pytest.approx(
        [probability(0.25, 5.0), probability(0.25)] * 100
    )


def test_by_rows(http: httpx.Client) -> None:
    answer = ask(http, {"rows": [{"rating": 1.0, "city": None, "far": None}]})
    assert answer.json()["predictions"][0]["probability"] == pytest.approx(probability(0.25, 1.0))


def test_one_question_in_three_protocols(http: httpx.Client) -> None:
    tensors = [
        {"name": "rating", "shape": [1], "datatype": "FP32", "data": [1.0]},
        {"name": "city", "shape": [1], "datatype": "BYTES", "data": [None]},
        {"name": "far", "shape": [1], "datatype": "FP32", "data": [None]},
    ]
    row = {"rating": 1.0, "city": None, "far": None}
    inferred = http.post(f"{ROUTE}/v2/models/trips/infer", json={"inputs": tensors}).json()
    invoked = http.post(f"{ROUTE}/invocations", json={"dataframe_records": [row]}).json()
    asked = ask(http, {"rows": [row]}).json()["predictions"][0]["probability"]
    assert inferred["outputs"][0]["data"] == invoked["predictions"] == [asked]
    assert http.get(f"{ROUTE}/docs").headers["content-type"] == "text/html; charset=utf-8"
    assert http.get(f"{ROUTE}/openapi.json").json()["info"]["title"] == "trips"


def test_the_replica_has_imported_no_engine(http: httpx.Client) -> None:
    [prediction] = ask(http, {"keys": KEYS}, params={"features": "true"}).json()["predictions"]
    assert prediction["features"]["engines"] == ""
    assert prediction["status"] == {"drivers": "PRESENT", "zones": "PRESENT"}


def test_all_of_it_listens_on_the_loopback_interface_only(its: Settings, http: httpx.Client) -> None:
    found = processes.belonging(f"{its.home}:ray", [])
    heard = set[str]().union(*map(listening, found))
    assert any("ServeReplica" in process.name() or "ray::Serve" in process.name() for process in found)
    assert heard <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_the_description_has_an_example_that_works(http: httpx.Client) -> None:
    described = http.get(ROUTE).json()
    assert described["keys"] == {
        "driver": "string",
        "zone": "int64",
        "asked_at": "timestamp",
        "distance": "float64",
        "urgent": "bool",
    }
    assert set(described["inputs"]) == {"rating", "city", "far"}
    assert described["refused"] is None
    assert ask(http, described["example"]).status_code == 200
    assert http.get(f"{ROUTE}/ready").json() == {"ready": True, "version": "1"}
    assert http.get(f"{ROUTE}/").json() == described


def test_the_request_id_is_the_callers(http: httpx.Client) -> None:
    answer = ask(http, {"keys": KEYS}, headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == answer.json()["request_id"] == "mine"
    assert len(ask(http, {"keys": KEYS}).json()["request_id"]) >= 16


@pytest.mark.parametrize(
    ("method", "path", "content", "media_type", "status", "says"),
    [
        ("POST", "/predict", b"{", "application/json", 400, "not JSON"),
        ("POST", "/predict", b'{"keys": {}}', "application/json", 400, "'driver' is missing"),
        ("POST", "/predict", b'{"keys": {}}', "text/csv", 415, "text/csv"),
        ("POST", "/predict", b'{"keys": {}}', None, 415, "content-type"),
        ("POST", "/predict", b" " * (16 * 2**20 + 1), "application/json", 413, "16 MiB"),
        ("GET", "/predict", b"", None, 405, "GET"),
        ("DELETE", "", b"", None, 405, "DELETE"),
        ("POST", "/predicts", b"{}", "application/json", 404, "predicts"),
    ],
)
def test_what_is_not_answered_is_a_problem_object(
    http: httpx.Client, method: str, path: str, content: bytes, media_type: str | None, status: int, says: str
) -> None:
    headers = {"content-type": media_type} if media_type else {}
    answer = http.request(method, ROUTE + path, content=content, headers=headers)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert problem["status"] == status
    assert says in problem["detail"]
    assert problem["hint"]
    assert problem["request_id"] == answer.headers["x-request-id"]


def test_the_look_up_door_answers_those_with_a_key(its: Settings, http: httpx.Client) -> None:
    until(http, lambda described: described.get("version") == "c1", "/test/lookup/")
    assert http.get("/test/lookup/health").status_code == 200
    columns = {name: [value] for name, value in KEYS.items()}
    body = {"entities": columns, "feature_service": "trip_v1"}
    with serving_manta(its) as manta:
        keys = {who: manta.person(f"user:{who}", **{project: "viewer"}) for who, project in WHO.items()}

        def look(key: str, path: str = "get-online-features") -> httpx.Response:
            return http.post(f"/test/lookup/{path}", json=body, headers={"authorization": f"Bearer {key}"})

        assert [look(key).status_code for key in ("none", "guess", keys["other"])] == [401, 401, 404]
        assert look(keys["ours"], "push").status_code == 403
        answer = look(keys["ours"]).json()
        assert look(manta.owner_key, "push").json()["detail"].startswith("the body")
    values = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    assert values["rating"]["values"] == [5.0]
    assert values["engines"]["values"] == [""]  # neither Feast nor Polars nor an engine is in the replica


def test_a_charset_with_the_media_type_is_fine(http: httpx.Client) -> None:
    headers = {"content-type": "application/json; charset=utf-8"}
    assert (
        http.post(f"{ROUTE}/predict", content=json.dumps({"keys": KEYS}), headers=headers).status_code == 200
    )


def test_a_new_version_takes_over_with_every_request_answered(
    its: Settings, http: httpx.Client, put: Put, first: dict[str, str]
) -> None:
    biases = {"1": 0.25, "2": -0.5, "3": 1.5}
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def keep_asking() -> None:
        with httpx.Client(base_url=its.serve_url, timeout=30.0) as client:
            while not stop.is_set():
                answers.append(ask(client, {"keys": [KEYS] * 10}, params={"features": "true"}))

    askers = [threading.Thread(target=keep_asking) for _ in range(2)]
    for each in askers:
        each.start()
    try:
        for version in ("2", "3"):
            put(tiny.config(its.root / "project", biases[version], version))
            served(http, version)
        put(first)
        served(http, "1")
    finally:
        stop.set()
        for each in askers:
            each.join()

    assert {answer.status_code for answer in answers} == {200}
    bodies = [answer.json() for answer in answers]
    assert {body["version"] for body in bodies} == {"1", "2", "3"}
    for body in bodies:
        expected = probability(biases[body["version"]], 5.0)
        assert [each["probability"] for each in body["predictions"]] == pytest.approx([expected] * 10)
    # It was done in place, by one and the same process.
    assert len({each["features"]["process"] for body in bodies for each in body["predictions"]}) == 1


def test_a_version_that_answers_classes_says_so_and_gives_them(
    its: Settings, http: httpx.Client, put: Put, first: dict[str, str]
) -> None:
    assert (http.get(ROUTE).json()["task"], http.get(ROUTE).json()["threshold"]) == ("binary", 0.5)
    put(tiny.config(its.root / "project", 0.5, "several", "multiclass"))
    described = served(http, "several")
    assert (described["task"], tuple(described["classes"])) == ("multiclass", tiny.CLASSES)
    assert "threshold" not in described
    [prediction] = ask(http, {"keys": KEYS}).json()["predictions"]
    assert prediction["prediction"] == "far"
    assert tuple(prediction["probabilities"]) == tiny.CLASSES
    put(first)
    served(http, "1")


def test_a_version_that_cannot_be_loaded_leaves_the_old_one_serving(
    its: Settings, http: httpx.Client, put: Put, first: dict[str, str]
) -> None:
    broken = tiny.config(its.root / "project", 3.0, "4")
    (Path(broken["location"]) / "model.onnx").write_bytes(b"not a model")
    put(broken)
    described = until(http, lambda found: bool(found.get("refused")))
    assert described["version"] == "1"
    assert described["refused"]["version"] == "4"
    assert "has been changed" in described["refused"]["why"]
    assert ask(http, {"keys": KEYS}).json()["version"] == "1"
    put(first)
    assert until(http, lambda found: found.get("refused", True) is None)["version"] == "1"


def test_one_row_is_answered_in_milliseconds(http: httpx.Client) -> None:
    def once() -> float:
        began = time.perf_counter()
        assert ask(http, {"keys": KEYS}).status_code == 200
        return time.perf_counter() - began

    times = [once() for _ in range(200)]
    print(f"one row by keys through Serve: p50 {statistics.median(times) * 1000:.1f} ms")
    assert statistics.median(times) < 0.2
