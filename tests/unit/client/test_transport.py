"""What crosses HTTP, against a real server that loses connections, asks to be spared, or is not there."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from manta.client.transport import Transport, find_key
from manta.errors import Conflict, InvalidInput, NotFound, PlatformDown, TooMany, Unavailable
from manta.settings import Settings


class Server(ThreadingHTTPServer):
    """Answers with what is in ``script``, one item a request: a status with a body and headers, or None to
    hang up without a word. The last item goes on for ever."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, Any, dict[str, str]] | None] = [(200, {}, {})]
        self.asked: list[tuple[str, dict[str, str]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.asked.append(
            (self.command, {name.lower(): value for name, value in self.headers.items()})
        )
        script = self.server.script
        step = script.pop(0) if len(script) > 1 else script[0]
        if step is None:
            self.close_connection = True
            self.connection.close()
            return
        status, body, headers = step
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def transport(server: Server) -> Iterator[Transport]:
    transport = Transport(server.url, "manta_key")
    yield transport
    transport.close()


def test_a_lost_post_is_sent_again_with_the_key_that_it_had(server: Server, transport: Transport) -> None:
    server.script = [None, None, (201, {"id": 7}, {})]
    assert transport.json("POST", "/v1/runs/7/stop") == {"id": 7}
    keys = [headers["idempotency-key"] for _, headers in server.asked]
    assert len(keys) == 3
    assert len(set(keys)) == 1
    transport.json("POST", "/v1/runs/7/stop")
    assert server.asked[-1][1]["idempotency-key"] not in keys


def test_a_lost_read_is_sent_again(server: Server, transport: Transport) -> None:
    server.script = [None, (200, {"ok": 1}, {})]
    assert transport.json("GET", "/v1/me") == {"ok": 1}
    assert "idempotency-key" not in server.asked[0][1]


@pytest.mark.parametrize(
    "later",
    [
        (429, {"code": "too_many", "detail": "slow down"}, {"retry-after": "0"}),
        (409, {"code": "in_progress", "detail": "at work"}, {}),
    ],
)
def test_a_server_that_asks_for_it_is_asked_again(server: Server, transport: Transport, later: Any) -> None:
    server.script = [later, (200, {"ok": 1}, {})]
    assert transport.json("GET", "/v1/me") == {"ok": 1}


def test_patience_ends(server: Server, transport: Transport) -> None:
    server.script = [(429, {"code": "too_many", "detail": "slow down"}, {"retry-after": "3600"})]
    with pytest.raises(TooMany):
        transport.json("GET", "/v1/me")
    server.script = [None]
    with pytest.raises(PlatformDown) as error:
        transport.send("GET", "/v1/me", patience=0.5)
    assert "manta up" in error.value.hint


def test_what_the_server_refused_is_not_sent_again(server: Server, transport: Transport) -> None:
    for status, code, kind in ((404, "not_found", NotFound), (409, "conflict", Conflict)):
        server.script = [(status, {"code": code, "detail": "no", "hint": "try"}, {})]
        with pytest.raises(kind, match="no"):
            transport.json("POST", "/v1/x")
    assert len(server.asked) == 2


def test_an_answer_that_is_no_problem_object_is_told_as_it_is(server: Server, transport: Transport) -> None:
    server.script = [(502, ["bad gateway"], {})]
    with pytest.raises(Unavailable, match=r"502.*bad gateway"):
        transport.json("GET", "/v1/me")


def test_the_key_goes_to_the_platform_and_not_to_endpoints(server: Server, transport: Transport) -> None:
    transport.json("GET", "/v1/me")
    transport.ask(f"{server.url}/delay/predict", json={})
    transport.fetch(f"{server.url}/get-artifact")
    assert [headers.get("authorization") for _, headers in server.asked] == ["Bearer manta_key", None, None]


def test_the_owners_key_is_shown_to_its_own_platform_only(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert find_key(settings, None, own=True) is None
    settings.home.mkdir()
    (settings.home / "owner.key").write_text("owners\n")
    assert find_key(settings, None, own=True) == "owners"
    assert find_key(settings, None, own=False) is None
    (tmp_path / "ci.key").write_text("from-file\n")
    monkeypatch.setenv("MANTA_API_KEY_FILE", str(tmp_path / "ci.key"))
    assert find_key(settings, None, own=False) == "from-file"
    monkeypatch.setenv("MANTA_API_KEY", "from-variable")
    assert find_key(settings, None, own=True) == "from-variable"
    assert find_key(settings, "given", own=True) == "given"
    monkeypatch.delenv("MANTA_API_KEY")
    monkeypatch.setenv("MANTA_API_KEY_FILE", "/nowhere")
    with pytest.raises(InvalidInput, match="/nowhere"):
        find_key(settings, None, own=False)
