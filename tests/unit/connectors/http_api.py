"""A real HTTP server with an API of many habits, good and bad, for the tests of connectors."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "correct-horse-battery"
SIZE = 10


class Api:
    """What the server does.

    Attributes:
        url: where it is.
        records: what it has; each with an ``id`` and ``at``.
        asked: the paths and queries that were asked for, with the headers and when.
        before: called with (handler, how many times this was asked for); true when it has answered itself.
    """

    def __init__(self) -> None:
        self.url = ""
        self.records: list[dict[str, Any]] = []
        self.asked: list[tuple[str, dict[str, str], float]] = []
        self.before: Callable[[Handler, int], bool] = lambda handler, times: False
        self.times: Counter[str] = Counter()


class Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        api, parts = self.api, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        api.asked.append(
            (self.path, {name.lower(): value for name, value in self.headers.items()}, time.monotonic())
        )
        api.times[self.path] += 1
        if api.before(self, api.times[self.path]):
            return
        records = api.records
        if "since" in query:
            since = query["since"]
            records = [each for each in records if str(each["at"]) >= since or since.isdigit()]
        if "after" in query:
            records = [each for each in records if each["id"] >= int(query["after"])]
        getattr(self, f"_{parts.path.strip('/').replace('/', '_')}")(records, query)

    def answer(self, body: Any, status: int = 200, **headers: str) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body, indent=1).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", headers.pop("length", str(len(content))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def _all(self, records: list[Any], query: dict[str, str]) -> None:
        self.answer({"data": {"items": records}})

    def _list(self, records: list[Any], query: dict[str, str]) -> None:
        self.answer(records)

    def _page(self, records: list[Any], query: dict[str, str]) -> None:
        start = (int(query["page"]) - 1) * SIZE
        self.answer({"data": {"items": records[start : start + SIZE]}})

    def _offset(self, records: list[Any], query: dict[str, str]) -> None:
        start, limit = int(query["offset"]), min(SIZE, int(query["limit"]))
        self.answer({"data": {"items": records[start : start + limit]}})

    def _cursor(self, records: list[Any], query: dict[str, str]) -> None:
        start = int(base64.b64decode(query.get("cursor", "MA==")))
        following = (
            base64.b64encode(str(start + SIZE).encode()).decode() if start + SIZE < len(records) else None
        )
        self.answer({"data": {"items": records[start : start + SIZE]}, "meta": {"next": following}})

    def _link(self, records: list[Any], query: dict[str, str]) -> None:
        start = int(query.get("from", 0))
        more = f'</link?from={start + SIZE}>; rel="next", </link>; rel="first"'
        self.answer(records[start : start + SIZE], **({"Link": more} if start + SIZE < len(records) else {}))

    def _url(self, records: list[Any], query: dict[str, str]) -> None:
        start = int(query.get("from", 0))
        following = f"{self.api.url}/url?from={start + SIZE}" if start + SIZE < len(records) else None
        self.answer({"data": {"items": records[start : start + SIZE]}, "next": following})

    def _away(self, records: list[Any], query: dict[str, str]) -> None:
        self.answer({"data": {"items": records}, "next": "http://127.0.0.2:9/url"})

    def _moved(self, records: list[Any], query: dict[str, str]) -> None:
        self.answer(b"", 302, Location=f"{self.api.url}/all")

    def _same(self, records: list[Any], query: dict[str, str]) -> None:
        self.answer({"data": {"items": records[:SIZE]}})

    def log_message(self, *arguments: Any) -> None:
        pass


@contextmanager
def served() -> Iterator[Api]:
    api = Api()
    handler = type("OneApi", (Handler,), {"api": api})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield api
    finally:
        server.shutdown()
        server.server_close()
