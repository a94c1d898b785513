"""Gradient-boosted trees by LightGBM, in one task with all its CPUs or in several that share the rows.

Every so many rounds the booster is kept, and an attempt after a kill goes on from there.

Several workers add up their histograms for each leaf (LightGBM's own network), so all grow the same trees.
LightGBM would take a feature's bins from the rows of one worker; here all take them from the same rows. It
has neither metrics of all workers' rows nor a common end: the first worker judges by all of the validation
rows, and says to the others when it is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from manta.definitions import LightGBM
from manta.definitions.metrics import Task
from manta.errors import TrainingInvalid
from manta.models import trees
from manta.training.encoder import Arrays
from manta.training.trainers import Job, Part, _boosting, _group, _task
from manta.training.trainers._meeting import Meeting, Member, joined
from manta.training.trainers._reports import reports

if TYPE_CHECKING:
    import onnx

MODEL, CHECKPOINT = "model.txt", "checkpoint.txt"
OBJECTIVES: dict[Task, tuple[str, str]] = {  # and the metric that is reported unless another is asked for
    "binary": ("binary", "binary_logloss"),
    "multiclass": ("multiclass", "multi_logloss"),
    "regression": ("regression", "rmse"),
}
BIN_ROWS = 200_000  # from which bins are taken: LightGBM's own `bin_construct_sample_cnt`
NETWORK_MINUTES = 5  # for a word from a worker that does not close its connections
# It may wait for ever for the word of a peer that is gone.
GRACE_SECONDS = 2.0
OURS = ("num_threads", "machines", "num_machines", "local_listen_port", "time_out")


def check(job: Job) -> None:
    """Raises:
    ExtraMissing: LightGBM is not installed.
    TrainingInvalid: a parameter that the trainer sets itself, or no number of rounds.
    """
    _boosting.check(job, "lightgbm", "LightGBM", also=OURS)


def fit(job: Job) -> LightGBMModel:
    """Raises:
    TrainingInvalid: LightGBM refused a parameter.
    Unavailable: the process died every time.
    """
    how = cast(LightGBM, job.training.trainer)
    rounds = _boosting.asked(job.params).rounds
    if how.workers == 1:
        content = _task.run(job, MODEL, train, rounds)
    else:
        content = _group.run(
            job, MODEL, train, how.workers, _meeting, rounds, _dealt, _for_bins(job), GRACE_SECONDS
        )
    return LightGBMModel(content, job.shape, reports(job.folder / job.run_key))


def _dealt(whole: _task.Work, rank: int, workers: int) -> _task.Work:
    """All validation rows to the first worker, which judges by them."""
    held = whole.validation if rank == 0 else _rows(whole.validation, np.arange(0))
    return replace(whole, train=_group.share(whole.train, rank, workers), validation=held)


def _rows(part: Part, which: np.ndarray) -> Part:
    return Part(part.arrays.take(which), part.labels[which])


def _for_bins(job: Job) -> Arrays:
    """As many rows as LightGBM would take bins from."""
    count, most = len(job.train.labels), int(job.params.get("bin_construct_sample_cnt", BIN_ROWS))
    if count <= most:
        return job.train.arrays
    drawn = np.random.default_rng(job.training.seed).choice(count, most, replace=False)
    return job.train.arrays.take(np.sort(drawn))


@contextmanager
def _meeting(workers: int) -> Iterator[dict[str, Any]]:
    import ray

    with Meeting(ray.util.get_node_ip_address(), workers) as meeting:
        yield dict(meeting.told)


@contextmanager
def _together(work: _task.Work) -> Iterator[tuple[dict[str, Any], Member | None]]:
    """Among the other workers, where there are any: parameters that say where they are, and the meeting.

    Raises:
        NotMet: they cannot be connected.
    """
    import ray
    from lightgbm.basic import LightGBMError

    if work.workers == 1:
        yield {}, None
        return
    with joined(work.meeting, work.rank, ray.util.get_node_ip_address()) as (member, port):
        network = {
            "machines": ",".join(member.addresses),
            "num_machines": work.workers,
            "local_listen_port": port,
            "time_out": NETWORK_MINUTES,
        }
        try:
            yield network, member
        except LightGBMError as error:
            if "port" in str(error).lower() and "bind" in str(error).lower():
                raise _group.NotMet(str(error)) from error
            raise


def train(work: _task.Work) -> bytes:
    """In the task. What is kept is read before the workers meet: after that, the first may write anew."""
    import lightgbm

    rounds, patience, params = _boosting.asked(work.params)
    objective, metric = OBJECTIVES[work.training.task]
    own = {"objective": objective, "num_threads": work.threads, "seed": work.training.seed, "verbosity": -1}
    if work.training.task == "multiclass":
        own["num_class"] = work.shape["outputs"]
    given = {"deterministic": True, "force_col_wise": True, "metric": metric, **params, **own}
    before = None
    if (kept := work.kept(CHECKPOINT)) is not None:
        before = lightgbm.Booster(model_str=kept.decode())
    done = before.current_iteration() if before is not None else 0
    work.reported(done)
    bins = None
    if work.workers > 1:
        given = {"tree_learner": "data", **given}
        assert work.bins is not None
        bins = lightgbm.Dataset(_task.matrix(work.bins), params=given).construct()
    train = lightgbm.Dataset(
        _task.matrix(work.train.arrays), work.train.labels, reference=bins, free_raw_data=False
    )
    judged: dict[str, Any] = {}
    if work.rank == 0:
        held = lightgbm.Dataset(
            _task.matrix(work.validation.arrays), work.validation.labels, reference=train, free_raw_data=False
        )
        judged = {"valid_sets": [train, held], "valid_names": ["train", "validation"]}
    with _together(work) as (network, member):
        callbacks = [_reports(work)] if work.rank == 0 else []
        if patience is not None:
            callbacks.append(_early_stop(lightgbm.early_stopping(int(patience), verbose=False), work, member))
        booster = lightgbm.train(
            given | network, train, rounds - done, init_model=before, callbacks=callbacks, **judged
        )
        booster.free_network()
    best = booster.best_iteration
    return booster.model_to_string(num_iteration=best if best > 0 else None).encode()


def _early_stop(
    stop: Callable[[Any], None], work: _task.Work, member: Member | None
) -> Callable[[Any], None]:
    """The first worker says after each round whether it was the last; the others do as it does."""
    from lightgbm.callback import EarlyStopException

    if member is None:
        return stop

    def say(state: Any) -> None:
        try:
            stop(state)
        except EarlyStopException:
            member.say(True)
            raise
        member.say(False)

    def hear(state: Any) -> None:
        if member.hear():
            raise EarlyStopException(state.iteration, [])

    return say if work.rank == 0 else hear


def _reports(work: _task.Work) -> Callable[[Any], None]:
    def report(state: Any) -> None:
        figures = {
            f"{each[0]}_{each[1].removeprefix('binary_').removeprefix('multi_')}": each[2]
            for each in state.evaluation_result_list
        }
        _boosting.told(
            work, state.iteration + 1, figures, CHECKPOINT, lambda: state.model.model_to_string().encode()
        )

    return report


@dataclass
class LightGBMModel:
    """A booster. ``content``: in LightGBM's own text form."""

    content: bytes
    shape: dict[str, Any]
    reports: list[dict[str, Any]]

    def probabilities(self, arrays: Arrays) -> np.ndarray:
        import lightgbm

        rows = _task.matrix(arrays)
        answered = lightgbm.Booster(model_str=self.content.decode()).predict(rows)
        return np.asarray(answered, dtype=np.float32)

    def graph(self) -> onnx.ModelProto:
        import lightgbm

        told = lightgbm.Booster(model_str=self.content.decode()).dump_model()
        if told.get("average_output"):
            raise TrainingInvalid('boosting="rf" cannot be packaged', hint='boosting="gbdt" is the default')
        several = told["num_tree_per_iteration"]
        grown = [_tree(each["tree_structure"], at % several) for at, each in enumerate(told["tree_info"])]
        return trees.graph(grown, self.shape)

    def files(self) -> dict[str, bytes]:
        return {MODEL: self.content}


def _tree(root: dict[str, Any], output: int) -> trees.Tree:
    nodes: list[dict[str, Any]] = []
    children: list[tuple[int, int]] = []

    def add(node: dict[str, Any]) -> int:
        at = len(nodes)
        nodes.append(node)
        children.append((-1, -1))
        if "left_child" in node:
            if node["decision_type"] != "<=":
                raise TrainingInvalid(
                    "splits by sets of categories cannot be packaged",
                    hint="leave out `categorical_feature`: categories come as indices by frequency",
                )
            children[at] = (add(node["left_child"]), add(node["right_child"]))
        return at

    add(root)
    left, right = np.array(children, dtype=np.int64).T
    return trees.Tree(
        feature=np.array([node.get("split_feature", 0) for node in nodes], dtype=np.int64),
        threshold=np.array([node.get("threshold", 0.0) for node in nodes], dtype=np.float64),
        left=left,
        right=right,
        value=np.array([node.get("leaf_value", 0.0) for node in nodes], dtype=np.float64),
        output=output,
    )
