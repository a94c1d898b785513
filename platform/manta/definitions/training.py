"""Definitions of trainings: examples, split and trainer. Gates have a module of their own."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from manta.definitions.base import Frozen, FunctionPath, Name, Ref
from manta.definitions.gates import AtLeast, AtMost, Gate, Parity, check_for
from manta.definitions.jobs import Runnable
from manta.definitions.metrics import Task


class Examples(Frozen):
    """The labelled entity rows of a training.

    Attributes:
        dataset: where they are; rows whose label is null are left out.
        label: for a binary training a boolean or 0/1 column; for a multiclass one strings, whole numbers or
            booleans; for a regression numbers.
        time: the column with the instant, UTC, at which each prediction would have been asked.
    """

    dataset: Name
    label: str
    time: str


class TimeSplit(Frozen):
    """Split by the examples' time: train | validation | test, each later than the one before.

    Attributes:
        test_from: first instant of the held-out rows (naive values are UTC).
        validation_from: first instant of the rows that are held back to steer the training; None takes
            the last tenth, by time, of what comes before ``test_from``.
    """

    test_from: datetime
    validation_from: datetime | None = None

    @field_validator("test_from", "validation_from")
    @classmethod
    def _naive_is_utc(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value

    @model_validator(mode="after")
    def _in_order(self) -> TimeSplit:
        if self.validation_from and self.validation_from >= self.test_from:
            raise ValueError("validation_from must be before test_from")
        return self


class Torch(Frozen):
    """Distributed torch through Ray Train, by manta's own loop or by one of the project (``fn``), which does
    itself what ``strategy``, ``precision``, ``accumulate`` and ``compile`` say.

    Attributes:
        workers: processes in the data-parallel group.
        use_gpu: one GPU each; None: where the cluster has enough.
        cpus_per_worker: logical CPUs each holds.
        strategy: "ddp": each worker holds the whole module; "fsdp": each a share of its parameters, gradients
            and optimizer state, and the whole of a block only while it is computed.
        precision: of the arithmetic, by autocast; parameters stay fp32. "fp16" needs GPUs.
        accumulate: parts in which each worker computes a step, one after the other: less memory, the same
            result but for rounding.
        compile: compile the module by `torch.compile`, which needs a C++ compiler on the workers' machines.
    """

    kind: Literal["torch"] = "torch"
    workers: int = Field(default=1, ge=1)
    use_gpu: bool | None = None
    cpus_per_worker: float = Field(default=1.0, gt=0)
    # Left out of the JSON form where it is the default, so that older definitions are what they were.
    strategy: Literal["ddp", "fsdp"] = Field(default="ddp", exclude_if=lambda value: value == "ddp")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32", exclude_if=lambda value: value == "fp32"
    )
    accumulate: int = Field(default=1, ge=1, exclude_if=lambda value: value == 1)
    compile: bool = Field(default=False, exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _scales_what_is_whole(self) -> Torch:
        if self.strategy == "fsdp" and self.precision == "fp16":
            raise ValueError("precision='fp16' goes with strategy='ddp'; with 'fsdp' take 'bf16'")
        return self


class Sklearn(Frozen):
    """A classifier or regressor of scikit-learn, fitted in one task.

    Attributes:
        cpus: that the task holds; estimators with ``n_jobs`` use as many as they are told.
    """

    kind: Literal["sklearn"] = "sklearn"
    cpus: float = Field(default=1.0, gt=0)


class XGBoost(Frozen):
    """Gradient-boosted trees by XGBoost, in one task or in several that share the rows.

    Attributes:
        workers: tasks; each holds its share of the rows, and all grow the same trees.
        cpus: that each holds, a thread each.
    """

    kind: Literal["xgboost"] = "xgboost"
    workers: int = Field(default=1, ge=1)
    cpus: float = Field(default=1.0, ge=1)


class LightGBM(Frozen):
    """Gradient-boosted trees by LightGBM, in one task or in several that share the rows.

    Attributes:
        workers: tasks; each holds its share of the rows, and all grow the same trees.
        cpus: that each holds, a thread each.
    """

    kind: Literal["lightgbm"] = "lightgbm"
    workers: int = Field(default=1, ge=1, exclude_if=lambda value: value == 1)
    cpus: float = Field(default=1.0, ge=1)


class Function(Frozen):
    """Any other framework: a function of the project, in one task.

    Attributes:
        cpus, gpus: that the task holds.
    """

    kind: Literal["function"] = "function"
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)


class Keras(Frozen):
    """A model of Keras 3, fitted in one task.

    Attributes:
        backend: what it computes with while it is trained. Packaged it is by torch, which is always there.
        cpus, gpus: that the task holds.
    """

    kind: Literal["keras"] = "keras"
    backend: Literal["torch", "jax", "tensorflow"] = "torch"
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)


class Jax(Frozen):
    """Pure functions of JAX, trained in one task.

    Attributes:
        cpus, gpus: that the task holds.
    """

    kind: Literal["jax"] = "jax"
    cpus: float = Field(default=1.0, gt=0)
    gpus: float = Field(default=0.0, ge=0)


MOST_IMPORT_BYTES = 128 * 2**20  # of a model that was made elsewhere


class Imported(Frozen):
    """Trains nothing: takes a model that was made elsewhere, and that `manta models import` has put into the
    platform's storage. From there on it is a training like any other: the same held-out rows and gates.

    Attributes:
        sha256: of the file.
        file: its name, which must not contradict what it is.
    """

    kind: Literal["imported"] = "imported"
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    file: str = Field(default="model", pattern=r"^[^/\\\x00-\x1f]{1,200}$")


Trainer = Annotated[
    Torch | Sklearn | XGBoost | LightGBM | Keras | Jax | Function | Imported, Field(discriminator="kind")
]
# What each needs of a training, and does without. What is imported may leave them in place: weights in
# safetensors are the module's.
_CODE: dict[str, tuple[str, ...]] = {
    "torch": ("module",),
    "sklearn": ("fn",),
    "xgboost": (),
    "lightgbm": (),
    "keras": ("fn",),
    "jax": ("fn",),
    "function": ("fn",),
}
# Fields of Torch that a loop of the project does not see.
OWN_LOOP = ("strategy", "precision", "accumulate", "compile")
_MAY: dict[str, tuple[str, ...]] = {"torch": ("fn",)}


class Training(Runnable):
    """Trains a model and promotes it if it passes the gates.

    The trainer says how. `Torch` takes ``module``, `Sklearn`, `Keras`, `Jax` and `Function` take ``fn``;
    `XGBoost` and `LightGBM` take neither: ``params`` are theirs (``rounds`` trees, 200 unless given, and
    ``early_stopping_rounds``).

    The task says what is predicted, and what labels, logits and answers are:

    - ``binary``: whether the label is true. Labels are float32, 0 or 1; logits [n] become probabilities [n].
    - ``multiclass``: which of the training rows' labels it is. Labels are int64, the class's index in their
      order (numbers by value, strings by their letters); logits [n, k] become probabilities [n, k].
    - ``regression``: a number. Labels are float32, as they are; the logits, [n], are the answers.

    For `Sklearn`, ``fn(config: dict)`` returns a classifier, or a regressor, unfitted. ``config`` holds
    ``params`` and ``shape``, as below. It is fitted to float32 [n, C + 2·D]: the categories' indices, by
    falling frequency, and the numbers.

    For `Keras`, ``fn(config)`` returns a `keras.Model`, compiled. It is called with a dict of ``categories``
    and ``numbers``, as below, and gives logits, [n] or [n, 1]; its loss takes logits. For `Jax`,
    ``fn(config)`` returns a `manta.Pure`: functions, an optimizer and a loss. manta goes over the rows for
    both: ``params`` may name ``epochs`` (10), ``batch``, rows per step (1024), and ``patience``, epochs
    without a better ``validation_loss`` after which it ends and the best epoch is the model (none: the last
    is). ``config`` holds ``params``, ``shape`` and ``steps``: how many there will be in all, for schedules.

    For `Function`, ``fn(work)`` trains as it likes and returns a `manta.Fitted`: the model as ONNX, and what
    it answers for the validation rows. ``work.train`` and ``work.validation`` have ``arrays.categories``,
    ``arrays.numbers`` and ``labels``, as below; ``work.params``, ``work.shape`` and ``work.threads`` say the
    rest. ``work.report(metrics)`` tells how it goes. ``work.keep(name, bytes)`` keeps a checkpoint, whole or
    not at all, and ``work.kept(name)`` gives it back to an attempt after a kill.

    For `Torch`, ``module(shape)`` makes a module whose ``forward(categories, numbers)`` returns logits, and
    manta's own loop trains it: AdamW, a loss by what is predicted, a checkpoint after each epoch. ``params``
    may name

    - ``epochs`` (10)
    - ``batch``: rows of a step, over all workers (1024)
    - ``learning_rate``: the highest of the schedule (1e-3)
    - ``schedule``: after a warm-up "cosine" or "constant" ("cosine")
    - ``weight_decay`` (0.01)
    - ``clip``: the most that the norm of the gradients may be; 0 leaves them as they are (1.0)
    - ``patience``: epochs without a better ``validation_loss`` after which it ends, and the best epoch is the
      model; without it, the last is

    With ``fn``, ``fn(config: dict)`` is a plain Ray Train loop. ``config`` holds ``params`` and ``shape``: a
    dict with ``categories``, the vocabulary size of each categorical feature (index 0 stands for unknown or
    missing), ``numbers``, the width of the numeric input, and ``outputs``, the logits per row: as many as
    there are classes for ``multiclass``, else 1. The shards ``train`` and ``validation``
    (``ray.train.get_dataset_shard``) have the columns ``categories`` int64[C], ``numbers`` float32[2·D]
    (standardised with the training rows' statistics, missing → 0, then D flags that say what was missing)
    and ``label``. It reports metrics and, at least once, a checkpoint with ``model.pt``: the state dict of
    ``module(shape)``, whose ``forward(categories, numbers)`` returns logits, shape [n], or [n, outputs] for
    ``multiclass``. The last checkpoint reported is the model. A parameter named ``epochs``, where there is
    one, says how many reports to expect, for the progress bar.

    Of features that are vectors, the elements stand behind the other numbers, each standardised by itself,
    and each vector has one flag: the share of it that is missing. ``shape["vectors"]`` says where each begins
    in ``numbers``, and how long it is.

    Attributes:
        model: the registered model's name; the definition's name, unless given.
        task: what it predicts, as above.
        features: a Feast feature service.
        categories: features taken as categories; None takes those of type string.
        params: handed to ``fn``; ``manta run NAME --param k=v`` overrides.
        baseline: a feature whose value alone, as a score (of a regression: as the answer), is the baseline to
            compare with; None compares with a constant: the training rows' share of positives, their shares
            of the classes, or their mean.
        seed: seeds torch, NumPy and the shuffles.
        repeats: train so often, with the seeds ``seed``, ``seed + 1`` …, to see how much the figures owe to
            chance. The first is the model, as without repeats: to take the best of them would be to choose by
            the held-out rows.
        card: what the model is for, and what not: plain text, for the report. Paragraphs are parted by an
            empty line; lines that begin with ``- `` are a list.
    """

    kind: ClassVar[str] = "training"
    model: Name
    # Left out of the JSON form where it is the default, so that older definitions are what they were.
    task: Task = Field(default="binary", exclude_if=lambda task: task == "binary")
    fn: FunctionPath | None = None
    module: FunctionPath | None = None
    trainer: Trainer = Torch()
    examples: Examples
    features: str
    split: TimeSplit
    gates: tuple[Gate, ...] = ()
    params: dict[str, Any] = Field(default={})
    categories: tuple[str, ...] | None = None
    baseline: str | None = None
    pool: str = "default"
    seed: int = 7
    repeats: int = Field(default=1, ge=1, le=100)
    card: str = ""

    def __init__(self, **fields: Any) -> None:
        named: dict[str, Any] = {"name": fields.get("model")}
        super().__init__(**(named | fields))

    @model_validator(mode="after")
    def _code_is_what_the_trainer_takes(self) -> Training:
        kind = self.trainer.kind
        wanted, may = _CODE.get(kind), _MAY.get(kind, ())
        if wanted is None:
            return self
        for name in ("fn", "module"):
            if name not in may and (getattr(self, name) is not None) != (name in wanted):
                takes = f"takes {' and '.join(wanted)}" if wanted else "takes neither fn nor module"
                optional = "".join(f", and may take {one}" for one in may)
                raise ValueError(f"the trainer {kind} {takes}{optional}")
        return self

    @model_validator(mode="after")
    def _a_loop_of_its_own_does_it_itself(self) -> Training:
        if isinstance(self.trainer, Torch) and self.fn is not None:
            how = {name: getattr(self.trainer, name) for name in OWN_LOOP}
            told = [f"{name}={value!r}" for name, value in how.items() if value != getattr(Torch(), name)]
            if told:
                raise ValueError(f"{', '.join(told)} is for manta's own loop; {self.fn} would not see it")
        return self

    @model_validator(mode="after")
    def _asked_of_its_task(self) -> Training:
        for gate in self.gates:
            check_for(gate, self.task)
        if self.task == "multiclass" and self.baseline is not None:
            raise ValueError(
                "one feature is no score of several classes: a multiclass training is compared with the "
                "classes' shares, without baseline"
            )
        return self

    @model_validator(mode="after")
    def _seeds_that_a_gate_asks_for(self) -> Training:
        asked = any(isinstance(gate, AtLeast | AtMost) and gate.any_seed for gate in self.gates)
        if asked and self.repeats < 2:
            raise ValueError("a gate with any_seed=True needs repeats=2 or more: one training has no spread")
        return self

    def fingerprinted(self) -> dict[str, Any]:
        return {name: value for name, value in super().fingerprinted().items() if name != "card"}

    def inputs(self) -> tuple[Ref, ...]:
        read = (Ref("dataset", self.examples.dataset), Ref("features", self.features))
        online = any(isinstance(gate, Parity) for gate in self.gates)
        return (*read, Ref("online", self.features)) if online else read

    def outputs(self) -> tuple[Ref, ...]:
        return (Ref("model", self.model),)

    def code(self) -> tuple[str, ...]:
        return tuple(path for path in (self.fn, self.module) if path is not None)
