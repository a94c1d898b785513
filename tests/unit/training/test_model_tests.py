"""Gates that look closer than at one figure: each passes what it should, and names what failed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression

from manta.definitions import (
    AtLeast,
    AtMost,
    BeatsChampion,
    Calibrated,
    Gate,
    Invariant,
    Latency,
    Memory,
    Monotone,
    NoLeakage,
    Signature,
)
from manta.errors import TrainingInvalid
from manta.training.evaluate import calibration, score
from manta.training.evidence import Altered, Evidence, Signed
from manta.training.evidence import check as check_gates
from manta.training.gates import Champion, Result, judge
from manta.training.probe import Footprint
from manta.training.refits import Shuffled, Spread
from manta.training.slices import Held

CARRIERS = ["UA"] * 1_200 + ["AA"] * 800 + ["HA"] * 600 + ["OO"] * 30 + ["YV"] * 600
START = datetime(2013, 11, 1, tzinfo=UTC)


def evidence(measured: Mapping[int, Any] | None = None, **fields: Any) -> Evidence:
    """Good everywhere but in HA, where it guesses; YV has one label."""
    count = len(CARRIERS)
    random = np.random.default_rng(2)
    carriers = np.array(CARRIERS)
    signal = random.normal(0, 1.5, count)
    labels = (random.random(count) < 1 / (1 + np.exp(-signal))).astype(np.float32)
    labels[carriers == "YV"] = 0
    p = 1 / (1 + np.exp(-np.where(carriers == "HA", random.normal(0, 1, count), signal)))
    order = random.permutation(count)
    examples = pl.DataFrame({"at": [START + timedelta(hours=at) for at in range(count)]})
    held = Held(pl.DataFrame({"carrier": carriers[order]}), examples, "at", labels[order])
    given: dict[str, Any] = {
        "held": held,
        "answers": p[order].astype(np.float32),
        "measured": measured or {},
    }
    return Evidence(**(given | fields))


def judged(gate: Gate, found: Any = None, **fields: Any) -> Result:
    (result,) = judge(
        [gate], {"roc_auc": 0.8}, None, None, evidence({} if found is None else {0: found}, **fields)
    )
    json.dumps(result.to_json(), allow_nan=False)
    return result


def test_a_slice_below_the_bound_fails_and_is_named_with_its_figure_and_rows() -> None:
    result = judged(AtLeast("roc_auc", 0.7, by="carrier", min_rows=500))
    pieces = {piece.name: piece for piece in result.pieces}
    assert [piece.name for piece in result.pieces] == ["UA", "AA", "HA", "YV", "OO"]
    assert {name: piece.passed for name, piece in pieces.items()} == {
        "UA": True,
        "AA": True,
        "HA": False,
        "OO": None,
        "YV": None,
    }
    assert not result.passed
    assert result.value == pieces["HA"].value < 0.7
    assert result.margin == pytest.approx(result.value - 0.7)
    assert f"{result.value:.4f} in HA (600 rows), of 3; 2 not judged" in str(result)
    assert pieces["OO"].reason == "fewer than 500 rows"
    assert pieces["YV"].reason == "all labels are 0"
    given = evidence()
    rows = (given.held.features["carrier"] == "AA").to_numpy()
    expected = score(given.held.labels[rows], given.answers[rows])["roc_auc"]
    assert pieces["AA"].value == pytest.approx(expected)


def test_slices_that_all_reach_the_bound_pass_and_the_worst_is_named() -> None:
    result = judged(AtLeast("roc_auc", 0.4, by="carrier"))
    assert result.passed
    assert str(result).startswith(
        f"roc_auc >= 0.4 in each carrier: at worst {result.value:.4f} in HA (600 rows)"
    )
    few = judged(AtLeast("roc_auc", 0.0, by="carrier", min_rows=5_000))
    assert not few.passed, "it cannot tell"
    assert "no carrier has both labels and 5,000 held-out rows" in str(few)


def test_slices_bound_from_above_too_and_go_by_time() -> None:
    result = judged(AtMost("ece", 0.9, by="month", min_rows=10))
    assert result.passed
    assert [piece.name for piece in result.pieces][:2] == ["2013-11", "2013-12"]
    assert sum(piece.rows or 0 for piece in result.pieces) == len(CARRIERS)
    low = judged(AtMost("ece", 0.001, by="month", min_rows=10))
    worst = max(piece.value for piece in low.pieces if piece.value is not None)
    assert low.value == worst
    assert not low.passed
    assert len([piece for piece in low.pieces if piece.passed is False]) >= 4


def test_without_evidence_a_gate_that_needs_it_does_not_pass() -> None:
    for gate in (AtLeast("roc_auc", 0.1, by="carrier"), Calibrated(ece=0.5), NoLeakage(), Latency(p95_ms=9)):
        (result,) = judge([gate], {"roc_auc": 0.9}, None)
        assert not result.passed
        assert "not measured" in str(result)
        assert not judged(gate).passed or isinstance(gate, AtLeast | Calibrated)


def champion(probabilities: np.ndarray | None) -> Champion:
    given = evidence()
    metrics = score(given.held.labels, given.answers if probabilities is None else probabilities)
    return Champion("3", metrics, "", probabilities)


def beats(gate: BeatsChampion, held_by: Champion | None) -> Result:
    given = evidence()
    (result,) = judge([gate], score(given.held.labels, given.answers), held_by, None, given)
    json.dumps(result.to_json(), allow_nan=False)
    return result


def test_a_gain_must_be_sure() -> None:
    ours = evidence().answers
    random = np.random.default_rng(8)
    hardly_worse = np.clip(ours + random.normal(0, 0.01, len(ours)), 0, 1)
    much_worse = np.clip(ours + random.normal(0, 0.5, len(ours)), 0, 1)
    assert beats(BeatsChampion("roc_auc", confidence=0.95), champion(much_worse)).passed
    assert beats(BeatsChampion("brier", confidence=0.95), champion(much_worse)).passed
    unsure = beats(BeatsChampion("brier", confidence=0.999), champion(hardly_worse))
    assert unsure.value < 0
    assert not unsure.passed
    assert "sure at least -" in str(unsure)
    assert beats(BeatsChampion("brier", 0.02, confidence=0.999), champion(hardly_worse)).passed
    better_by_chance = np.clip(ours + random.normal(0, 0.03, len(ours)), 0, 1)
    lucky = beats(BeatsChampion("brier", confidence=0.9999), champion(better_by_chance))
    assert champion(better_by_chance).metrics["brier"] > champion(ours).metrics["brier"]  # type: ignore[index]
    assert lucky.value < 0, "it is better, but not surely"
    assert not lucky.passed
    same = beats(BeatsChampion("roc_auc", confidence=0.95), champion(ours))
    assert (same.passed, same.value) == (True, 0)
    assert beats(BeatsChampion("roc_auc", confidence=0.95), None).passed
    unknown = beats(BeatsChampion("roc_auc", confidence=0.95), champion(None))
    assert not unknown.passed
    assert "were not kept" in str(unknown)


def test_any_seed_is_judged_by_what_a_further_one_would_reach() -> None:
    values = (0.74, 0.75, 0.76, 0.75, 0.75)
    spread = {"roc_auc": Spread(values), "ece": Spread(values)}
    # By hand: mean 0.75, deviation 0.00707, t(4) at 0.95 is 2.1318, times the root of 1.2.
    low = judged(AtLeast("roc_auc", 0.7, any_seed=True), spread=spread)
    assert low.value == pytest.approx(0.75 - 2.131847 * 0.00707107 * math.sqrt(1.2), abs=1e-6)
    assert low.passed
    assert not judged(AtLeast("roc_auc", 0.74, any_seed=True), spread=spread).passed
    high = judged(AtMost("ece", 0.76, any_seed=True), spread=spread)
    assert high.value == pytest.approx(1.5 - low.value)
    assert not high.passed
    assert "mean over 5 seeds is 0.7500" in str(high)
    assert "was not repeated" in str(judged(AtLeast("roc_auc", 0.1, any_seed=True)))


def test_what_a_further_seed_reaches_is_reached_19_times_out_of_20() -> None:
    random = np.random.default_rng(4)
    drawn = random.normal(0.7, 0.01, (20_000, 6))
    reached = [row[5] >= Spread(tuple(row[:5])).expected(True) for row in drawn[:4_000]]
    assert 0.935 < np.mean(reached) < 0.965


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (2.0, 0.0), (0.5, 1.0)])
def test_the_slope_is_that_of_a_logistic_regression(slope: float, shift: float) -> None:
    random = np.random.default_rng(5)
    log_odds = random.normal(-1, 1, 4_000)
    y = (random.random(4_000) < 1 / (1 + np.exp(-slope * log_odds - shift))).astype(np.float32)
    p = 1 / (1 + np.exp(-log_odds))
    fitted = LogisticRegression(C=math.inf, tol=1e-10, max_iter=1_000).fit(log_odds[:, None], y)
    found = calibration(y, p)
    assert found.slope == pytest.approx(float(fitted.coef_[0, 0]), rel=1e-4)
    assert found.slope == pytest.approx(slope, abs=0.15)
    assert found.offset == pytest.approx(p.mean() - y.mean())
    assert math.isnan(calibration(np.array([0, 0, 1, 1.0]), np.array([0.1, 0.2, 0.8, 0.9])).slope)
    assert math.isnan(calibration(np.array([0, 0, 1, 1.0]), np.full(4, 0.5)).slope)


def test_calibration_names_what_is_off() -> None:
    result = judged(Calibrated(ece=0.9, slope=0.01, offset=0.9))
    assert not result.passed
    assert (result.metric, result.bound) == ("slope", 0.01)
    assert [piece.passed for piece in result.pieces] == [True, False, True]
    assert judged(Calibrated(ece=0.9, offset=0.9)).passed
    given = evidence()
    off = abs(calibration(given.held.labels, given.answers).slope - 1)
    near = judged(Calibrated(slope=off + 0.01))
    assert (near.passed, near.value) == (True, pytest.approx(off))
    certain = evidence(answers=np.full(len(CARRIERS), 0.4, dtype=np.float32))
    (cannot,) = judge([Calibrated(slope=5)], {}, None, None, certain)
    assert not cannot.passed
    with pytest.raises(ValidationError, match="give one of"):
        Calibrated()


def test_a_feature_that_must_not_matter() -> None:
    change = np.concatenate([np.zeros(98), [0.2, -0.5]])
    gate = Invariant("carrier", at_most=0.1, share=0.98)
    assert judged(gate, Altered(change)).passed
    failed = judged(gate.replace(share=0.99), Altered(change))
    assert (failed.passed, failed.value) == (False, 0.2)
    assert judged(gate.replace(share=1.0), Altered(change)).value == 0.5
    assert "exchanged between rows" in str(failed)
    assert "set to any of UA, None" in judged(gate.replace(values=("UA", None)), Altered(change)).gate


def test_a_feature_that_must_go_one_way() -> None:
    change = np.array([0.1, 0.1, 0.0, -1e-9, -0.2])
    up = Monotone("wind", "up", step=1, share=0.8)
    assert judged(up, Altered(change)).passed
    assert judged(up.replace(share=0.81), Altered(change)).value == 0.8
    assert not judged(up.replace(share=0.81), Altered(change)).passed
    down = judged(up.replace(direction="down"), Altered(change))
    assert (down.passed, down.value) == (False, 0.6)
    assert "do not rise when wind is raised by 1" in down.gate
    assert "missing in every" in str(judged(up, Altered(np.empty(0))))
    with pytest.raises(ValidationError):
        Monotone("wind", "sideways", step=1)


def test_leakage_is_what_shuffled_labels_explain() -> None:
    assert judged(NoLeakage(), Shuffled(-0.01, 0.01, 20_000)).passed
    leaking = judged(NoLeakage(), Shuffled(0.3, 0.01, 20_000))
    assert not leaking.passed
    assert "explains 0.3000 of the held-out labels' variance, where chance gives at most 0.0100" in str(
        leaking
    )


def test_footprints_are_held_to_their_bounds_and_what_could_not_be_measured_fails() -> None:
    found = Footprint(p50_ms=1, p95_ms=4, requests=600, memory_mb=90, before_mb=60)
    assert judged(Latency(p95_ms=4), found).passed
    assert str(judged(Latency(p95_ms=3, rows=100), found)).startswith(
        "19 of 20 requests of 100 rows within 3 ms"
    )
    assert not judged(Latency(p95_ms=3), found).passed
    assert judged(Memory(mb=90), found).passed
    assert not judged(Memory(mb=89), found).passed
    dead = judged(Memory(mb=1e6), "its process ended with status -9: it said nothing")
    assert not dead.passed
    assert "status -9" in str(dead)


def test_a_signature_names_what_differs() -> None:
    types = {"carrier": "string", "wind": "float64", "hour": "int64"}
    taken = {"carrier": "string", "wind": "float32", "hour": "float32"}
    assert judged(Signature(), Signed(taken, types)).passed
    assert judged(Signature(), Signed(taken | {"hour": "int64"}, types)).passed
    wrong = judged(Signature(), Signed({"carrier": "float32", "wind": "float32", "sky": "string"}, types))
    assert not wrong.passed
    assert wrong.value == 3
    for words in ("sky is not a feature", "hour is not taken", "carrier is taken as float32, and is string"):
        assert words in str(wrong)


# --- other tasks ----------------------------------------------------------------------------------------


def test_a_slice_of_one_label_is_judged_by_what_has_a_value_there() -> None:
    kinds = pl.DataFrame({"kind": ["same"] * 600 + ["varied"] * 600})
    random = np.random.default_rng(1)
    numbers = np.concatenate([np.full(600, 7.0), random.normal(7, 2, 600)]).astype(np.float32)
    answers = numbers + np.float32(0.5)
    of_numbers = Evidence(Held(kinds, kinds, "at", numbers, "regression"), answers)
    classes = np.concatenate([np.zeros(600, dtype=np.int64), random.choice(3, 600)])
    p = 0.1 + 0.7 * np.eye(3)[classes]
    of_classes = Evidence(Held(kinds, kinds, "at", classes, "multiclass", ("left", "right", "up")), p)

    def pieces(gate: Gate, of: Evidence) -> dict[str, Any]:
        (result,) = judge([gate], {}, None, None, of)
        json.dumps(result.to_json(), allow_nan=False)
        return {piece.name: piece.reason or piece.value for piece in result.pieces}

    assert pieces(AtMost("mae", 1, by="kind"), of_numbers) == {"same": 0.5, "varied": pytest.approx(0.5)}
    assert pieces(AtLeast("r2", 0, by="kind"), of_numbers)["same"] == "all labels are 7"
    assert pieces(AtLeast("accuracy", 1, by="kind"), of_classes) == {"same": 1.0, "varied": 1.0}
    found = pieces(AtLeast("roc_auc", 1, by="kind"), of_classes)
    assert found == {"same": "all labels are left", "varied": 1.0}


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_a_gain_is_asked_of_other_tasks_too(task: Any) -> None:
    random = np.random.default_rng(2)
    frame = pl.DataFrame({"a": [0] * 500})
    if task == "multiclass":
        labels, metric = random.choice(3, 500), "log_loss"
        worse = random.dirichlet([1, 1, 1], 500)
        better, classes = 0.5 * worse + 0.5 * np.eye(3)[labels], ("a", "b", "c")
    else:
        labels, metric = random.normal(0, 9, 500), "rmse"
        worse = labels + random.normal(0, 3, 500)
        better, classes = 0.5 * worse + 0.5 * labels, ()
    given = Evidence(Held(frame, frame, "at", labels, task, classes), better)
    champion = Champion("3", score(labels, worse, task), "", worse)
    gate = BeatsChampion(metric, confidence=0.95)
    (result,) = judge([gate], score(labels, better, task), champion, None, given)
    assert result.passed
    assert result.value > 0
    swapped = Evidence(given.held, worse)
    (result,) = judge(
        [gate],
        score(labels, worse, task),
        Champion("3", score(labels, better, task), "", better),
        None,
        swapped,
    )
    assert not result.passed


def test_a_signature_tells_vectors_from_numbers() -> None:
    types = {"pixels": "list[float32]", "counts": "list[int64]", "wind": "float64"}
    taken = {"pixels": "float32[64]", "counts": "float32[3]", "wind": "float32"}
    assert judged(Signature(), Signed(taken, types)).passed
    wrong = judged(
        Signature(), Signed({"pixels": "float32", "counts": "string", "wind": "float32[2]"}, types)
    )
    assert wrong.value == 3
    assert "wind is taken as float32[2], and is float64" in str(wrong)
    assert not judged(Signature(), Signed({"tags": "float32[2]"}, {"tags": "list[string]"})).passed


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        (Monotone("pixels", "up", step=1), "needs a number, and pixels is of type List"),
        (Invariant("pixels", at_most=0.1, values=(0.5,)), "names 0.5, and pixels is of type List"),
        (AtLeast("accuracy", 0.5, by="pixels"), "pixels is of type List.*, which makes no slices"),
    ],
)
def test_a_vector_is_neither_raised_nor_replaced_nor_cut_into_slices(gate: Gate, says: str) -> None:
    features = pl.DataFrame({"pixels": pl.Series([[0.0, 1.0], None], dtype=pl.List(pl.Float32))})
    examples = pl.DataFrame({"at": [datetime(2013, 1, 1, tzinfo=UTC)] * 2})
    held = Held(features, examples, "at", np.array([0, 1], dtype=np.float32))
    with pytest.raises(TrainingInvalid, match=says):
        check_gates([gate], held, [])
    check_gates(
        [Invariant("pixels", at_most=0.1), Invariant("pixels", at_most=0.1, values=(None,))], held, []
    )
