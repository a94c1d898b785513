"""What gates are judged on besides the metrics: measured once, before any of them is judged.

What a gate asks for is checked before the training, so that a name that is wrong costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from manta.definitions import (
    AtLeast,
    AtMost,
    Gate,
    Invariant,
    Latency,
    Memory,
    Monotone,
    NoLeakage,
    Signature,
)
from manta.errors import TrainingInvalid
from manta.models.package import Package
from manta.training import probe
from manta.training.evaluate import predict
from manta.training.probe import Footprint
from manta.training.refits import Shuffled, Spread
from manta.training.slices import Held, slices
from manta.training.tasks import unit

ALTERED_ROWS = 20_000  # at most so many are predicted anew when a feature is altered
ASKED_ROWS, ASKED_REQUESTS = 100_000, 100  # what a fresh process is asked
SEED = 5
STILL = 1e-6  # of a probability
STILL_NUMBER = 2e-5  # of `tasks.unit`: as many digits of float32


@dataclass(frozen=True)
class Altered:
    """``change[i]`` is what altering a feature adds to the i-th prediction; where several alterations were
    tried, or there are several classes, the one of them that is furthest from zero. float64. Less than
    ``still`` is no movement, but arithmetic."""

    change: np.ndarray
    still: float = STILL


@dataclass(frozen=True)
class Signed:
    """Feature → type: what the package takes, and what the feature service gives."""

    inputs: Mapping[str, str]
    types: Mapping[str, str]


Measured = Altered | Signed | Shuffled | Footprint | str
"""A text says why something could not be measured."""


@dataclass(frozen=True)
class Evidence:
    """All of one model.

    Attributes:
        answers: to the held-out rows, by the package.
        spread: by metric, over the training's repeats; empty when there are none.
        measured: by the gate's place among the training's gates, where it asks for more.
    """

    held: Held
    answers: np.ndarray
    spread: Mapping[str, Spread] = field(default_factory=dict)
    measured: Mapping[int, Measured] = field(default_factory=dict)


def check(gates: Sequence[Gate], held: Held, categories: Sequence[str]) -> None:
    """Args:
        categories: the features that the model takes as categories.

    Raises:
        TrainingInvalid: a gate asks for slices that there are none of, or alters a feature that there is not,
            or cannot be altered so.
    """
    for gate in gates:
        if isinstance(gate, AtLeast | AtMost) and gate.by is not None:
            slices(held, gate.by)
        if isinstance(gate, Invariant | Monotone):
            _check_feature(gate, held.features)
        if isinstance(gate, Invariant):
            for value in gate.values:
                _constant(gate, value, held.features.schema[gate.feature], 1)
        if isinstance(gate, Monotone):
            kind = held.features.schema[gate.feature]
            if gate.feature in categories or not kind.is_numeric():
                raise TrainingInvalid(
                    f"Monotone({gate.feature!r}, …) needs a number, and {gate.feature} is "
                    f"{'a category' if gate.feature in categories else f'of type {kind}'}",
                    hint=f"Invariant({gate.feature!r}, values=…) alters categories",
                )


def gather(
    gates: Sequence[Gate],
    held: Held,
    answers: np.ndarray,
    package: Package,
    location: Path,
    types: Mapping[str, str],
    spread: Mapping[str, Spread],
    shuffled: Mapping[int, Shuffled],
) -> Evidence:
    """Measure what the gates ask of a package, in ``location``, that gives the held-out rows these
    ``answers``. ``types`` are those of the feature service's features; ``spread`` and ``shuffled`` (by
    the gate's place) come from further fits."""
    measured: dict[int, Measured] = dict(shuffled)
    footprints: dict[int, Footprint | str] = {}
    for at, gate in enumerate(gates):
        if isinstance(gate, Invariant | Monotone):
            measured[at] = Altered(_altered(gate, package, held.features, answers), _still(held))
        if isinstance(gate, NoLeakage) and at not in shuffled:
            measured[at] = "the model was made elsewhere, and nothing can be fitted here"
        if isinstance(gate, Signature):
            measured[at] = Signed(package.inputs, types)
        if isinstance(gate, Latency | Memory):
            if gate.rows not in footprints:
                asked = requests(package, held.features, gate.rows)
                footprints[gate.rows] = probe.measure(location, package.digest, asked)
            measured[at] = footprints[gate.rows]
    return Evidence(held, answers, spread, measured)


def requests(package: Package, features: pl.DataFrame, rows: int) -> list[dict[str, list[Any]]]:
    """Held-out rows as requests of so many rows each; they begin again where there are too few."""
    count = max(1, min(ASKED_REQUESTS, ASKED_ROWS // rows))
    at = np.random.default_rng(SEED).permutation(features.height)
    taken = features.select(list(package.inputs))[np.resize(at, count * rows)]
    return [taken[start : start + rows].to_dict(as_series=False) for start in range(0, count * rows, rows)]


def _check_feature(gate: Invariant | Monotone, features: pl.DataFrame) -> None:
    if gate.feature not in features.columns:
        raise TrainingInvalid(
            f"a gate alters {gate.feature!r}, which is not a feature",
            hint=f"one of {', '.join(features.columns)}",
        )


def _still(held: Held) -> float:
    return STILL_NUMBER * unit(held.task, held.labels) if held.task == "regression" else STILL


def _altered(
    gate: Invariant | Monotone, package: Package, features: pl.DataFrame, answers: np.ndarray
) -> np.ndarray:
    random = np.random.default_rng(SEED)
    name = gate.feature
    known = np.arange(features.height)
    if isinstance(gate, Monotone):
        known = np.flatnonzero(np.isfinite(features[name].cast(pl.Float64).fill_null(np.nan).to_numpy()))
    if len(known) > ALTERED_ROWS:
        known = np.sort(random.choice(known, ALTERED_ROWS, replace=False))
    rows, before = features[known], answers[known].astype(np.float64)
    if isinstance(gate, Monotone):
        others = [rows[name].cast(pl.Float64) + gate.step]
    elif gate.values:
        others = [_constant(gate, value, rows.schema[name], rows.height) for value in gate.values]
    else:
        others = [rows[name][random.permutation(rows.height)]]
    changes = np.stack([predict(package, rows.with_columns(each.alias(name))) - before for each in others])
    if changes.ndim == 3:  # a class is as good as an alteration: what counts is the furthest
        changes = changes.swapaxes(1, 2).reshape(-1, len(known))
    furthest = np.abs(changes).argmax(axis=0)
    found: np.ndarray = changes[furthest, np.arange(len(known))]
    return found


def _constant(gate: Invariant, value: Any, kind: pl.DataType, rows: int) -> pl.Series:
    """Raises:
    TrainingInvalid: the feature cannot have that value.
    """
    fits = (isinstance(value, str), isinstance(value, bool)) == (kind == pl.String, kind == pl.Boolean)
    try:
        if value is None or fits:
            return pl.Series(gate.feature, [value]).cast(kind).new_from_index(0, rows)
    except pl.exceptions.PolarsError:
        pass
    raise TrainingInvalid(
        f"Invariant({gate.feature!r}, values=…) names {value!r}, and {gate.feature} is of type {kind}",
        hint="name values that the feature has; None stands for a missing one",
    )
