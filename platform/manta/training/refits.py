"""Further fits of a training: with other seeds, and on labels dealt anew.

Each goes through the trainer like the first, under a run's key of its own: killed and executed again, it is
found or gone on with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from manta.definitions import Imported, NoLeakage
from manta.definitions.metrics import Task
from manta.training.evaluate import score
from manta.training.trainers import Job, Model, Part, RawModel, Trainer

SURE = 0.95
CHANCE_DEVIATIONS = 3.3  # a bound that one in two thousand models without a leak exceeds


@dataclass(frozen=True)
class Spread:
    """A metric over trainings that differ in their seed alone. ``values``: in the order of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def deviation(self) -> float:
        """Between trainings; of a sample."""
        return float(np.std(self.values, ddof=1))

    def expected(self, larger: bool) -> float:
        """What a further training with another seed reaches with probability :data:`SURE`, if the metric is
        normally distributed: at least, when ``larger`` is better; at most, when not."""
        from scipy.special import stdtrit

        count = len(self.values)
        reach = float(stdtrit(count - 1, SURE) * self.deviation * math.sqrt(1 + 1 / count))
        return self.mean - reach if larger else self.mean + reach

    def to_json(self) -> dict[str, Any]:
        return {
            "mean": self.mean,
            "deviation": self.deviation,
            "at_least": self.expected(True),
            "at_most": self.expected(False),
            "values": list(self.values),
        }


@dataclass(frozen=True)
class Shuffled:
    """A fit to training rows whose labels were dealt anew.

    Attributes:
        explained: share of the held-out labels' variance: 1 - Brier score / variance; negative for most. No
            ROC AUC, which is no measure of what was learnt: a model with one strong feature ranks by it, in
            one direction or the other, however little it makes of it.
        bound: the most of it that is chance.
        rows: that it was fitted to.
    """

    explained: float
    bound: float
    rows: int


def with_other_seeds(how: Trainer, job: Job) -> list[Model]:
    """The models of the seeds after the first, in order; none of a model that was made elsewhere."""
    training, models = job.training, list[Model]()
    if isinstance(training.trainer, Imported):
        return models
    for seed in seeds(training.seed, training.repeats)[1:]:
        again = replace(
            job,
            run_key=f"{job.run_key}-seed-{seed}",
            training=training.replace(seed=seed),
            meanwhile=lambda: None,
        )
        model = how.fit(again)
        assert not isinstance(model, RawModel)
        models.append(model)
    return models


def seeds(first: int, repeats: int) -> list[int]:
    return list(range(first, first + repeats))


def spread(
    first: Mapping[str, float], others: Sequence[Model], held: Part, task: Task = "binary"
) -> dict[str, Spread]:
    """By metric; empty when there are no others. ``first`` are the metrics of the first seed's model."""
    if not others:
        return {}
    found = [first, *(score(held.labels, each.probabilities(held.arrays), task) for each in others)]
    return {metric: Spread(tuple(each[metric] for each in found)) for metric in found[1]}


def on_shuffled_labels(how: Trainer, job: Job) -> dict[int, tuple[Model, int]]:
    """For each :class:`NoLeakage`, by its place among the gates: the model, and to how many rows it was
    fitted. None for a model that was made elsewhere: nothing is fitted here."""
    made = dict[int, tuple[Model, int]]()
    if isinstance(job.training.trainer, Imported):
        return made
    for at, gate in enumerate(job.training.gates):
        if isinstance(gate, NoLeakage):
            anew = shuffled(job, gate, at)
            model = how.fit(anew)
            assert not isinstance(model, RawModel)
            made[at] = (model, len(anew.train.labels))
    return made


def shuffled(job: Job, gate: NoLeakage, at: int) -> Job:
    random = np.random.default_rng([job.training.seed, at])

    def dealt(part: Part) -> Part:
        count = min(gate.rows, len(part.labels))
        rows = np.sort(random.choice(len(part.labels), count, replace=False))
        return Part(part.arrays.take(rows), _dealt(part.labels, count, job.training.task, random))

    return replace(
        job,
        run_key=f"{job.run_key}-shuffled-{at}",
        params={**job.params, **gate.params},
        train=dealt(job.train),
        validation=dealt(job.validation),
        meanwhile=lambda: None,
    )


def _dealt(labels: np.ndarray, count: int, task: Task, random: np.random.Generator) -> np.ndarray:
    """So many labels, in random order."""
    if task == "regression":
        return random.choice(labels, count, replace=False)
    if task == "binary":
        # As many positives as there would be, and both labels: some frameworks refuse one alone.
        positives = int(np.clip(round(float(labels.mean()) * count), 1, count - 1))
        found = np.zeros(count, dtype=np.float32)
        found[random.choice(count, positives, replace=False)] = 1
        return found
    # One of each class, as far as there is room, and for the rest as they come.
    once = np.unique(labels, return_index=True)[1][:count]
    rest = random.choice(np.delete(labels, once), count - len(once), replace=False)
    return random.permutation(np.concatenate([labels[once], rest]))


def explained(labels: np.ndarray, answers: np.ndarray) -> float:
    """The share of the labels' variance, of several classes that of them all: of no constant answer is it
    more than 0."""
    given, count = answers.astype(np.float64), len(labels)
    if given.ndim == 1:
        y = labels.astype(np.float64)
        return float(1 - np.mean((given - y) ** 2) / y.var())
    # Each class is a label of its own, 0 or 1: the squares of all, without writing them out.
    wrong = np.sum(given**2) - 2 * given[np.arange(count), labels].sum() + count
    shares = np.bincount(labels, minlength=given.shape[1]) / count
    return float(1 - wrong / (count * (1 - np.sum(shares**2))))


def most_by_chance(real: float, fitted: int, held: int) -> float:
    """How much a model explains by chance, at most, of ``held`` rows after a fit to ``fitted`` rows of random
    labels, where the true labels let ``real`` be explained.

    A fit to random labels has a random slope, of deviation 1/√fitted, also along what tells the true labels
    apart; to explain them by it takes as much luck as they can be explained: 2·√real·z/√fitted. And its
    noise, which explains less than nothing, is seen with the held-out rows' own: z²/held at most. Several
    classes have a slope each, and together no more luck than if all were one.
    """
    z = CHANCE_DEVIATIONS
    return 2 * z * math.sqrt(max(real, 0.0) / fitted) + z**2 / held


def judged(fits: Mapping[int, tuple[Model, int]], held: Part, answers: np.ndarray) -> dict[int, Shuffled]:
    """What those fits explain of the held-out rows, to which the model gives ``answers``."""
    real = explained(held.labels, answers)
    found = {}
    for at, (model, rows) in fits.items():
        found[at] = Shuffled(
            explained=explained(held.labels, model.probabilities(held.arrays)),
            bound=most_by_chance(real, rows, len(held.labels)),
            rows=rows,
        )
    return found
