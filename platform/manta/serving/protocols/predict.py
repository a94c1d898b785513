"""manta's own protocol: `POST …/predict` with `{"keys": …}` or `{"rows": …}`, one object or a list."""

from __future__ import annotations

from typing import Any

import msgspec

from manta.definitions import Endpoint
from manta.errors import RequestInvalid
from manta.serving import core
from manta.serving.http import JSON, Answer, json_of, require_media_type
from manta.serving.protocols import Call

FORMS = """{"keys": {…}} or {"rows": {…}}; {…} may be a list of them"""


def parse(content: bytes, endpoint: Endpoint) -> tuple[str, list[dict[str, Any]]]:
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
    if len(rows) > endpoint.max_rows:
        raise core.too_many(len(rows), endpoint)
    return form, rows


def answer(call: Call) -> Answer:
    """Raises:
    RequestInvalid: a row does not fit. FeaturesUnavailable: the online store does not answer.
    """
    call.asked.only("POST")
    require_media_type(call.asked.media_type, JSON)
    form, rows = parse(call.content, call.endpoint)
    features = call.asked.parameters().get("features", "").lower() in ("1", "true", "yes")
    if not rows:
        predictions: list[dict[str, Any]] = []
    elif form == "keys":
        predictions = core.by_keys(call.endpoint, call.loaded, rows, show_features=features)
    else:
        predictions = core.by_rows(call.endpoint, call.loaded, rows, show_features=features)
    return json_of(
        {
            "predictions": predictions,
            "model": call.endpoint.model,
            "version": call.loaded.version,
            "request_id": call.request_id,
        }
    )
