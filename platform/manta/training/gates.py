"""Gates: pure checks between a trained model and its promotion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

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
    Parity,
    Signature,
)
from manta.ledger.parity import ParityReport
from manta.models.encoding import vector_length
from manta.training.bootstrap import gain
from manta.training.evaluate import NEEDS_VARIETY, SMALLER_IS_BETTER, calibration, measure
from manta.training.evidence import Altered, Evidence, Signed
from manta.training.probe import Footprint
from manta.training.refits import Shuffled
from manta.training.slices import slices

NAMED = 5  # of what failed, in a sentence; the table has all
KINDS = {  # what a package takes a feature as → types of a feature service that are given so
    "string": ("string",),
    "bool": ("bool",),
    "int64": ("int32", "int64"),
    "float32": ("float32", "float64", "int32", "int64", "bool"),
}
VECTORS = tuple(f"list[{kind}]" for kind in ("float32", "float64", "int32", "int64"))


@dataclass(frozen=True)
class Champion:
    """The version that holds the alias, scored on the same held-out rows.

    Attributes:
        metrics: None when it could not be scored, for ``reason``.
        answers: to the held-out rows.
    """

    version: str
    metrics: Mapping[str, float] | None
    reason: str = ""
    answers: np.ndarray | None = None


@dataclass(frozen=True)
class Piece:
    """One of several things that a gate looked at: a slice, or one of several figures.

    Attributes:
        rows: None where rows are not counted.
        passed: None when it is listed only, for ``reason``.
    """

    name: str
    rows: int | None
    value: float | None
    bound: float
    passed: bool | None
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """What one gate said.

    Attributes:
        gate: in words, e.g. ``roc_auc >= 0.72``.
        bound: None where there is nothing to compare with.
        margin: how far ``value`` is on the good side of ``bound``; negative when it failed by that much.
        reason: why, where the figures do not say it.
        pieces: what it looked at one by one, where it did; ``value`` is then that of the worst.
    """

    gate: str
    metric: str
    value: float
    bound: float | None
    margin: float | None
    passed: bool
    reason: str = ""
    pieces: tuple[Piece, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            name: [_finite(piece) for piece in value] if name == "pieces" else value
            for name, value in _finite(asdict(self)).items()
        }

    def __str__(self) -> str:
        if self.reason:
            return f"{self.gate}: {self.reason}"
        verdict = "passed" if self.passed else "failed"
        by = "" if self.margin is None else f" by {abs(self.margin):.4f}"
        return f"{self.gate}: {self.metric} is {self.value:.4f}, {verdict}{by}"


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in fields.items()
    }


def judge(
    gates: Sequence[Gate],
    metrics: Mapping[str, float],
    champion: Champion | None,
    parity: ParityReport | None = None,
    evidence: Evidence | None = None,
) -> list[Result]:
    """One result per gate, in order. A value that is not a number passes no gate; a gate that asks for what
    was not measured does not pass.

    A champion that cannot be scored on these rows (it takes a feature that the training set no longer has, or
    its package is gone) fails :class:`BeatsChampion`: a gate that cannot tell must not let pass. Taking the
    gate out of the definition for one training is the deliberate way around.
    """
    return [_result(at, gate, metrics, champion, parity, evidence) for at, gate in enumerate(gates)]


def _result(
    at: int,
    gate: Gate,
    metrics: Mapping[str, float],
    champion: Champion | None,
    parity: ParityReport | None,
    evidence: Evidence | None,
) -> Result:
    if isinstance(gate, Parity):
        return _parity(parity)
    if isinstance(gate, BeatsChampion):
        return _beats(gate, metrics[gate.metric], champion, evidence)
    if isinstance(gate, AtLeast | AtMost) and gate.by is None and not gate.any_seed:
        value = metrics[gate.metric]
        return _compared(f"{gate.metric} {_sign(gate)} {gate.bound:g}", gate.metric, gate, value)
    if evidence is None:
        return _unknown(gate.kind, gate.kind, "it was not measured")
    if isinstance(gate, AtLeast | AtMost):
        return _by_slice(gate, gate.by, evidence) if gate.by is not None else _any_seed(gate, evidence)
    if isinstance(gate, Calibrated):
        return _calibrated(gate, evidence)
    found = evidence.measured.get(at, "it was not measured")
    if isinstance(gate, Invariant) and isinstance(found, Altered):
        return _invariant(gate, found)
    if isinstance(gate, Monotone) and isinstance(found, Altered):
        return _monotone(gate, found)
    if isinstance(gate, NoLeakage) and isinstance(found, Shuffled):
        return _leakage(found)
    if isinstance(gate, Latency) and isinstance(found, Footprint):
        name = f"19 of 20 requests of {_rows(gate.rows)} within {gate.p95_ms:g} ms"
        return _within(name, "p95_ms", found.p95_ms, gate.p95_ms)
    if isinstance(gate, Memory) and isinstance(found, Footprint):
        name = f"memory <= {gate.mb:g} MiB, at requests of {_rows(gate.rows)}"
        return _within(name, "memory_mb", found.memory_mb, gate.mb)
    if isinstance(gate, Signature) and isinstance(found, Signed):
        return _signature(found)
    return _unknown(gate.kind, gate.kind, str(found))


def _rows(count: int) -> str:
    return f"{count:,} rows" if count > 1 else "one row"


def _percent(share: float) -> str:
    return f"{100 * share:.7g} %"


def _sign(gate: AtLeast | AtMost) -> str:
    return ">=" if isinstance(gate, AtLeast) else "<="


def _over(gate: AtLeast | AtMost, value: float) -> float:
    return value - gate.bound if isinstance(gate, AtLeast) else gate.bound - value


def _compared(name: str, metric: str, gate: AtLeast | AtMost, value: float, reason: str = "") -> Result:
    margin = _over(gate, value)
    return Result(name, metric, value, gate.bound, margin, margin >= 0, reason)


def _within(
    name: str, metric: str, value: float, bound: float, reason: str = "", pieces: tuple[Piece, ...] = ()
) -> Result:
    margin = bound - value
    return Result(name, metric, value, bound, margin, margin >= 0, reason, pieces)


def _unknown(name: str, metric: str, why: str, pieces: tuple[Piece, ...] = ()) -> Result:
    return Result(name, metric, math.nan, None, None, False, why, pieces)


def _by_slice(gate: AtLeast | AtMost, by: str, evidence: Evidence) -> Result:
    held, found = evidence.held, slices(evidence.held, by)
    labels, varied = held.labels, held.task == "binary" or gate.metric in NEEDS_VARIETY
    pieces = []
    for at, (name, rows) in enumerate(zip(found.names, found.rows.tolist(), strict=True)):
        within = found.at == at
        if rows < gate.min_rows:
            why = f"fewer than {gate.min_rows:,} rows"
            pieces.append(Piece(name, rows, None, gate.bound, None, why))
        elif varied and labels[within].min() == labels[within].max():
            why = f"all labels are {held.named(labels[within][0])}"
            pieces.append(Piece(name, rows, None, gate.bound, None, why))
        else:
            value = measure(gate.metric, labels[within], evidence.answers[within])
            pieces.append(Piece(name, rows, value, gate.bound, _over(gate, value) >= 0))
    name = f"{gate.metric} {_sign(gate)} {gate.bound:g} in each {by}"
    judged = [(piece.value, piece) for piece in pieces if piece.value is not None]
    if not judged:
        both = " both labels and" if held.task == "binary" else ""
        why = f"no {by} has{both} {gate.min_rows:,} held-out rows"
        return _unknown(name, gate.metric, why, tuple(pieces))
    ranked = sorted(judged, key=lambda one: _over(gate, one[0]))
    told = [f"{value:.4f} in {piece.name} ({piece.rows:,} rows)" for value, piece in ranked]
    failed = [each for each, (_, piece) in zip(told, ranked, strict=True) if not piece.passed]
    left = f"; {len(pieces) - len(judged)} not judged" if len(judged) < len(pieces) else ""
    if failed:
        more = f" and {len(failed) - NAMED} more" if len(failed) > NAMED else ""
        reason = f"{', '.join(failed[:NAMED])}{more}, of {len(judged)}{left}"
    else:
        reason = f"at worst {told[0]}, of {len(judged)}{left}"
    worst_value = ranked[0][0]
    margin = _over(gate, worst_value)
    return Result(name, gate.metric, worst_value, gate.bound, margin, not failed, reason, tuple(pieces))


def _any_seed(gate: AtLeast | AtMost, evidence: Evidence) -> Result:
    name = f"{gate.metric} {_sign(gate)} {gate.bound:g} with any seed"
    spread = evidence.spread.get(gate.metric)
    if spread is None:
        return _unknown(name, gate.metric, "the training was not repeated")
    value = spread.expected(isinstance(gate, AtLeast))
    reason = (
        f"{value:.4f} is to be expected 19 times out of 20: the mean over {len(spread.values)} seeds is "
        f"{spread.mean:.4f}, their deviation {spread.deviation:.4f}"
    )
    return _compared(name, gate.metric, gate, value, reason)


def _beats(gate: BeatsChampion, value: float, champion: Champion | None, evidence: Evidence | None) -> Result:
    name = f"{gate.metric} not {'above' if gate.metric in SMALLER_IS_BETTER else 'below'} the champion's"
    if gate.tolerance:
        name += f" by more than {gate.tolerance:g}"
    if gate.confidence is not None:
        name += f", {_percent(gate.confidence)} sure"
    if champion is None:
        return Result(name, gate.metric, value, None, None, not math.isnan(value), "there is no champion yet")
    if champion.metrics is None:
        why = f"version {champion.version}, the champion, cannot be compared: {champion.reason}"
        return Result(name, gate.metric, value, None, None, False, why)
    name = f"{name} (version {champion.version})"
    if gate.confidence is not None:
        return _surely(gate, gate.confidence, name, champion, evidence)
    held = champion.metrics[gate.metric]
    if gate.metric in SMALLER_IS_BETTER:
        return _within(name, gate.metric, value, held + gate.tolerance)
    bound = held - gate.tolerance
    return Result(name, gate.metric, value, bound, value - bound, value - bound >= 0)


def _surely(
    gate: BeatsChampion, confidence: float, name: str, champion: Champion, evidence: Evidence | None
) -> Result:
    metric = f"gain of {gate.metric}"
    if evidence is None or champion.answers is None:
        return _unknown(name, metric, "their answers to the same rows were not kept")
    found = gain(gate.metric, evidence.held.labels, evidence.answers, champion.answers, confidence)
    if math.isnan(found.least):
        why = "most samples of the held-out rows have one label only: there are too few rows"
        return _unknown(name, metric, why)
    margin = found.least + gate.tolerance
    reason = f"the gain is {found.value:+.4f}, and {_percent(confidence)} sure at least {found.least:+.4f}"
    return Result(name, metric, found.least, -gate.tolerance, margin, margin >= 0, reason)


def _calibrated(gate: Calibrated, evidence: Evidence) -> Result:
    found = calibration(evidence.held.labels, evidence.answers)
    asked = [
        ("ece", found.ece, found.ece, gate.ece),
        ("slope", found.slope, abs(found.slope - 1), gate.slope),
        ("offset", found.offset, abs(found.offset), gate.offset),
    ]
    pieces, off = [], []
    for metric, value, distance, bound in asked:
        if bound is not None:
            pieces.append(Piece(metric, None, value, bound, distance <= bound))
            off.append((distance / bound if math.isfinite(distance) else math.inf, distance, pieces[-1]))
    told = {"ece": "ece <= {:g}", "slope": "slope within {:g} of 1", "offset": "offset within {:g} of 0"}
    name = "calibrated: " + ", ".join(told[piece.name].format(piece.bound) for piece in pieces)
    _, distance, worst = max(off, key=lambda one: one[0])
    reason = ", ".join(f"{piece.name} is {piece.value:.4f}" for piece in pieces)
    return _within(name, worst.name, distance, worst.bound, reason, tuple(pieces))


def _invariant(gate: Invariant, found: Altered) -> Result:
    how = f"set to any of {', '.join(map(str, gate.values))}" if gate.values else "exchanged between rows"
    name = f"{gate.feature} {how} moves {_percent(gate.share)} of predictions by at most {gate.at_most:g}"
    moved = np.sort(np.abs(found.change))
    value = float(moved[math.ceil(gate.share * len(moved)) - 1]) if len(moved) else math.nan
    return _within(name, "change", value, gate.at_most)


def _monotone(gate: Monotone, found: Altered) -> Result:
    way = "fall" if gate.direction == "up" else "rise"
    name = (
        f"{_percent(gate.share)} of predictions do not {way} when {gate.feature} is raised by {gate.step:g}"
    )
    if not len(found.change):
        return _unknown(name, "right_way", f"{gate.feature} is missing in every held-out row")
    right = found.change if gate.direction == "up" else -found.change
    value = float(np.mean(right >= -found.still))
    return Result(name, "right_way", value, gate.share, value - gate.share, value >= gate.share)


def _leakage(found: Shuffled) -> Result:
    name = "shuffled labels teach nothing"
    reason = (
        f"a fit to {found.rows:,} rows with shuffled labels explains {found.explained:.4f} of the held-out "
        f"labels' variance, where chance gives at most {found.bound:.4f}"
    )
    return _within(name, "explained", found.explained, found.bound, reason)


def _signature(found: Signed) -> Result:
    name = "the features of the service, with their types"
    wrong = [
        *(f"{each} is not a feature of the service" for each in found.inputs if each not in found.types),
        *(f"{each} is not taken by the model" for each in found.types if each not in found.inputs),
        *(
            f"{each} is taken as {kind}, and is {found.types[each]}"
            for each, kind in found.inputs.items()
            if each in found.types
            and found.types[each] not in (VECTORS if vector_length(kind) else KINDS[kind])
        ),
    ]
    more = f" and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
    return _within(name, "differences", float(len(wrong)), 0.0, ", ".join(wrong[:NAMED]) + more)


def _parity(found: ParityReport | None) -> Result:
    name = "the same features online"
    if found is None:
        return Result(name, "skewed", math.nan, 0.0, None, False, "it was not checked")
    return Result(
        name, "skewed", found.skewed, 0.0, -float(found.skewed), found.clean, reason=found.summary()
    )
