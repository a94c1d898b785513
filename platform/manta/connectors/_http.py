"""Fetches JSON over HTTP with patience: tries again, waits as long as it is told to, keeps to a rate."""

from __future__ import annotations

import email.utils
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from manta import secrets
from manta.errors import SourceUnreadable

if TYPE_CHECKING:
    import httpx

TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
LONGEST_WAIT = 120.0  # seconds between two tries
CONNECTING = 5.0  # seconds


class Fetch:
    """GETs of one API.

    Args:
        shown: how the API is called in errors: without what is secret in its URL.
        tries: for each request.
        per_second: requests, at most.
    """

    def __init__(self, client: httpx.Client, shown: str, *, tries: int, per_second: float | None) -> None:
        self.client, self.shown, self.tries = client, shown, tries
        self._pause = 1 / per_second if per_second else 0.0
        self._next_at = 0.0

    def get(self, url: httpx.URL) -> httpx.Response:
        """The answer, whole, and its body JSON.

        Raises:
            SourceUnreadable: it did not come; says why, and no more of the URL than ``shown``.
        """
        import httpx

        for tried in range(1, self.tries + 1):
            time.sleep(max(0.0, self._next_at - time.monotonic()))
            self._next_at = time.monotonic() + self._pause
            wait = min(LONGEST_WAIT, 0.5 * 2 ** (tried - 1) * random.uniform(1, 1.5))
            try:
                answer = self.client.get(url)
                problem = _problem(answer)
            except httpx.TransportError as error:
                problem = f"does not answer: {type(error).__name__}: {error}"
            else:
                if problem is None:
                    return answer
                if not (answer.is_success or answer.status_code in TRANSIENT):
                    raise self.failed(problem, _hint(answer.status_code))
                wait = max(wait, _retry_after(answer))
            if wait > LONGEST_WAIT or tried == self.tries:
                break
            time.sleep(wait)
        times = f", {tried} times in a row" if tried > 1 else ""
        raise self.failed(f"{problem}{times}", "run the ingest again when the API answers")

    def failed(self, what: str, hint: str) -> SourceUnreadable:
        return SourceUnreadable(f"{self.shown} {secrets.redactor.text(what)}", hint=hint)


def _problem(answer: httpx.Response) -> str | None:
    if answer.is_success:
        try:
            msgspec.json.decode(answer.content, type=msgspec.Raw)
        except (msgspec.DecodeError, UnicodeError) as error:
            return f"answers what is not JSON: {error}"
        return None
    told = " ".join(answer.text.split())[:200]
    return f"answers {answer.status_code} {answer.reason_phrase}{f': {told}' if told else ''}"


def _hint(status: int) -> str:
    if status in (401, 403):
        return "correct `auth` in RestApi(…), or ask for access"
    if 300 <= status < 400:
        return "write the URL that it leads to: redirects are not followed, for they would take the key along"
    return "correct `url` and `params` in RestApi(…)"


def _retry_after(answer: httpx.Response) -> float:
    """Seconds that the server wants to be left alone."""
    told = answer.headers.get("retry-after", "")
    if told.isdigit():
        return float(told)
    try:
        return (email.utils.parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0
