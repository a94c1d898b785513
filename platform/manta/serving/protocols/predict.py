"""manta's own protocol: `POST …/predict` with `{"keys": …}` or `{"rows": …}`, one object or a list."""

from __future__ import annotations

from typing import Any

import msgspec

from manta.definitions import Endpoint
from manta.errors import RequestInvalid
from manta.serving import core
from manta.serving.core import Loaded

FORMS = """{"keys": {…}} or {"rows": {…}}; {…} may be a list of them"""


def parse(content: bytes, most_rows: int) -> tuple[str, list[dict[str, Any]]]:
    """``"keys"`` or ``"rows"``, and the rows of a body.

    Raises:
        RequestInvalid: it is not JSON of that form, or has too many rows.
    """
    try:
        body = msgspec.json.decode(content)
    except (ValueError, RecursionError) as error:  # ValueError: msgspec's own, and text that is not UTF-8
        raise RequestInvalid(f"the body is not JSON: {error}", hint=f"send {FORMS}") from None
    if not isinstance(body, dict) or len(body) != 1 or not set(body) <= {"keys", "rows"}:
        raise RequestInvalid("the body must have either keys or rows, and nothing else", hint=f"send {FORMS}")
    ((form, given),) = body.items()
    rows = given if isinstance(given, list) else [given]
    if not all(isinstance(row, dict) for row in rows):
        raise RequestInvalid(f"{form} must be an object or a list of objects", hint=f"send {FORMS}")
    if len(rows) > most_rows:
        raise RequestInvalid(
            f"{len(rows)} rows are more than the {most_rows} this endpoint takes at once",
            hint="send them in several requests, or raise the endpoint's max_rows",
        )
    return form, rows


def answer(
    endpoint: Endpoint,
    loaded: Loaded,
    form: str,
    rows: list[dict[str, Any]],
    *,
    features: bool,
    request_id: str,
) -> bytes:
    """The body of the answer, JSON.

    Raises:
        RequestInvalid: a row does not fit.
        FeaturesUnavailable: the online store does not answer.
    """
    if not rows:
        predictions: list[dict[str, Any]] = []
    elif form == "keys":
        predictions = core.by_keys(endpoint, loaded, rows, show_features=features)
    else:
        predictions = core.by_rows(endpoint, loaded, rows, show_features=features)
    return msgspec.json.encode(
        {
            "predictions": predictions,
            "model": endpoint.model,
            "version": loaded.version,
            "request_id": request_id,
        }
    )
