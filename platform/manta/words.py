"""How values are written: for people in few characters, and as JSON or SQL for programs."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time
from typing import Any


def faults(errors: Iterable[Mapping[str, Any]], whole: str = "") -> str:
    """Of pydantic's errors: where each is, and what; ``whole`` is what one that is nowhere in particular is
    of."""
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or whole}: {each['msg']}" for each in errors)


def quoted(name: str) -> str:
    """As an identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def size(count: float) -> str:
    """Of bytes."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def share(part: float, whole: float) -> str:
    """In percent: nothing for none, and never 0 % or 100 % for what is not quite."""
    if not part:
        return ""
    percent = 100 * part / max(whole, 1)
    if percent < 0.1:
        return "<0.1 %"
    if percent > 99.9 and part < whole:
        return ">99.9 %"
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def short(value: Any, width: int = 28) -> str:
    """In one line of few characters: numbers to five digits; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        if abs(value) < 10**4:
            return str(value)  # it may be a year
        return f"{value:,}" if abs(value) < 10**9 else f"{value:.4g}"
    if isinstance(value, float):
        return f"{value:,.5g}" if abs(value) < 10**6 else f"{value:.4g}"
    text = " ".join(_text(value).split())
    return text if len(text) <= width else text[: width - 1] + "…"


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value[:40].hex(" ")
    if isinstance(value, (datetime, str)):
        text = str(value).removesuffix("+00:00")
        if text[4:5] == "-" and text[10:11] in ("T", " "):
            return text.replace("T", " ").removesuffix(" 00:00:00")
        return str(value)
    return str(value)


def plain(value: Any) -> Any:
    """As JSON has it: times in ISO 8601, decimals as text, bytes in base64, NaN and infinity as null."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (datetime, date, time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return str(value)
