"""Files in stores: a server that speaks S3, and HTTP servers with ranges and without; no Ray."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import http.server
import io
import logging
import threading
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manta.connectors.files import Files
from manta.connectors.formats import csv as csv_format
from manta.connectors.formats import jsonl as jsonl_format
from manta.connectors.formats import parquet as parquet_format
from manta.definitions.sources import Ask
from manta.errors import SourceUnreadable

TEXT = b"n,m\n" + b"".join(b'%d,"x\n%d"\n' % (row, row) for row in range(2000))
ROWS = [(str(row), f"x\n{row}") for row in range(2000)]


def read(source: Files, root: Path) -> list[Any]:
    ask = Ask(root, ("n", "m"))
    with source.opened(ask) as reading:
        rows = [
            row
            for piece in reading.pieces
            for batch in source.read(piece, ask)
            for row in batch.values.rows()
        ]
        reading.verify()
    return rows


def names(source: Files, root: Path) -> list[str]:
    with source.opened(Ask(root, ("n", "m"))) as reading:
        return [piece.file for piece in reading.pieces]


# --- S3 -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


Put = Callable[[str, bytes], None]


@pytest.fixture
def put(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Put]:
    """Writes an object into a new, empty bucket."""
    import boto3

    monkeypatch.setenv("S3_KEY", "key-of-the-test")
    monkeypatch.setenv("S3_SECRET", "secret-of-the-test")
    client = boto3.client(
        "s3",
        endpoint_url=s3,
        aws_access_key_id="key-of-the-test",
        aws_secret_access_key="secret-of-the-test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket="files")
    yield lambda key, body: client.put_object(Bucket="files", Key=key, Body=body)
    for each in client.list_objects_v2(Bucket="files").get("Contents", []):
        client.delete_object(Bucket="files", Key=each["Key"])
    client.delete_bucket(Bucket="files")


@pytest.fixture
def storage(s3: str) -> dict[str, Any]:
    return {"endpoint_url": s3, "key": "${env:S3_KEY}", "secret": "${env:S3_SECRET}"}


def test_s3_by_globs_and_ranges(
    put: Put, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(csv_format, "PIECE_BYTES", 5_000)
    put("in/2024/a.csv", TEXT)
    put("in/2025/b.csv.gz", gzip.compress(b"n,m\n7,y\n"))
    put("in/other.txt", b"no")
    source = Files(path="s3://files/in/*/*.csv*", storage=storage)
    found = names(source, tmp_path)
    assert found.count("2024/a.csv") > 3
    assert found[-1] == "2025/b.csv.gz"
    assert read(source, tmp_path) == [*ROWS, ("7", "y")]
    assert source.observe(tmp_path) is None


def test_s3_other_formats(
    put: Put, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquet_format, "PIECE_BYTES", 1_000)
    monkeypatch.setattr(jsonl_format, "PIECE_BYTES", 1_000)
    frame = pl.DataFrame({"n": range(3000), "m": ["x"] * 3000})
    for form, write in (
        ("parquet", functools.partial(frame.write_parquet, row_group_size=500)),
        ("jsonl", frame.write_ndjson),
    ):
        content = io.BytesIO()
        write(content)
        put(f"a.{form}", content.getvalue())
        source = Files(path=f"s3://files/a.{form}", format=form, storage=storage)
        assert len(names(source, tmp_path)) > 2
        assert [(int(n), m) for n, m in read(source, tmp_path)] == frame.rows()


def test_s3_objects_that_change_while_they_are_read(
    put: Put, storage: dict[str, Any], tmp_path: Path
) -> None:
    """Of the same size and, to S3's listing, in the same second: known by their ETag."""
    put("a.csv", b"n,m\n1,x\n")
    source = Files(path="s3://files/*.csv", storage=storage)
    (found,) = source.store.find(source.path)
    assert hashlib.md5(b"n,m\n1,x\n").hexdigest() in found.tag
    with source.opened(Ask(tmp_path, ("n",))) as reading:
        reading.verify()
        put("a.csv", b"n,m\n2,x\n")
        with pytest.raises(SourceUnreadable, match="changed while they were read"):
            reading.verify()


def test_s3_without_rights_bucket_or_server(
    put: Put, storage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceUnreadable, match=r"there is no s3://files/\*.csv") as failed:
        read(Files(path="s3://files/*.csv", storage=storage), tmp_path)
    assert failed.value.hint
    with pytest.raises(SourceUnreadable, match=r"s3://nowhere/a.csv"):
        read(Files(path="s3://nowhere/a.csv", storage=storage), tmp_path)
    gone = {**storage, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(SourceUnreadable, match=r"s3://files/a.csv cannot be read") as failed:
        read(Files(path="s3://files/a.csv", storage=gone), tmp_path)
    assert "secret-of-the-test" not in str(failed.value) + repr(failed.value.__cause__)


def test_secrets_are_references() -> None:
    for storage in ({"secret": "plain"}, {"client_kwargs": {"aws_secret_access_key": "plain"}}):
        with pytest.raises(ValueError, match="references to secrets") as failed:
            Files(path="s3://files/a.csv", storage=storage)
        assert "plain" not in str(failed.value).partition("input_value")[0]
    with pytest.raises(ValueError, match="references to secrets"):
        Files(path="https://me:plain@host/a.csv")


# --- HTTP ---------------------------------------------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives what is in ``server.files``, in ranges when ``server.ranges``."""

    server: Any
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path, _, query = self.path.partition("?")
        content = self.server.files.get(path)
        if content is None or (path == "/private.csv" and query != "token=the-token"):
            self.send_response(404 if content is None else 403)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        status, held = 200, content
        asked = self.headers.get("Range")
        if asked and self.server.ranges:
            start, _, stop = asked.removeprefix("bytes=").partition("-")
            held = content[int(start) : int(stop) + 1 if stop else None]
            status = 206
        self.send_response(status)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(held) - 1}/{len(content)}")
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Last-Modified", formatdate(0, usegmt=True))
        self.send_header("Content-Length", str(len(held)))
        self.end_headers()
        if body:
            self.wfile.write(held[: self.server.cut] if self.server.cut else held)
            self.server.sent += len(held)
            if self.server.cut:
                self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "no ranges"])
def web(request: pytest.FixtureRequest) -> Iterator[Any]:
    with web_server(ranges=request.param) as server:
        yield server


@contextlib.contextmanager
def web_server(ranges: bool) -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.ranges, server.cut, server.sent = {}, ranges, 0, 0
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_http(web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_format, "PIECE_BYTES", 5_000)
    web.files["/a.csv"] = TEXT
    source = Files(path=f"{web.url}/a.csv")
    assert set(names(source, tmp_path)) == {"a.csv"}
    assert (len(names(source, tmp_path)) > 3) == web.ranges
    assert read(source, tmp_path) == ROWS
    frame = pl.DataFrame({"n": ["1"], "m": ["x"]})
    content = io.BytesIO()
    frame.write_parquet(content)
    web.files["/a.parquet"] = content.getvalue()
    assert read(Files(path=f"{web.url}/a.parquet", format="parquet"), tmp_path) == [("1", "x")]
    web.files["/a.csv.gz"] = gzip.compress(TEXT)
    assert read(Files(path=f"{web.url}/a.csv.gz"), tmp_path) == ROWS


def test_http_changed_missing_denied_and_cut_short(
    web: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "the-token")
    web.files |= {"/a.csv": TEXT, "/private.csv": TEXT}
    with Files(path=f"{web.url}/a.csv").opened(Ask(tmp_path, ("n",))) as reading:
        web.files["/a.csv"] = TEXT.replace(b"1999", b"1998")
        with pytest.raises(SourceUnreadable, match="changed while they were read"):
            reading.verify()
    with pytest.raises(SourceUnreadable, match=r"there is no .*/b\.csv"):
        read(Files(path=f"{web.url}/b.csv"), tmp_path)
    with pytest.raises(SourceUnreadable, match=r"may not be read: the server answered 403"):
        read(Files(path=f"{web.url}/private.csv?token=wrong"), tmp_path)
    source = Files(path=web.url + "/private.csv?token=${env:TOKEN}")
    assert read(source, tmp_path) == ROWS
    assert names(source, tmp_path) == ["private.csv"]
    web.cut = 100
    with pytest.raises(SourceUnreadable, match=r"cannot be read|gave 100 bytes"):
        read(Files(path=f"{web.url}/a.csv"), tmp_path)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match="cannot be read") as failed:
        read(Files(path="http://127.0.0.1:9/a.csv"), tmp_path)
    assert failed.value.hint
