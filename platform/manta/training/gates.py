"""Gates: pure checks between a trained model and its promotion."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from manta.definitions import AtLeast, AtMost, BeatsChampion, Parity
from manta.errors import TrainingInvalid
from manta.ledger.parity import ParityReport
from manta.training.evaluate import METRICS, SMALLER_IS_BETTER

Gate = AtLeast | AtMost | BeatsChampion | Parity


@dataclass(frozen=True)
class Champion:
    """The version that holds the alias, scored on the same held-out rows.

    Attributes:
        metrics: None when it could not be scored, for ``reason``.
    """

    version: str
    metrics: Mapping[str, float] | None
    reason: str = ""


@dataclass(frozen=True)
class Result:
    """What one gate said.

    Attributes:
        gate: in words, e.g. ``roc_auc >= 0.72``.
        bound: None where there is nothing to compare with.
        margin: how far ``value`` is on the good side of ``bound``; negative when it failed by that much.
        reason: why, where the figures do not say it.
    """

    gate: str
    metric: str
    value: float
    bound: float | None
    margin: float | None
    passed: bool
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    def __str__(self) -> str:
        if self.reason:
            return f"{self.gate}: {self.reason}"
        verdict = "passed" if self.passed else "failed"
        by = "" if self.margin is None else f" by {abs(self.margin):.4f}"
        return f"{self.gate}: {self.metric} is {self.value:.4f}, {verdict}{by}"


def check_names(gates: Iterable[Gate]) -> None:
    """Raises:
    TrainingInvalid: a gate names a metric that is not measured, or cannot be used in that gate.
    """
    for gate in gates:
        if isinstance(gate, Parity):
            continue
        if gate.metric not in METRICS:
            raise TrainingInvalid(
                f"a gate names the metric {gate.metric!r}, which is not measured",
                hint=f"one of {', '.join(METRICS)}",
            )
        if isinstance(gate, BeatsChampion) and gate.metric in SMALLER_IS_BETTER:
            raise TrainingInvalid(
                f"BeatsChampion takes a metric of which more is better, and {gate.metric} is not",
                hint=f'AtMost("{gate.metric}", …) bounds it',
            )


def judge(
    gates: Sequence[Gate],
    metrics: Mapping[str, float],
    champion: Champion | None,
    parity: ParityReport | None = None,
) -> list[Result]:
    """One result per gate, in order. A value that is not a number passes no gate; :class:`Parity` without a
    report of a check does not pass.

    A champion that cannot be scored on these rows (it takes a feature that the training set no longer has, or
    its package is gone) fails :class:`BeatsChampion`: a gate that cannot tell must not let pass. Taking the
    gate out of the definition for one training is the deliberate way around.
    """
    return [
        _parity(parity) if isinstance(gate, Parity) else _judge(gate, metrics[gate.metric], champion)
        for gate in gates
    ]


def _parity(found: ParityReport | None) -> Result:
    name = "the same features online"
    if found is None:
        return Result(name, "skewed", math.nan, 0.0, None, False, "it was not checked")
    return Result(
        name, "skewed", found.skewed, 0.0, -float(found.skewed), found.clean, reason=found.summary()
    )


def _judge(gate: AtLeast | AtMost | BeatsChampion, value: float, champion: Champion | None) -> Result:
    if isinstance(gate, AtLeast):
        return _compared(
            f"{gate.metric} >= {gate.bound:g}", gate.metric, value, gate.bound, value - gate.bound
        )
    if isinstance(gate, AtMost):
        return _compared(
            f"{gate.metric} <= {gate.bound:g}", gate.metric, value, gate.bound, gate.bound - value
        )
    name = f"{gate.metric} not below the champion's"
    if gate.tolerance:
        name += f" by more than {gate.tolerance:g}"
    if champion is None:
        return Result(name, gate.metric, value, None, None, not math.isnan(value), "there is no champion yet")
    if champion.metrics is None:
        why = f"version {champion.version}, the champion, cannot be compared: {champion.reason}"
        return Result(name, gate.metric, value, None, None, False, why)
    bound = champion.metrics[gate.metric] - gate.tolerance
    return _compared(f"{name} (version {champion.version})", gate.metric, value, bound, value - bound)


def _compared(gate: str, metric: str, value: float, bound: float, margin: float) -> Result:
    return Result(gate, metric, value, bound, margin, margin >= 0)
