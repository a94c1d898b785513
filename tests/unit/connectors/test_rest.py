"""REST APIs as a source, from a real server: pages, keys, patience, and reading on."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from manta.connectors.rest import (
    Basic,
    Bearer,
    Key,
    NextCursor,
    NextLink,
    NextUrl,
    Offset,
    PageNumber,
    RestApi,
    Since,
)
from manta.definitions import Column, Contract, Ingest, from_json
from manta.definitions.sources import Ask, Reading
from manta.errors import DefinitionInvalid, SourceUnreadable
from tests.unit.connectors.http_api import TOKEN, served

BASIC = base64.b64encode(f"me:{TOKEN}".encode()).decode()
PAGES: dict[str, Any] = {
    "page": PageNumber(),
    "offset": Offset(limit=500),
    "cursor": NextCursor(path="meta.next"),
    "link": NextLink(),
    "url": NextUrl(),
    "list": None,
    "all": None,
}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("API_TOKEN", TOKEN)
    with served() as api:
        api.records = [{"id": n, "at": f"2024-01-01T00:{n:02d}:00Z"} for n in range(35)]
        yield api


def source(api: Any, path: str = "all", **more: Any) -> RestApi:
    records = "" if path in ("link", "list") else "data.items"
    fields = {"url": f"{api.url}/{path}", "records": records, "pages": PAGES.get(path)}
    return RestApi(**{**fields, **more})


def read(source: RestApi, *columns: str, cursor: Any = None) -> tuple[pl.DataFrame, Reading]:
    ask = Ask(Path("/"), columns or ("id",), cursor)
    with source.opened(ask) as reading:
        found = [batch.values for piece in reading.pieces for batch in source.read(piece, ask)]
        return pl.concat(found) if found else pl.DataFrame({"id": []}), reading


def ids(source: RestApi, cursor: Any = None) -> list[int]:
    return [int(each) for each in read(source, cursor=cursor)[0]["id"]]


@pytest.mark.parametrize("path", list(PAGES))
@pytest.mark.parametrize("records", [0, 1, 10, 35])
def test_every_way_to_the_next_page(api: Any, path: str, records: int) -> None:
    api.records = api.records[:records]
    assert ids(source(api, path)) == list(range(records))


def test_values_are_as_they_stand_in_the_answer(api: Any) -> None:
    rows = [
        '{"id": 9007199254740993, "cost": 0.10000000000000000001, "word": "1\\n2 ü", "more": {"a": [1,\n2]}}',
        '{"id": 2, "word": null,\r\n "flag": true}',
    ]
    body = f"[{','.join(rows)}, 7]".encode()
    api.before = lambda handler, times: handler.answer(body) or True
    ask = Ask(Path("/"), ("id", "cost", "word", "flag", "more"))
    plain = source(api, "list")
    with plain.opened(ask) as reading:
        (rows_read,) = plain.read(reading.pieces[0], ask)
    assert rows_read.height == 3
    assert [broken.rule for broken in rows_read.broken] == ["not a JSON object"]
    assert rows_read.values.drop("more").rows() == [
        ("9007199254740993", "0.10000000000000000001", "1\n2 ü", None),
        ("2", None, None, "true"),
    ]
    assert json.loads(rows_read.values["more"][0]) == {"a": [1, 2]}


@pytest.mark.parametrize(
    ("auth", "header", "wanted"),
    [
        (Bearer(token="${env:API_TOKEN}"), "authorization", f"Bearer {TOKEN}"),
        (
            Basic(user="me", password="${env:API_TOKEN}"),
            "authorization",
            f"Basic {BASIC}",
        ),
        (Key(name="X-Api-Key", value="${env:API_TOKEN}"), "x-api-key", TOKEN),
        (Key(name="api_key", value="${env:API_TOKEN}", place="query"), "", f"api_key={TOKEN}"),
    ],
)
def test_keys_go_to_every_page_and_nowhere_else(api: Any, auth: Any, header: str, wanted: str) -> None:
    keyed = source(api, "cursor", auth=auth)
    _, reading = read(keyed)
    assert len(api.asked) == 4
    for path, headers, _ in api.asked:
        assert wanted == headers[header] if header else wanted in path
    api.before = lambda handler, times: handler.answer({"you sent": wanted}, 401) or True
    with pytest.raises(SourceUnreadable, match="answers 401 Unauthorized") as failed:
        read(keyed)
    assert "auth" in failed.value.hint
    told = [str(failed.value), repr(keyed), keyed.model_dump_json(), repr(reading), repr(reading.pieces)]
    assert not any(TOKEN in text for text in told)
    api.before = lambda handler, times: False
    for path in ("away", "moved"):
        with pytest.raises(SourceUnreadable, match=r"another host|answers 302"):
            read(source(api, path, auth=auth, pages=NextUrl()))


def too_many(handler: Any, times: int) -> bool:
    # Whoever comes again earlier than it was told is sent away again.
    asked = [at for path, _, at in handler.api.asked if path == handler.path]
    if time.monotonic() - asked[0] < 2:
        handler.answer({}, 429, Retry_After="2")
        return True
    return False


def broken(handler: Any, times: int) -> bool:
    if times == 1:
        handler.answer({"error": "oh"}, 500)
    return times == 1


def cut(handler: Any, times: int) -> bool:
    if times == 1:
        handler.answer(b'{"data": {"items": [{"id": 1},', length="99999")
        handler.close_connection = True
    return times == 1


def cut_politely(handler: Any, times: int) -> bool:
    if times == 1:
        handler.answer(b'{"data": {"items": [{"id": 1},')
    return times == 1


def hung_up(handler: Any, times: int) -> bool:
    if times == 1:
        handler.connection.shutdown(socket.SHUT_RDWR)
        handler.close_connection = True
    return times == 1


def slow(handler: Any, times: int) -> bool:
    if times == 1:
        time.sleep(1.5)  # the client does not wait for so long
        handler.close_connection = True
    return times == 1


@pytest.mark.parametrize("trouble", [too_many, broken, cut, cut_politely, hung_up, slow])
def test_what_passes_is_waited_for(api: Any, trouble: Any) -> None:
    api.before = lambda handler, times: "page=2" in handler.path and trouble(handler, times)
    timeout = 0.5 if trouble is slow else 60
    assert ids(source(api, "page", tries=2, timeout=timeout)) == list(range(35))
    assert api.times["/page?page=2"] == 2
    assert api.times["/page?page=3"] == 1


def test_what_does_not_pass_is_told(api: Any) -> None:
    api.before = lambda handler, times: handler.answer({"error": "oh"}, 503) or True
    with pytest.raises(SourceUnreadable, match=r"/all answers 503 .*oh.*, 2 times in a row") as failed:
        read(source(api, tries=2))
    assert failed.value.hint
    api.before = lambda handler, times: handler.answer({}, 429, Retry_After="3600") or True
    with pytest.raises(SourceUnreadable, match="answers 429"):
        read(source(api))
    api.before = lambda handler, times: handler.answer({}, 404) or True
    with pytest.raises(SourceUnreadable, match="answers 404"):
        read(source(api))
    assert api.times["/all"] == 4, "what will not pass is not tried again"
    with pytest.raises(SourceUnreadable, match=r"127\.0\.0\.1:9/x does not answer: ConnectError"):
        read(RestApi(url="http://127.0.0.1:9/x?key=abc", tries=2))


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        ("same", {"pages": PageNumber()}, "gives the same page twice"),
        ("all", {"records": "data.rows"}, "answers without 'data.rows'; at the top there is data"),
        ("all", {"records": "data"}, "has no list at 'data'"),
    ],
)
def test_another_habit_than_was_said(api: Any, path: str, fields: Any, told: str) -> None:
    with pytest.raises(SourceUnreadable, match=told) as failed:
        read(source(api, path, **fields))
    assert failed.value.hint


def test_a_rate_is_kept(api: Any) -> None:
    read(source(api, "page", per_second=10))
    times = [at for _, _, at in api.asked]
    assert len(times) == 5
    assert times[-1] - times[0] > 0.3  # 0.4, but for what the server itself was late


# --- reading on -------------------------------------------------------------------------------------------


def add(api: Any, *pairs: tuple[int, str]) -> None:
    api.records += [{"id": number, "at": at} for number, at in pairs]


def test_reading_on_by_a_time_gives_what_changed(api: Any) -> None:
    changing = source(api, "page", since=Since(field="at", param="since"))
    assert changing.incremental
    assert changing.overlaps
    api.records = []
    add(api, (1, "2024-01-01T00:00:00Z"), (2, "2024-01-01T00:00:00.5Z"), (3, "2024-01-01T02:00:00+02:00"))
    found, reading = read(changing)
    assert found.height == 3
    assert reading.cursor["value"] == "2024-01-01T00:00:00.5Z", "the latest as a time, not as a text"
    cursor = json.loads(json.dumps(reading.cursor))
    found, reading = read(changing, cursor=cursor)
    assert (list(reading.pieces), reading.cursor) == ([], cursor)
    assert "since=2024-01-01T00%3A00%3A00.5Z" in api.asked[-1][0]
    # At the very same moment one more is written, and one is corrected.
    add(api, (4, "2024-01-01T00:00:00.5Z"))
    api.records[1] = {"id": 2, "at": "2024-01-01T00:00:00.5Z", "word": "corrected"}
    found, reading = read(changing, "id", "word", cursor=cursor)
    assert sorted(found.rows()) == [("2", "corrected"), ("4", None)]
    assert list(read(changing, cursor=reading.cursor)[1].pieces) == []


def test_reading_on_by_a_number_that_only_rises(api: Any) -> None:
    rising = source(api, "page", since=Since(field="id", param="after", start=5, rising=True))
    assert not rising.overlaps
    assert ids(rising) == list(range(5, 35))
    cursor = read(rising)[1].cursor
    assert cursor == {"value": 34, "seen": []}
    add(api, (35, "x"), (36, "y"))
    assert ids(rising, cursor) == [35, 36]
    assert "after=34" in api.asked[-1][0]
    # Also where the API does not know the parameter, and gives all.
    deaf = source(api, "page", since=Since(field="id", param="unknown", rising=True))
    assert ids(deaf, cursor) == [35, 36]


@pytest.mark.parametrize(
    ("value", "told"),
    [(None, "is None in a record"), ("soon", "is 'soon' in a record"), (7, "which is larger cannot be told")],
)
def test_a_field_that_cannot_be_read_on_by(api: Any, value: Any, told: str) -> None:
    api.records[3]["at"] = value
    with pytest.raises(SourceUnreadable, match=told) as failed:
        read(source(api, since=Since(field="at", param="since")))
    assert failed.value.hint


def test_its_definition(api: Any) -> None:
    contract = Contract(columns={"id": Column(type="int64")}, key=("id",))
    plain = source(api, "offset", auth={"how": "bearer", "token": "${env:API_TOKEN}"}, pages={"by": "offset"})
    job = Ingest(dataset="d", source=plain, contract=contract)
    assert from_json(json.loads(json.dumps(job.to_json()))) == job
    assert isinstance(plain.pages, Offset)
    job = Ingest(dataset="d", source=source(api, since=Since(field="at", param="s")), contract=contract)
    assert job.mode == "upsert"
    with pytest.raises(DefinitionInvalid, match="begins with http"):
        from_json({**job.to_json(), "source": {"kind": "rest", "url": "ftp://x"}})
