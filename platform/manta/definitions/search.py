"""Definitions of searches: a training tried with many parameters, of which the best are trained in full."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from manta.definitions.base import Frozen, Ref
from manta.definitions.jobs import Runnable
from manta.definitions.metrics import METRICS, check_metric
from manta.definitions.training import Training


class _Between(Frozen):
    """Numbers from ``low`` to ``high``, both included."""

    low: float
    high: float

    def __init__(self, low: float, high: float, **more: Any) -> None:
        super().__init__(**({"low": low, "high": high} | more))

    @model_validator(mode="after")
    def _in_order(self) -> _Between:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"from {self.low:g} to {self.high:g} there is nothing to choose")
        return self


class Uniform(_Between):
    """Any number from ``low`` to ``high``, each as likely."""

    kind: Literal["uniform"] = "uniform"


class LogUniform(_Between):
    """Any number from ``low`` to ``high``, each order of magnitude as likely; ``low`` is above 0."""

    kind: Literal["log_uniform"] = "log_uniform"

    @model_validator(mode="after")
    def _above_nothing(self) -> LogUniform:
        if self.low <= 0:
            raise ValueError(f"LogUniform begins above 0, not at {self.low:g}")
        return self


class Integers(_Between):
    """Whole numbers from ``low`` to ``high``, both included."""

    kind: Literal["integers"] = "integers"
    low: int
    high: int


class Choice(Frozen):
    """One of these values: texts, numbers, booleans, or None."""

    kind: Literal["choice"] = "choice"
    values: tuple[str | bool | int | float | None, ...] = Field(min_length=1)

    def __init__(self, *values: Any, **more: Any) -> None:
        super().__init__(**({"values": values} if values else {}), **more)

    @field_validator("values")
    @classmethod
    def _different(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len({(type(value), value) for value in values}) < len(values):
            raise ValueError("a value is named twice")
        return values


Domain = Annotated[Uniform | LogUniform | Integers | Choice, Field(discriminator="kind")]


class ASHA(Frozen):
    """Ends trials early whose reports lag behind those of others that had come as far: asynchronous
    successive halving.

    Attributes:
        metric: one that the trainer reports as it goes: ``validation_logloss`` of boosted trees, whatever a
            loop of torch reports.
        mode: which way it is better.
        grace: reports that each trial is left to make.
        most: reports after which none is ended any more.
        reduction: of those that come to a rung, one in so many goes on; rungs are at ``grace`` times its
            powers.
    """

    kind: Literal["asha"] = "asha"
    metric: str
    mode: Literal["min", "max"] = "min"
    grace: int = Field(default=1, ge=1)
    most: int = Field(default=100, ge=1)
    reduction: int = Field(default=3, ge=2)

    def __init__(self, metric: str, **more: Any) -> None:
        super().__init__(**({"metric": metric} | more))

    @model_validator(mode="after")
    def _grace_within(self) -> ASHA:
        if self.grace > self.most:
            raise ValueError(f"a grace of {self.grace} reports is more than all {self.most}")
        return self


class Search(Runnable):
    """Tries a training with parameters out of a space, and then trains it in full with the best of them: the
    version that this makes goes through the gates of the training, and becomes the champion, like its own.

    A trial is judged by ``metric`` on the rows that the split holds back for validation, never on the
    held-out rows of the test part: these judge only the winner. A search that was killed goes on: trials that
    have ended are not run again.

    `manta run NAME` runs it; `manta apply` does not, unless ``on_apply`` says so.

    Attributes:
        training: what is tried. Its ``params`` stand where the space names no others.
        space: parameter → where its values come from: Uniform, LogUniform, Integers or Choice.
        trials: how many.
        concurrent: the most at a time; fewer run where the cluster cannot hold as many.
        metric: to be as good as it can be; ``roc_auc`` unless given, of a regression ``rmse``.
        scheduler: ends trials that lag behind; None lets all come to their end.
        seed: of what is tried. The same search gives the same trials, in the same order, when they run one at
            a time; with more, what is tried next depends on which of them ends first.
    """

    kind: ClassVar[str] = "search"
    training: Training
    space: dict[str, Domain] = Field(min_length=1)
    trials: int = Field(default=20, ge=1)
    concurrent: int = Field(default=1, ge=1)
    metric: str = "roc_auc"
    scheduler: ASHA | None = None
    seed: int = Field(default=7, ge=0)
    on_apply: bool = False

    def __init__(self, **fields: Any) -> None:
        training = fields.get("training")
        if isinstance(training, Training):
            named = {"name": f"{training.name}-search", "metric": METRICS[training.task][0]}
            fields = named | {"needs": training.needs} | fields
        super().__init__(**fields)

    @field_validator("training")
    @classmethod
    def _has_parameters(cls, value: Training) -> Training:
        if value.trainer.kind == "imported":
            raise ValueError("a model that was made elsewhere has no parameters to search")
        return value

    @model_validator(mode="after")
    def _measured(self) -> Search:
        check_metric(self.metric, self.training.task)
        return self

    @property
    def params(self) -> dict[str, Any]:
        """What a run of it may be told otherwise: `manta run NAME --param trials=5`."""
        return {"trials": self.trials, "concurrent": self.concurrent}

    def inputs(self) -> tuple[Ref, ...]:
        return self.training.inputs()

    def outputs(self) -> tuple[Ref, ...]:
        return self.training.outputs()

    def code(self) -> tuple[str, ...]:
        return self.training.code()

    def fingerprinted(self) -> dict[str, Any]:
        return super().fingerprinted() | {"training": self.training.fingerprinted()}
