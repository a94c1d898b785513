"""HTTP APIs that answer with JSON, page after page.

The pages are fetched by the run's own process, one after the other, for each says where the next one is; what
they hold is kept compressed until tasks parse and check it.

dlt's ``rest_api`` can be read through :mod:`manta.connectors.dlt`. This is not built on it, for (in 1.31) it
sends the key to whatever host the next page is said to be on, gives up where an answer is cut off and says
200, asks for ever where an API does not know the parameter of the page, and rounds numbers to 64 bits.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from pydantic import Field, field_validator

from manta import secrets
from manta.connectors._http import CONNECTING, Fetch
from manta.definitions.base import Frozen
from manta.definitions.sources import Ask, Reading, Rows, Source
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    import httpx

PIECE_BYTES = 8 * 2**20
MOST_SEEN = 1000
ONE_LINE = bytes.maketrans(b"\r\n", b"  ")


class Bearer(Frozen):
    how: Literal["bearer"] = "bearer"
    token: str


class Basic(Frozen):
    how: Literal["basic"] = "basic"
    user: str
    password: str


class Key(Frozen):
    """A key in a header or in the query, under the name that the API wants."""

    how: Literal["key"] = "key"
    name: str
    value: str
    place: Literal["header", "query"] = "header"


class PageNumber(Frozen):
    """``?page=1``, and so on until a page has no records."""

    by: Literal["page"] = "page"
    param: str = "page"
    first: int = 1


class Offset(Frozen):
    """``?offset=200&limit=100``, and so on until a page has no records."""

    by: Literal["offset"] = "offset"
    param: str = "offset"
    limit_param: str = "limit"
    limit: int = Field(default=100, gt=0)


class NextCursor(Frozen):
    """``?cursor=…``, with what the page before has at ``path``, until there is none."""

    by: Literal["cursor"] = "cursor"
    param: str = "cursor"
    path: str


class NextLink(Frozen):
    """The header ``Link: <…>; rel="next"``, until there is none."""

    by: Literal["link"] = "link"


class NextUrl(Frozen):
    """The URL that the body has at ``path``, until there is none."""

    by: Literal["url"] = "url"
    path: str = "next"


class Since(Frozen):
    """Read on: the next reading asks for records from the largest value of ``field`` on.

    Attributes:
        field: of a record, at the top: a number, or a time in ISO 8601.
        param: of the query, which tells the API from where on.
        start: what the first reading asks for; all, when not given.
        rising: no record ever comes with a value that a reading has passed, as with a serial number. What the
            API gives again is then dropped, so that rows can be appended. Otherwise it is read again, which
            takes mode ``upsert``, and a key.
    """

    field: str
    param: str
    start: str | int | None = None
    rising: bool = False


Auth = Annotated[Bearer | Basic | Key, Field(discriminator="how")]
Pages = Annotated[PageNumber | Offset | NextCursor | NextLink | NextUrl, Field(discriminator="by")]


class RestApi(Source):
    """The records of an HTTP API that answers GET with JSON. A value that is an object or a list is its JSON.

        RestApi(url="https://api.example.com/orders", records="data", pages=NextCursor(path="meta.next"),
                auth=Bearer(token=Secret("env:TOKEN")), since=Since(field="updated_at", param="updated_from"))

    A page that does not come, or comes cut off, is asked for again, as late as the API wishes. Nobody is told
    a secret but the host in ``url``: redirects and next pages that lead elsewhere are refused.

    Attributes:
        url: of the first page; may hold references to secrets, as may ``params``, ``headers`` and ``auth``.
        records: where the list of records is in the body, names with dots between; empty for the body itself.
        pages: how the next one is asked for; None when there is only one.
        since: what makes it incremental.
        per_second: requests, at most.
        tries: for each page.
        timeout: seconds without a byte of the answer.
    """

    kind: Literal["rest"] = "rest"
    url: str
    records: str = ""
    params: dict[str, str | int | float | bool] = Field(default_factory=dict)
    headers: dict[str, str] = Field(default_factory=dict)
    auth: Auth | None = None
    pages: Pages | None = None
    since: Since | None = None
    per_second: float | None = Field(default=None, gt=0)
    tries: int = Field(default=5, ge=1)
    timeout: float = Field(default=60, gt=0)

    @field_validator("url")
    @classmethod
    def _is_a_url(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("the URL begins with http:// or https://")
        return url

    @property
    def incremental(self) -> bool:
        return self.since is not None

    @property
    def overlaps(self) -> bool:
        return self.since is not None and not self.since.rising

    @contextmanager
    def opened(self, ask: Ask) -> Iterator[Reading]:
        digest, pieces = hashlib.sha256(), []
        newest = Newest(self.since, ask.cursor) if self.since else None
        held: list[bytes] = []
        for records in Client(self, newest.start if newest else None).pages():
            # A line each: in JSON, the end of a line is never within a value.
            lines = [bytes(record).translate(ONE_LINE) for record in records]
            lines = newest.of(lines) if newest else lines
            for line in lines:
                digest.update(line + b"\n")
            held += lines
            if sum(map(len, held)) >= PIECE_BYTES:
                pieces.append(self._page(held))
                held = []
        if held:
            pieces.append(self._page(held))
        yield Reading(pieces, digest.hexdigest()[:16], newest.cursor() if newest else None)

    def _page(self, lines: list[bytes]) -> Page:
        text = b"\n".join(lines)
        return Page(_shown(self.url), len(text), zlib.compress(text, 1))

    def read(self, piece: Page, ask: Ask) -> Iterator[Rows]:
        from manta.connectors.formats import jsonl

        yield jsonl.json_rows(zlib.decompress(piece.lines).split(b"\n"), ask.columns, "record")


@dataclass(frozen=True)
class Page:
    """Some records, a line each, compressed."""

    file: str
    size: int
    lines: bytes


class Newest:
    """Which records are new, and where the next reading begins.

    The cursor is the largest value that any record had, and the hashes of those that had it: they come again,
    and others with the same value may come later. Of more than MOST_SEEN, none is kept: all come again.
    """

    def __init__(self, since: Since, cursor: dict[str, Any] | None) -> None:
        self.since = since
        self.start = cursor["value"] if cursor else since.start
        self._before = _rank(self.start, since.field) if cursor else None
        self._seen = set(cursor["seen"]) if cursor else set()
        self._value, self._rank, self._last = self.start, self._before, set(self._seen)

    def of(self, records: list[bytes]) -> list[bytes]:
        return [record for record in records if self._is_new(record)]

    def _is_new(self, record: bytes) -> bool:
        raw = _at(record, self.since.field)
        value = msgspec.json.decode(raw) if raw is not None else None
        rank = _rank(value, self.since.field)
        hashed = hashlib.sha256(record).hexdigest()[:16]
        try:
            passed = self._before is not None and rank < self._before
            again = rank == self._before and (self.since.rising or hashed in self._seen)
            if passed or again:
                return False
            if self._rank is None or rank > self._rank:
                self._value, self._rank, self._last = value, rank, set()
        except TypeError:
            raise SourceUnreadable(
                f"{self.since.field!r} is {value!r} in one record and {self._value!r} in another: "
                "which is larger cannot be told",
                hint="choose a field that has numbers only, or times only",
            ) from None
        if rank == self._rank:
            self._last.add(hashed)
        return True

    def cursor(self) -> dict[str, Any] | None:
        if self._value is None or self._rank is None:
            return None
        seen = [] if self.since.rising or len(self._last) > MOST_SEEN else sorted(self._last)
        return {"value": self._value, "seen": seen}


def _rank(value: Any, field: str) -> Any:
    """What a value is compared by."""
    if isinstance(value, str) and value.isdigit():
        return int(value)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            moment = None
        if moment is not None:
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise SourceUnreadable(
        f"{field!r} is {value!r} in a record, neither a number nor a time",
        hint="choose a field that each record has, at its top, for Since(field=…)",
    )


class Client:
    """Fetches the pages of a source."""

    def __init__(self, source: RestApi, since: Any) -> None:
        self.source = source
        self.url = secrets.resolve_url(source.url)
        self.params: dict[str, Any] = dict(secrets.resolve(source.params))
        self.headers: dict[str, str] = {"accept": "application/json", **secrets.resolve(source.headers)}
        self.basic: tuple[str, str] | None = None
        if source.since and since is not None:
            self.params[source.since.param] = since
        self._authenticate(source.auth)

    def _authenticate(self, auth: Bearer | Basic | Key | None) -> None:
        if isinstance(auth, Bearer):
            self.headers["authorization"] = f"Bearer {secrets.resolve(auth.token)}"
        elif isinstance(auth, Basic):
            self.basic = (secrets.resolve(auth.user), secrets.resolve(auth.password))
        elif isinstance(auth, Key):
            (self.params if auth.place == "query" else self.headers)[auth.name] = secrets.resolve(auth.value)

    def pages(self) -> Iterator[list[msgspec.Raw]]:
        """The records of each page, as they stand in it."""
        import httpx

        source, timeout = self.source, httpx.Timeout(self.source.timeout, connect=CONNECTING)
        with httpx.Client(timeout=timeout, headers=self.headers, auth=self.basic) as client:
            fetch = Fetch(client, _shown(source.url), tries=source.tries, per_second=source.per_second)
            url, before = self._first(), b""
            while url is not None:
                answer = fetch.get(url)
                records = self._records(answer.content)
                if records and answer.content == before:
                    raise self._failed(
                        "gives the same page twice", "the API goes on in another way than `pages` says"
                    )
                before = answer.content
                yield records
                url = self._after(url, answer, len(records))

    def _first(self) -> httpx.URL | None:
        import httpx

        url, pages = httpx.URL(self.url), self.source.pages
        if isinstance(pages, PageNumber):
            self.params[pages.param] = pages.first
        elif isinstance(pages, Offset):
            self.params |= {pages.param: 0, pages.limit_param: pages.limit}
        return url.copy_merge_params(self.params)

    def _after(self, url: httpx.URL, answer: httpx.Response, records: int) -> httpx.URL | None:
        """Where the next page is, None after the last."""
        pages = self.source.pages
        if isinstance(pages, PageNumber | Offset):
            if not records:
                return None
            step = 1 if isinstance(pages, PageNumber) else records
            following = url.copy_set_param(pages.param, int(url.params[pages.param]) + step)
        elif isinstance(pages, NextCursor):
            cursor = _value(answer.content, pages.path)
            if cursor in (None, "", False):
                return None
            following = url.copy_set_param(pages.param, cursor)
        elif isinstance(pages, NextLink | NextUrl):
            link = answer.links.get("next", {}).get("url")
            link = link if isinstance(pages, NextLink) else _value(answer.content, pages.path)
            if not link:
                return None
            following = url.join(link)
        else:
            return None
        if (following.scheme, following.host, following.port) != (url.scheme, url.host, url.port):
            raise self._failed(
                f"says that the next page is at {following.host}, another host",
                "what it is told there it need not be told: read from that host, if you trust it",
            )
        if following == url:
            raise self._failed("names a page as the one after itself", "see what `pages` says")
        return following

    def _records(self, body: bytes) -> list[msgspec.Raw]:
        raw = _at(body, self.source.records)
        if raw is None or bytes(raw) == b"null":
            if raw is None:
                names = ", ".join(sorted(_object(body))) or "no object"
                raise self._failed(
                    f"answers without {self.source.records!r}; at the top there is {names}",
                    "say in `records` where the list is",
                )
            return []
        try:
            return msgspec.json.decode(raw, type=list[msgspec.Raw])
        except msgspec.ValidationError:
            raise self._failed(
                f"has no list {f'at {self.source.records!r}' if self.source.records else 'as its body'}",
                "say in `records` where the list is",
            ) from None

    def _failed(self, what: str, hint: str) -> SourceUnreadable:
        return SourceUnreadable(f"{_shown(self.source.url)} {secrets.redactor.text(what)}", hint=hint)


def _shown(url: str) -> str:
    return secrets.without_passwords(url.partition("?")[0])


def _object(body: bytes | msgspec.Raw) -> dict[str, msgspec.Raw]:
    try:
        return msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        return {}


def _at(body: bytes | msgspec.Raw, path: str) -> bytes | msgspec.Raw | None:
    found: bytes | msgspec.Raw | None = body
    for name in path.split(".") if path else ():
        found = _object(found).get(name) if found is not None else None
    return found


def _value(body: bytes, path: str) -> Any:
    raw = _at(body, path)
    return None if raw is None else msgspec.json.decode(raw)
