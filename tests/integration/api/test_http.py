"""What a stranger can rely on: problems, pages, tags, limits of bodies, health, and requests sent twice."""

from __future__ import annotations

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from manta.api.server import create
from manta.app import Platform
from manta.control.inline import InlineEngine
from manta.errors import Unavailable

PROBLEM = "application/problem+json"


@pytest.fixture
def owner(served) -> httpx.Client:
    return served.http(served.owner_key)


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    problem = answer.json()
    assert {"type", "title", "status", "code", "detail", "hint"} <= set(problem)
    assert problem["status"] == status
    return problem


def test_every_error_is_a_problem(owner: httpx.Client) -> None:
    json_type = {"Content-Type": "application/json"}
    problem_of(owner.get("/nowhere"), 404)
    problem_of(owner.get("/v1/keys/"), 404)
    refused = owner.put("/v1/me")
    assert problem_of(refused, 405)["code"] == "method_not_allowed"
    assert refused.headers["allow"] == "GET"
    problem_of(owner.get("/v1/projects/mine/runs?limit=0"), 400)
    problem_of(owner.get("/v1/projects/Mine/runs"), 400)
    problem_of(owner.get("/v1/runs/99"), 404)
    assert (
        problem_of(owner.post("/v1/keys", content=b"{", headers=json_type), 400)["code"] == "request_invalid"
    )
    problem_of(owner.post("/v1/keys", content=b'{"principal": 1}', headers=json_type), 400)
    problem_of(owner.post("/v1/keys", content=b"principal=x"), 415)
    problem_of(owner.post("/v1/keys", content=b" " * 70_000, headers=json_type), 413)
    problem_of(owner.put(f"/v1/packages/{'0' * 32}", content=b"x" * 66 * 2**20), 413)


def test_a_body_that_does_not_tell_its_length_is_cut_off_too(owner: httpx.Client) -> None:
    def pieces() -> Any:
        for _ in range(70):
            yield b"x" * 2**20

    try:
        answer = owner.put(f"/v1/packages/{'0' * 32}", content=pieces())
    except httpx.WriteError:
        return  # the server hung up meanwhile
    problem_of(answer, 413)


def test_a_fault_tells_its_number_and_nothing_else(
    served, owner: httpx.Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(project: str) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(served.platform, "models", broken)
    answer = owner.get("/v1/projects/mine/models")
    number = problem_of(answer, 500)["errors"]["fault"]
    assert "hunter2" not in answer.text
    assert any(number in record.getMessage() and record.exc_info for record in caplog.records)


def test_pages_go_through_all_runs(served, owner: httpx.Client) -> None:
    made = [served.run_of("mine") for _ in range(7)]
    served.run_of("others")
    seen: list[int] = []
    before: int | None = None
    for _ in range(4):
        params = {"limit": 2} | ({"before": before} if before else {})
        page = owner.get("/v1/projects/mine/runs", params=params).json()
        seen += [run["id"] for run in page["items"]]
        before = page["next"]
        if before is None:
            break
    assert seen == sorted(made, reverse=True)
    assert before is None
    exactly = owner.get("/v1/projects/mine/runs", params={"limit": 7}).json()
    assert (len(exactly["items"]), exactly["next"]) == (7, None)


def test_what_has_not_changed_is_not_sent_again(served, owner: httpx.Client) -> None:
    owner.put("/v1/grants/user:ada/mine", json={"role": "viewer"})
    first = owner.get("/v1/grants")
    tag = first.headers["etag"]
    for named in (tag, f'W/{tag}, "x"', "*"):
        again = owner.get("/v1/grants", headers={"If-None-Match": named})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    owner.put("/v1/grants/user:ada/mine", json={"role": "developer"})
    changed = owner.get("/v1/grants", headers={"If-None-Match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag


def test_health_readiness_and_metrics(served, owner: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    with served.http(None) as nobody:
        assert nobody.get("/healthz").json()["status"] == "ok"
        until = time.monotonic() + 60
        while (ready := nobody.get("/readyz")).status_code == 503:  # the controller has just begun
            assert time.monotonic() < until, ready.text
            time.sleep(0.1)
        assert ready.json() == {"ledger": "ok", "controller": "ok", "ray": "ok"}
        served.run_of("mine")
        owner.get("/v1/runs/1")
        owner.get("/v1/runs/999")
        owner.get("/else/where")
        wanted = {
            'manta_http_requests_total{method="GET",route="/v1/runs/{run_id}",status="200"} 1.0',
            'manta_http_requests_total{method="GET",route="/v1/runs/{run_id}",status="404"} 1.0',
            'manta_http_requests_total{method="GET",route="none",status="404"} 1.0',
            "manta_ledger_up 1.0",
        }
        # A request is counted when its answer has ended, which the caller may know before.
        while not wanted <= set((text := nobody.get("/metrics").text).splitlines()):
            assert time.monotonic() < until, text
        assert "999" not in [line.split(" ")[0] for line in text.splitlines()]

        def down() -> None:
            raise Unavailable("Ray does not answer")

        monkeypatch.setattr(served.platform.engine, "check", down)
        monkeypatch.setattr(served.platform, "_looked_until", 0.0)
        assert "ray: Ray does not answer" in problem_of(nobody.get("/readyz"), 503)["detail"]
        assert nobody.get("/healthz").status_code == 200


def test_fifty_submissions_with_one_key_are_one_run(served_on) -> None:
    served = served_on
    key = served.person("user:ada", mine="developer")
    body = json.dumps(served.submission("mine")).encode()

    def send(_: int) -> int:
        headers = {"Idempotency-Key": "nightly-1", "Content-Type": "application/json"}
        with served.http(key, headers=headers) as http:
            while True:
                answer = http.post("/v1/projects/mine/runs", content=body)
                if answer.status_code == 201:
                    return int(answer.json()["id"])
                assert answer.status_code == 409, answer.text
                assert answer.headers["retry-after"] == "1"

    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(send, range(50)))) == 1
    assert len(served.platform.runs("mine")) == 1
    submitted = [
        entry for entry in served.platform.ledger.audit.entries(limit=500) if entry.action == "submit"
    ]
    assert len(submitted) == 1


def test_fifty_submissions_with_one_key_in_the_body_are_one_run(served) -> None:
    key = served.person("user:ada", mine="developer")
    body = served.submission("mine", key="nightly-1")

    def send(_: int) -> int:
        with served.http(key) as http:
            return int(http.post("/v1/projects/mine/runs", json=body).raise_for_status().json()["id"])

    with ThreadPoolExecutor(50) as pool:
        assert len(set(pool.map(send, range(50)))) == 1
    other = served.http(served.person("user:bob", mine="developer"))
    assert other.post("/v1/projects/mine/runs", json=body).json()["id"] == 2  # a key is its sender's own


def test_a_request_sent_twice_is_answered_alike(served, owner: httpx.Client) -> None:
    once = {"Idempotency-Key": "a"}
    body = served.submission("mine")
    first, again = (owner.post("/v1/projects/mine/runs", json=body, headers=once) for _ in range(2))
    assert first.json() == again.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    other = owner.post("/v1/projects/mine/runs", json={**body, "params": {"n": 2}}, headers=once)
    assert problem_of(other, 422)["code"] == "key_reused"
    made, shown = (
        owner.post("/v1/keys", json={"principal": "user:ada"}, headers={"Idempotency-Key": "b"}) for _ in "12"
    )
    assert made.json()["key"].startswith("manta_")
    assert made.headers["cache-control"] == "no-store"
    assert (shown.status_code, shown.json()["key"]) == (201, None)
    assert shown.json()["prefix"] == made.json()["prefix"]
    gone = [owner.delete("/v1/grants/user:x/mine", headers={"Idempotency-Key": "c"}) for _ in "12"]
    assert [answer.status_code for answer in gone] == [204, 204]
    # What failed was not done, and is done when it can be.
    once = {"Idempotency-Key": "d"}
    missing = {**body, "project": {**body["project"], "package": "0" * 32}}
    assert owner.post("/v1/projects/mine/runs", json=missing, headers=once).status_code == 404
    assert owner.post("/v1/projects/mine/runs", json=body, headers=once).status_code == 201


def test_requests_that_are_not_http_harm_nothing(served) -> None:
    for raw in (
        b"\x00\x01\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /%00%ff%2e%2e HTTP/1.1\r\nHost: x\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", served.settings.ports.server), timeout=10) as end:
            end.sendall(raw)
            end.settimeout(10)
            assert b" 40" in end.recv(2000)
    assert httpx.get(f"{served.url}/healthz").status_code == 200


def test_the_description_is_whole(settings) -> None:
    settings.home.mkdir()
    app = create(Platform(settings, InlineEngine(settings, settings.home / "inline")))
    described = app.openapi()
    assert described["openapi"] == "3.1.0"
    ids = [operation["operationId"] for path in described["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids)) >= 25
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            answers = set(operation["responses"])
            assert {"500", "503"} <= answers, path
            assert ("401" in answers) == bool(operation["security"]), path
            if method in ("post", "put", "delete"):
                assert {"409", "413", "422"} <= answers, path
