"""On-demand functions: one call for all rows, the answer as declared."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from manta.errors import DefinitionInvalid
from manta.features.compiled import OnDemand
from manta.features.on_demand import compute


def view(**changes: Any) -> OnDemand:
    fields: dict[str, Any] = {
        "name": "asked",
        "function": "features.request_time:asked",
        "code": "",
        "singleton": False,
        "inputs": (("weather", "temp"),),
        "request": {"amount": "float64"},
        "features": {"warm": "bool", "total": "float64"},
    }
    return OnDemand(**fields | changes)


INPUTS = {"weather__temp": [1.0, None, 30.0]}
KNOWN = {"amount": [1, 2, 3], "city": ["a", "b", "c"]}


def test_the_function_is_called_once_with_columns() -> None:
    calls = []

    def asked(columns: dict[str, Any]) -> dict[str, Any]:
        calls.append(columns)
        return {
            "warm": [None if t is None else t > 20 for t in columns["temp"]],
            "total": [float("nan"), 2, 3],
            "more": [1],
        }

    answer = compute(view(), asked, INPUTS, KNOWN, 3)
    assert answer == {"warm": [False, None, True], "total": [None, 2.0, 3.0]}
    assert isinstance(answer["total"][1], float)
    (columns,) = calls
    assert columns["temp"] == columns["weather__temp"] == INPUTS["weather__temp"]
    assert columns["amount"] == [1, 2, 3]
    assert columns["city"] == ["a", "b", "c"]


def test_a_singleton_is_called_for_each_row() -> None:
    def asked(row: dict[str, Any]) -> dict[str, Any]:
        return {"warm": row["temp"] is not None, "total": row["amount"] * 2}

    answer = compute(view(singleton=True), asked, INPUTS, KNOWN, 3)
    assert answer == {"warm": [True, False, True], "total": [2.0, 4.0, 6.0]}


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"warm": [True] * 3}, "KeyError: 'total'"),
        ({"warm": [True] * 3, "total": [1.0]}, "1 values for 3 rows"),
        ({"warm": [True] * 3, "total": ["x", 1, 2]}, "could not convert"),
    ],
)
def test_another_answer_than_declared_is_an_error(answer: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionInvalid, match=says) as failure:
        compute(view(), lambda _columns: answer, INPUTS, KNOWN, 3)
    assert "warm, total" in failure.value.hint


def test_vectors_are_lists_whatever_the_function_makes_them_of() -> None:
    declared = {"pixels": "list[float32]", "counts": "list[int64]"}
    given = {
        "pixels": np.array([[0.1, 2.0], [3.0, 4.0]]),
        "counts": [np.array([1, 2]), None],
    }
    answer = compute(view(features=declared, inputs=()), lambda _columns: given, {}, {}, 2)
    assert answer == {"pixels": [[0.10000000149011612, 2.0], [3.0, 4.0]], "counts": [[1, 2], None]}
    assert [type(each) for each in answer["counts"][0]] == [int, int]
    with pytest.raises(DefinitionInvalid, match="TypeError"):
        compute(view(features=declared, inputs=()), lambda _c: given | {"counts": [[1.5], [2]]}, {}, {}, 2)


def test_types_are_made_as_declared() -> None:
    declared = {"count": "int64", "name": "string", "single": "float32", "when": "timestamp"}
    naive = datetime(2013, 1, 1)
    given = {"count": [2.0], "name": ["x"], "single": [0.1], "when": [naive]}
    answer = compute(view(features=declared, inputs=()), lambda _columns: given, {}, {}, 1)
    assert answer == {
        "count": [2],
        "name": ["x"],
        "single": [0.10000000149011612],
        "when": [naive.replace(tzinfo=UTC)],
    }
    for name, value in {"count": 2.5, "name": 5, "when": "2013-01-01"}.items():
        with pytest.raises(DefinitionInvalid, match="TypeError"):
            compute(
                view(features=declared, inputs=()), lambda _c, n=name, v=value: given | {n: [v]}, {}, {}, 1
            )
