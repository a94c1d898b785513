"""Any framework at all: a function of the project trains, in one task, and gives the model as ONNX.

What the framework itself answers for the validation rows comes with it, and is held to what the graph answers
before anything else is done with the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from manta.definitions import load_function
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.training import tasks
from manta.training.encoder import Arrays
from manta.training.trainers import Job, _task
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx
    import onnxruntime

GRAPH = "fitted.onnx"
TOLERANCE = 1e-4  # in probability; of a regression, of what its answers are compared in (`tasks.unit`)
MOST_ROWS = 10_000  # that are compared
INPUTS = {"categories": "tensor(int64)", "numbers": "tensor(float)"}


@dataclass(frozen=True)
class Fitted:
    """What a function of the trainer `Function` returns.

    Attributes:
        graph: ONNX: ``categories`` int64 [n, C] and ``numbers`` float32 [n, 2·D] (what is not used may be
            left out) → ``logits`` float32 [n], or [n, k] of k classes.
        probabilities: of the validation rows, as the framework itself computes them: [n], or [n, k]; of a
            regression the values, [n].
    """

    graph: bytes
    probabilities: np.ndarray


def check(job: Job) -> None:
    """Raises:
    DefinitionInvalid: the function is not in the project.
    """
    load_function(job.training.fn or "")


def fit(job: Job) -> FunctionModel:
    """Raises:
    TrainingInvalid: the function raised, or what it returned is not what it should be.
    Unavailable: the process died every time.
    """
    epochs = job.params.get("epochs")
    content = _task.run(job, GRAPH, train, epochs if isinstance(epochs, int) else None)
    return FunctionModel(content, job.shape, reports(job.folder / job.run_key), job.training.task)


def train(work: _task.Work) -> bytes:
    """In the task."""
    name = work.training.fn or ""
    made = load_function(name)(work)
    if not isinstance(made, Fitted):
        raise TrainingInvalid(
            f"{name} returned a {type(made).__name__}", hint="return manta.Fitted(graph, probabilities)"
        )
    task = work.training.task
    session = _session(name, made.graph, work.shape)
    rows = slice(0, MOST_ROWS)
    theirs = np.asarray(made.probabilities, dtype=np.float64)
    expected = tasks.answers_shape(len(work.validation.labels), work.shape.get("outputs", 1))
    if theirs.shape != expected:
        raise TrainingInvalid(
            f"{name} returned probabilities of shape {list(theirs.shape)} for "
            f"{len(work.validation.labels)} validation rows",
            hint=f"Fitted(probabilities=…): of shape {list(expected)}, for each row of work.validation, in "
            "its order",
        )
    few = Arrays(work.validation.arrays.categories[rows], work.validation.arrays.numbers[rows])
    apart = np.abs(_answers(session, few, task) - theirs[rows]) / tasks.unit(task, work.train.labels)
    if not (apart <= TOLERANCE).all():  # not-a-number is not within it
        raise TrainingInvalid(
            f"the graph that {name} returned differs from the model by {np.nanmax(apart):.2g} "
            f"{tasks.UNIT[task]} on the validation rows; {TOLERANCE:g} is allowed",
            hint="logits, not probabilities? in evaluation mode? the same order of columns?",
        )
    return made.graph


def _session(name: str, graph: bytes, shape: dict[str, Any]) -> onnxruntime.InferenceSession:
    """Raises:
    TrainingInvalid: it is not such a graph.
    """
    import onnxruntime

    shape_of_logits = tasks.answers_shape(3, shape.get("outputs", 1))
    hint = "categories int64 [n, C], numbers float32 [n, 2·D] → logits float32 [n], of k classes [n, k]"
    try:
        session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no base below Exception
        raise TrainingInvalid(f"{name} returned no ONNX graph: {error}", hint=hint) from error
    takes = {each.name: each.type for each in session.get_inputs()}
    gives = [each.name for each in session.get_outputs()]
    if not takes.items() <= INPUTS.items() or "logits" not in gives:
        raise TrainingInvalid(f"the graph that {name} returned takes {takes} and gives {gives}", hint=hint)
    width, numbers = len(shape["categories"]), shape["numbers"]
    few = Arrays(np.zeros((3, width), np.int64), np.zeros((3, numbers), np.float32))
    try:
        found = _logits(session, few)
    except Exception as error:
        raise TrainingInvalid(
            f"the graph that {name} returned fails on three rows: {error}", hint=hint
        ) from error
    if found.shape != shape_of_logits:
        raise TrainingInvalid(
            f"the graph that {name} returned gives shape {list(found.shape)} for 3 rows", hint=hint
        )
    return session


def _logits(session: onnxruntime.InferenceSession, arrays: Arrays) -> np.ndarray:
    given = {"categories": arrays.categories, "numbers": arrays.numbers}
    taken = {each.name: given[each.name] for each in session.get_inputs()}
    return np.asarray(session.run(["logits"], taken)[0])


def _answers(session: onnxruntime.InferenceSession, arrays: Arrays, task: Task) -> np.ndarray:
    return tasks.answers(task, _logits(session, arrays))


@dataclass
class FunctionModel:
    """``content``: the graph, in ONNX's binary form."""

    content: bytes
    shape: dict[str, Any]
    reports: list[dict[str, Any]]
    task: Task = "binary"

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        """By the graph: the framework has been compared with it where it was at hand."""
        return _answers(_session("the training", self.content, self.shape), arrays, self.task)

    def graph(self) -> onnx.ModelProto:
        import onnx

        return _with_both_inputs(onnx.load_model_from_string(self.content), self.shape)

    def files(self) -> dict[str, bytes]:
        return {}


def _with_both_inputs(model: onnx.ModelProto, shape: dict[str, Any]) -> onnx.ModelProto:
    """The inputs that it does not use are declared, for whoever feeds both."""
    from onnx import TensorProto, helper

    held = {each.name for each in model.graph.input}
    for name, kind, width in (
        ("categories", TensorProto.INT64, len(shape["categories"])),
        ("numbers", TensorProto.FLOAT, shape["numbers"]),
    ):
        if name not in held:
            model.graph.input.append(helper.make_tensor_value_info(name, kind, ["n", width]))
    return model
