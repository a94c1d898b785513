"""Executes a run of a :class:`~manta.definitions.Training`: from examples to a promoted model.

Killed anywhere and executed again, a run ends in the same state: versions are read again as they were first
read, Ray Train goes on from its checkpoint, the package and MLflow's run are found by the run's key, and
the champion moves by compare-and-set.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from manta.definitions import Parity, Training
from manta.errors import TrainingInvalid
from manta.ledger.context import RunContext
from manta.ledger.parity import ParityReport
from manta.models import package
from manta.models.encoding import Encoding
from manta.models.registry import Registry
from manta.training import encoder, evaluate, evidence, gates, packaging, refits, report
from manta.training.data import Data
from manta.training.examples import PARTS, Labelled, labelled, split
from manta.training.progress import Steps
from manta.training.promotion import Candidate, promote
from manta.training.slices import Held
from manta.training.trainers import Job, Part, trainer

if TYPE_CHECKING:
    from manta.features.compiled import Service

STEPS = ("examples", "features", "training", "packaging", "evaluation", "recording", "promotion")


def execute(context: RunContext) -> None:
    """Train, evaluate, record, and promote if the gates let pass.

    Raises:
        TrainingInvalid: the examples, the features or the loop cannot be trained with.
        GateFailed: the model is recorded, but neither registered nor promoted.
        Unavailable: MLflow, or room for the workers.
    """
    training: Training = context.definition
    registry = Registry(context.settings.mlflow_url, context.settings.project)
    registry.check()
    how = trainer(training.trainer.kind)
    steps = Steps(context, STEPS)

    with steps.step("examples"):
        examples, parts = _examples(context, training)
    with steps.step("features"):
        features, versions = _features(context, training, examples.rows)
        data = _encoded(training, features, examples, parts)
        held = Held(
            data.raw["test"],
            examples.rows[parts["test"]],
            training.examples.time,
            data.labels("test"),
            training.task,
            data.classes,
        )
        evidence.check(training.gates, held, list(data.encoding.vocabularies))
    with steps.step("training") as stage:
        job = Job(
            run_key=context.run_key,
            folder=context.settings.home / "training",
            root=context.root,
            training=training,
            params=training.params | context.params,
            shape=data.shape,
            train=data.encoded["train"],
            validation=data.encoded["validation"],
            stage=stage,
            meanwhile=lambda: _load_later_parts(registry),
        )
        how.check(job)
        model = how.fit(job)
        judged = context.run.replay_of is None  # a replay is compared, and neither registered nor promoted
        others = refits.with_other_seeds(how, job) if judged else []
        on_shuffled = refits.on_shuffled_labels(how, job) if judged else {}
    with steps.step("packaging"):
        example = _example(context, training, examples.rows[parts["test"]])
        location, digest, parity = packaging.write(context, training, data, model, example)
    with steps.step("evaluation"):
        packaged = package.load(location, digest, threads=2)
        outcome = _evaluate(training, data, packaged)
        spread = refits.spread(outcome.metrics, others, data.encoded["test"], training.task)
        found = evidence.gather(
            training.gates if judged else (),
            held,
            outcome.answers,
            packaged,
            location,
            _service(context, training)[1].types,
            spread,
            refits.judged(on_shuffled, data.encoded["test"], outcome.answers),
        )
    with steps.step("recording"):
        figures = job.folder / context.run_key / "figures"
        _draw(figures, held, outcome)
        rows = {f"rows_{name}": len(part) for name, part in parts.items()} | {
            "rows_dropped": examples.dropped
        }
        made_from = context.ledger.manifest(context.run.id)
        mlflow_run = registry.record(
            context.run_key,
            context.run.job,
            params={**job.params, **_described(training, data.encoding), **rows},
            metrics=outcome.metrics | {"parity": parity} | _over_seeds(spread),
            reports=model.reports,
            tags={
                "manta.digest": digest,
                "manta.manifest": made_from.id,
                **{f"manta.read.{ref}": at for ref, at in versions.items()},
            },
            figures=figures,
            location=location,
        )
        context.measured(
            **outcome.metrics, **rows, parity=parity, baseline=outcome.baseline, mlflow_run=mlflow_run
        )
        if spread:
            context.measured(spread={metric: each.to_json() for metric, each in spread.items()})
    with steps.step("promotion"):
        manifest = context.read("features", training.features).detail["manifest"]
        candidate = Candidate(mlflow_run, outcome.metrics, location, digest, manifest)

        def tell(results: Sequence[gates.Result] | None, champion: gates.Champion | None) -> None:
            told = report.Told(
                run=context.run,
                training=training,
                manifest=made_from,
                metrics=outcome.metrics,
                baseline=outcome.baseline,
                spread=spread,
                champion=champion,
                results=results,
                rows=rows,
                inputs=packaged.inputs,
                classes=data.classes,
                digest=digest,
                figures=figures,
            )
            registry.attach(mlflow_run, report.write(figures.parent, told))

        if judged:
            same = _same_online(context, training, manifest)
            version = promote(context, registry, candidate, held, same, found, tell)
        else:
            tell(None, None)
            version = f"replay-{context.run.id}"
    context.measured(seconds=steps.seconds)
    context.produced("model", training.model, version, **candidate.detail(context.run.package))


def _over_seeds(spread: Mapping[str, refits.Spread]) -> dict[str, float]:
    return {
        f"{metric}_{name}": value
        for metric, each in spread.items()
        for name, value in (("mean", each.mean), ("deviation", each.deviation))
    }


def data_of(context: RunContext, training: Training, steps: Steps) -> Data:
    """The training set, as :func:`execute` makes it, in the steps ``examples`` and ``features``.

    Raises:
        TrainingInvalid: the examples or the features cannot be trained with.
    """
    with steps.step("examples"):
        examples, parts = _examples(context, training)
    with steps.step("features"):
        features, _ = _features(context, training, examples.rows)
        return _encoded(training, features, examples, parts)


def _same_online(context: RunContext, training: Training, manifest: str) -> ParityReport | None:
    """What a :class:`Parity` gate asks about: the features that the model was trained with, read online as an
    endpoint of it will read them. None when no gate asks."""
    asked = max((gate.keys for gate in training.gates if isinstance(gate, Parity)), default=0)
    if not asked:
        return None
    from manta.features.compiled import read_manifest
    from manta.features.parity import check

    online = context.read("online", training.features)
    until = online.detail.get("until")
    found = check(
        read_manifest(manifest),
        training.features,
        context.settings.datasets,
        online.detail["datasets"],
        datetime.fromisoformat(until) if until else datetime.now(UTC),
        root=context.root,
        keys=asked,
    )
    print("\n".join(f"manta: {line}" for line in found.lines()), flush=True)
    context.measured(online_parity=found.model_dump(mode="json"))
    return found


def _load_later_parts(registry: Registry) -> None:
    importlib.import_module("sklearn.metrics")
    importlib.import_module("matplotlib.backends.backend_agg")
    registry.load()


@dataclass(frozen=True)
class Outcome:
    """What the held-out rows said. ``baseline`` names what ``without`` a model is answered by."""

    metrics: dict[str, float]
    answers: np.ndarray
    baseline: str
    without: np.ndarray


def _examples(context: RunContext, training: Training) -> tuple[Labelled, dict[str, np.ndarray]]:
    from manta.data.lake import Lake

    name = training.examples.dataset
    version = int(context.read("dataset", name).version)
    rows = Lake(context.settings.datasets).read(name, version)
    examples = labelled(rows, training.examples, training.task)
    time = examples.rows[training.examples.time]
    return examples, split(time, examples.labels, training.split, examples.classes)


def _features(
    context: RunContext, training: Training, rows: pl.DataFrame
) -> tuple[pl.DataFrame, dict[str, str]]:
    """The features of every example, as of its time; and the versions that they were read from."""
    from manta.features.training_set import training_set

    name = training.features
    if any(isinstance(gate, Parity) for gate in training.gates):
        context.read("online", name)  # asked about later; it belongs to what the run is made from
    manifest, service = _service(context, training)
    datasets = {
        dataset: int(context.read("dataset", dataset).version)
        for dataset in sorted({view.dataset for view in service.views})
    }
    # Only what the features ask for: another column could have the name of a feature.
    asked = {training.examples.time, *service.join_keys, *service.request}
    entities = rows.select(column for column in rows.columns if column in asked).to_arrow()
    joined = training_set(
        context.root, context.settings, name, entities, training.examples.time, datasets, manifest
    )
    if joined.num_rows != rows.height:
        raise AssertionError(f"{rows.height} examples came back from the join as {joined.num_rows}")
    read = {f"dataset:{dataset}": str(at) for dataset, at in datasets.items()}
    read[f"features:{name}"] = context.read("features", name).version
    return pl.DataFrame(pl.from_arrow(joined.select(list(service.types)))), read


def _encoded(
    training: Training, features: pl.DataFrame, examples: Labelled, parts: dict[str, np.ndarray]
) -> Data:
    raw = {name: features[parts[name]] for name in PARTS}
    encoding = encoder.fit(raw["train"], training.categories)
    if training.baseline is not None and training.baseline not in encoding.moments:
        raise TrainingInvalid(
            f"baseline {training.baseline!r} is not a numeric feature of {training.features}",
            hint=f"one of {', '.join(encoding.moments)}" if encoding.moments else "it has none: leave it out",
        )
    encoded = {
        name: Part(encoder.encode(encoding, raw[name]), examples.labels[parts[name]]) for name in PARTS
    }
    return Data(encoding, raw, encoded, examples.classes)


def _example(context: RunContext, training: Training, held_out: pl.DataFrame) -> dict[str, Any]:
    """The keys and request fields of the newest held-out row that has them all: what an endpoint shows its
    callers as a question. Empty when the examples do not have every field under its name."""
    _, service = _service(context, training)
    fields = [*service.join_keys, *service.request]
    if not set(fields) <= set(held_out.columns):
        return {}
    newest = held_out.sort(training.examples.time).select(list(dict.fromkeys(fields))).drop_nulls().tail(1)
    rows = newest.to_dicts() or [{}]
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in rows[0].items()}


def _service(context: RunContext, training: Training) -> tuple[dict[str, Any], Service]:
    """The feature service as it was compiled when this run first read it."""
    from manta.features.compiled import read_manifest, service_of

    manifest = read_manifest(context.read("features", training.features).detail["manifest"])
    return manifest, service_of(manifest, training.features)


def _evaluate(training: Training, data: Data, packaged: package.Package) -> Outcome:
    labels, train_labels, task = data.labels("test"), data.labels("train"), training.task
    answers = evaluate.predict(packaged, data.raw["test"])
    values = {
        part: data.raw[part][training.baseline].cast(pl.Float64).to_numpy() if training.baseline else None
        for part in ("train", "test")
    }
    without = evaluate.baseline_answers(
        len(labels), train_labels, values["train"], values["test"], len(data.classes)
    )
    baseline = evaluate.score_baseline(labels, without, train_labels, task)
    metrics = evaluate.score(labels, answers, task) | baseline
    return Outcome(metrics, answers, training.baseline or "constant", without)


def _draw(folder: Path, held: Held, outcome: Outcome) -> None:
    from manta.training.plots import draw

    draw(folder, held, outcome.answers, outcome.without, outcome.baseline)


def _described(training: Training, encoding: Encoding) -> dict[str, Any]:
    return {
        "manta.task": training.task,
        "manta.trainer": training.trainer.model_dump(),
        "manta.service": training.features,
        "manta.split": training.split.model_dump(mode="json"),
        "manta.inputs": list(encoding.inputs),
        "manta.seed": training.seed,
    }
