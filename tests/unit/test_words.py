"""How values are written, for people and as JSON."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest

from manta.words import plain, share, short, size


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [
        (0, 100, ""), (0, 0, ""), (1, 3, "33 %"), (1, 40, "2.5 %"), (1, 10**6, "<0.1 %"),
        (10**6 - 1, 10**6, ">99.9 %"), (7, 7, "100 %"), (999, 1000, "100 %"),
    ],
)  # fmt: skip
def test_shares(part: int, whole: int, said: str) -> None:
    assert share(part, whole) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (123_456, "123 kB"),
        (5 * 10**9, "5.0 GB"),
        (2e15, "2000.0 TB"),
    ],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, ""), (True, "true"), (2013, "2013"), (12345, "12,345"), (10**12, "1e+12"),
        (0.123456789, "0.12346"),
        ("2013-01-01T00:00:00+00:00", "2013-01-01"), ("2013-01-01T05:00:00+00:00", "2013-01-01 05:00:00"),
        (datetime(2013, 1, 1, 5, tzinfo=UTC), "2013-01-01 05:00:00"), (date(2013, 1, 1), "2013-01-01"),
        ("a\n b", "a b"), ("x" * 40, "x" * 27 + "…"), (b"\x01\xff", "01 ff"), (Decimal("1.10"), "1.10"),
        ([1, None], "[1, None]"),
    ],
)  # fmt: skip
def test_values_in_few_characters(value: object, said: str) -> None:
    assert short(value) == said


def test_values_as_json() -> None:
    rows = {
        "at": datetime(2013, 1, 1, 5, tzinfo=UTC),
        "days": [date(2013, 1, 1), time(5)],
        "money": Decimal("1.10"),
        "raw": b"\x00\xff",
        "not numbers": [float("nan"), float("inf"), 1.5],
        "nested": {"a": (1, None, True)},
        "big": 2**70,
    }
    assert json.loads(json.dumps(plain(rows), allow_nan=False)) == {
        "at": "2013-01-01T05:00:00+00:00",
        "days": ["2013-01-01", "05:00:00"],
        "money": "1.10",
        "raw": "AP8=",
        "not numbers": [None, None, 1.5],
        "nested": {"a": [1, None, True]},
        "big": 2**70,
    }
