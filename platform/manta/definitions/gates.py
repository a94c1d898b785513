"""Gates: what a model must show before it is registered and promoted.

A gate is data; `manta.training.gates` judges it, and `manta.training.evidence` measures what it asks for.
All of them speak of the held-out rows of the training.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from manta.definitions.base import Frozen
from manta.definitions.metrics import Task, check_metric


class _Bound(Frozen):
    metric: str
    bound: float
    by: str | None = None
    min_rows: int = Field(default=500, ge=1)
    any_seed: bool = False

    def __init__(self, metric: str, bound: float, **more: Any) -> None:
        super().__init__(**({"metric": metric, "bound": bound} | more))

    @model_validator(mode="after")
    def _of_one_kind(self) -> _Bound:
        if self.by is not None and self.any_seed:
            raise ValueError("any_seed is of all held-out rows: it cannot be asked by slice")
        return self


class AtLeast(_Bound):
    """The metric on the held-out rows must reach the bound.

    Attributes:
        by: in every slice of the held-out rows instead: those that have the same value of a feature, or of a
            column of the examples (strings, whole numbers, booleans, dates), or whose time falls into the
            same "day", "week" or "month" (UTC; where no feature or column is called so).
        min_rows: slices with fewer rows, or whose labels are all the same, are listed and not judged.
        any_seed: what is judged is what a further training with another seed would reach 19 times out of 20,
            by the spread of the training's ``repeats``.
    """

    kind: Literal["at_least"] = "at_least"


class AtMost(_Bound):
    """The metric on the held-out rows must not exceed the bound. ``by``, ``min_rows`` and ``any_seed`` as of
    :class:`AtLeast`."""

    kind: Literal["at_most"] = "at_most"


class BeatsChampion(Frozen):
    """The metric must not be worse than the champion's on the same held-out rows, give or take
    ``tolerance``. Passes when there is no champion. Each successor may be that much worse than the one before
    it; what none may go below, `AtLeast` says.

    Attributes:
        confidence: be as sure of it, e.g. 0.95, by a paired bootstrap of the held-out rows: the lower bound
            of the gain must reach ``-tolerance``. None compares the two figures as they are.
    """

    kind: Literal["beats_champion"] = "beats_champion"
    metric: str
    tolerance: float = Field(default=0.0, ge=0)
    confidence: float | None = Field(default=None, gt=0.5, lt=1)

    def __init__(self, metric: str, tolerance: float = 0.0, **more: Any) -> None:
        super().__init__(**({"metric": metric, "tolerance": tolerance} | more))


class Calibrated(Frozen):
    """The probabilities are what they say; of a binary training. Of what is given, each is held to; something
    must be.

    Attributes:
        ece: the most expected calibration error.
        slope: how far from 1 the slope of the labels' logistic regression on the predictions' log-odds may
            be: below 1 the answers are too sure, above too shy.
        offset: how far the mean prediction may be from the share of positives.
    """

    kind: Literal["calibrated"] = "calibrated"
    ece: float | None = Field(default=None, gt=0)
    slope: float | None = Field(default=None, gt=0)
    offset: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _asks_something(self) -> Calibrated:
        if self.ece is None and self.slope is None and self.offset is None:
            raise ValueError("give one of ece, slope and offset")
        return self


class Invariant(Frozen):
    """Altering one feature must not change the predictions by more than ``at_most``, in probability (of any
    class), or in what the label is measured in.

    Only this feature is altered: others that were computed from the same thing stay as they are.

    Attributes:
        values: it is set to each of these in every row, and a row counts by its largest change; when there
            are none, the rows exchange their values at random.
        share: of the rows that must not change by more.
    """

    kind: Literal["invariant"] = "invariant"
    feature: str
    at_most: float = Field(gt=0)
    values: tuple[str | bool | int | float | None, ...] = ()
    share: float = Field(default=0.99, gt=0, le=1)

    def __init__(self, feature: str, **more: Any) -> None:
        super().__init__(**({"feature": feature} | more))


class Monotone(Frozen):
    """When a number is raised by ``step``, predictions must go ``up`` (or ``down``), or stay where they are;
    of a binary training or a regression.

    Attributes:
        share: of the rows, among those whose value is known, that must go the right way.
    """

    kind: Literal["monotone"] = "monotone"
    feature: str
    direction: Literal["up", "down"]
    step: float = Field(gt=0)
    share: float = Field(default=0.95, gt=0, le=1)

    def __init__(self, feature: str, direction: str, **more: Any) -> None:
        super().__init__(**({"feature": feature, "direction": direction} | more))


class NoLeakage(Frozen):
    """The same training on shuffled labels must explain nothing of the held-out labels.

    It is fitted a second time, by the same trainer, to training rows whose labels were dealt anew at random.
    The share of the held-out labels' variance that it explains must not exceed what chance gives, which
    depends on the rows; a loop that gets its labels elsewhere, or the held-out ones, exceeds it.

    Attributes:
        rows: at most so many training rows, taken at random.
        params: for this fit, over those of the training: fewer epochs, say.
    """

    kind: Literal["no_leakage"] = "no_leakage"
    rows: int = Field(default=20_000, ge=100)
    params: dict[str, Any] = Field(default={})


class Latency(Frozen):
    """The packaged model must answer fast: measured in a process of its own that loads nothing else, on one
    thread, with held-out rows.

    Attributes:
        p95_ms: the most milliseconds that 19 of 20 requests may take.
        rows: of each request.
    """

    kind: Literal["latency"] = "latency"
    p95_ms: float = Field(gt=0)
    rows: int = Field(default=1, ge=1, le=100_000)


class Memory(Frozen):
    """The packaged model must be small: the most memory that a process which loads nothing else takes to
    answer, onnxruntime, NumPy and Python included (about 70 MB of it).

    Attributes:
        mb: mebibytes.
        rows: of each request.
    """

    kind: Literal["memory"] = "memory"
    mb: float = Field(gt=0)
    rows: int = Field(default=1, ge=1, le=100_000)


class Signature(Frozen):
    """The model must take the features of the feature service, all of them and no others, with their
    types: what an endpoint can give it."""

    kind: Literal["signature"] = "signature"


class Parity(Frozen):
    """The features of the training must be the same online: of ``keys`` sampled rows, read as an endpoint
    will read them, no value may differ from the as-of join."""

    kind: Literal["parity"] = "parity"
    keys: int = Field(default=1000, ge=1)


Gate = Annotated[
    AtLeast
    | AtMost
    | BeatsChampion
    | Calibrated
    | Invariant
    | Monotone
    | NoLeakage
    | Latency
    | Memory
    | Signature
    | Parity,
    Field(discriminator="kind"),
]


def check_for(gate: Gate, task: Task) -> None:
    """Raises:
    ValueError: it makes no sense of a model that predicts this.
    """
    if isinstance(gate, AtLeast | AtMost | BeatsChampion):
        check_metric(gate.metric, task)
    if isinstance(gate, Calibrated) and task != "binary":
        instead = 'AtMost("ece", …)' if task == "multiclass" else 'AtMost("mae", …)'
        raise ValueError(f"Calibrated speaks of one probability: of a {task} training, ask {instead}")
    if isinstance(gate, Monotone) and task == "multiclass":
        raise ValueError(
            "Monotone speaks of one number, and a multiclass training answers one for each class: "
            f"ask Invariant({gate.feature!r}, …)"
        )
    if isinstance(gate, Invariant) and task != "regression" and gate.at_most >= 1:
        raise ValueError(f"at_most of Invariant is a probability, below 1, and {gate.at_most:g} is not")
