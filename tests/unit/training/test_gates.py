"""Gates as a table: what lets pass, what blocks, and by how much."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime

import pytest

from manta.definitions import AtLeast, AtMost, BeatsChampion, Parity
from manta.ledger.parity import Cause, Example, ParityReport, Skewed
from manta.training.gates import Champion, judge

NAN = float("nan")


@pytest.mark.parametrize(
    ("gate", "value", "champion", "passed", "margin"),
    [
        (AtLeast("roc_auc", 0.72), 0.75, None, True, 0.03),
        (AtLeast("roc_auc", 0.72), 0.72, None, True, 0.0),
        (AtLeast("roc_auc", 0.72), 0.70, None, False, -0.02),
        (AtLeast("roc_auc", 0.72), NAN, None, False, NAN),
        (AtMost("ece", 0.05), 0.02, None, True, 0.03),
        (AtMost("ece", 0.05), 0.08, None, False, -0.03),
        (AtMost("ece", 0.05), NAN, None, False, NAN),
        (BeatsChampion("roc_auc"), 0.75, None, True, None),
        (BeatsChampion("roc_auc"), NAN, None, False, None),
        (BeatsChampion("roc_auc"), 0.75, 0.74, True, 0.01),
        (BeatsChampion("roc_auc"), 0.75, 0.75, True, 0.0),
        (BeatsChampion("roc_auc"), 0.74, 0.75, False, -0.01),
        (BeatsChampion("roc_auc", tolerance=0.02), 0.74, 0.75, True, 0.01),
        (BeatsChampion("roc_auc", tolerance=0.02), 0.72, 0.75, False, -0.01),
        (BeatsChampion("roc_auc"), 0.75, NAN, False, NAN),
        (BeatsChampion("ece"), 0.03, 0.04, True, 0.01),
        (BeatsChampion("brier"), 0.15, 0.14, False, -0.01),
        (BeatsChampion("brier", tolerance=0.02), 0.15, 0.14, True, 0.01),
    ],
)
def test_one_gate(
    gate: AtLeast | AtMost | BeatsChampion,
    value: float,
    champion: float | None,
    passed: bool,
    margin: float | None,
) -> None:
    held = None if champion is None else Champion("3", {gate.metric: champion})
    (result,) = judge([gate], {gate.metric: value}, held)
    assert result.passed is passed
    assert result.margin == (None if margin is None else pytest.approx(margin, nan_ok=True))
    json.dumps(result.to_json(), allow_nan=False)


def test_a_failed_gate_says_which_and_by_how_much() -> None:
    (result,) = judge([AtLeast("roc_auc", 0.72)], {"roc_auc": 0.7012}, None)
    assert str(result) == "roc_auc >= 0.72: roc_auc is 0.7012, failed by 0.0188"


def test_a_champion_that_cannot_be_scored_blocks_and_says_why() -> None:
    champion = Champion("3", None, "it takes wind, which the training set does not have")
    (result,) = judge([BeatsChampion("roc_auc")], {"roc_auc": 0.99}, champion)
    assert not result.passed
    assert "wind" in str(result)
    assert "version 3" in str(result)


def test_every_gate_is_judged_in_order() -> None:
    found = judge([AtMost("ece", 0.1), AtLeast("roc_auc", 0.9)], {"ece": 0.2, "roc_auc": 0.8}, None)
    assert [result.metric for result in found] == ["ece", "roc_auc"]
    assert not any(result.passed for result in found)
    assert all(math.isfinite(result.value) for result in found)


def parity(*found: Skewed) -> ParityReport:
    return ParityReport(
        service="v1",
        watermark=datetime(2024, 5, 1, tzinfo=UTC),
        rows=100,
        values=1000,
        skewed=sum(each.values for each in found),
        compared={"rates.mean": 100},
        found=found,
    )


def test_parity_passes_when_every_value_is_the_same_online_and_names_the_cause_when_not() -> None:
    gates = (Parity(),)
    (clean,) = judge(gates, {}, None, parity())
    assert clean.passed
    example = Example(keys={"a": 1}, at=datetime(2024, 5, 1, tzinfo=UTC), offline="1.0", online="2.0")
    skewed = Skewed(view="rates", feature="mean", cause=Cause.TRANSFORM, values=7, of=100, example=example)
    (refused,) = judge(gates, {}, None, parity(skewed))
    assert not refused.passed
    assert (refused.value, refused.bound, refused.margin) == (7, 0.0, -7.0)
    assert "transform in rates.mean (7 of 100)" in str(refused)
    assert "next: " in "\n".join(parity(skewed).lines())


def test_parity_does_not_pass_when_nobody_looked() -> None:
    (refused,) = judge((Parity(),), {}, None)
    assert not refused.passed
    assert "not checked" in str(refused)
    json.dumps(refused.to_json(), allow_nan=False)
