"""Executes a run of a :class:`~manta.definitions.Search`: trials, and then the training with the best.

Killed anywhere and executed again, trials that had ended are found in their records, those that were at work
go on from their checkpoints, and the training with the best parameters is as resumable as any.
"""

from __future__ import annotations

import importlib
from typing import Any

from manta.definitions import Search, Training
from manta.definitions.sources import driver
from manta.errors import InvalidInput, TrainingInvalid
from manta.ledger.context import RunContext
from manta.models.searches import Searches
from manta.training import run as training_run
from manta.training import search_records as records
from manta.training.progress import Steps
from manta.training.search_records import Tried
from manta.training.trainers import Job, trainer

STEPS = ("examples", "features", "trials")
EXTRA = "search"


def execute(context: RunContext) -> None:
    """Search, draw what was found, train in full and promote if the gates let pass.

    Raises:
        ExtraMissing: Optuna is not installed.
        TrainingInvalid: what the training cannot be trained with; or every trial failed.
        Unavailable: MLflow, or room for the trials.
        GateFailed: the winner is recorded, but neither registered nor promoted.
    """
    search: Search = context.definition
    driver("optuna", EXTRA, "a search")
    trials, concurrent = (_count(context, name) for name in ("trials", "concurrent"))
    registry = Searches(context.settings.mlflow_url, context.settings.project)
    registry.check()
    context.definition, context.params = search.training, {}
    winner, tried = _searched(context, search, trials, concurrent, registry)

    figures = context.settings.home / "training" / context.run_key / "figures"
    importlib.import_module("manta.training.search_plots").draw(figures, search, tried)
    found = winner.metrics[search.metric]
    context.measured(
        search={
            "trials": len(tried),
            "best": winner.number,
            "params": winner.params,
            f"validation_{search.metric}": found,
            "ended_early": sum(each.state == "ended early" for each in tried),
            "failed": sum(each.state == "failed" for each in tried),
        }
    )
    print(f"manta: trial {winner.number} is the best; it is trained in full", flush=True)
    context.definition = _with(search.training, winner)
    training_run.execute(context)


def _count(context: RunContext, name: str) -> int:
    value = context.params.get(name, getattr(context.definition, name))
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidInput(f"{name} is {value!r}, not a number from 1 on", hint=f"--param {name}=5")
    return value


def _with(training: Training, tried: Tried) -> Training:
    return training.replace(params=training.params | tried.params)


def _searched(
    context: RunContext, search: Search, trials: int, concurrent: int, registry: Searches
) -> tuple[Tried, list[Tried]]:
    """The best trial, and all of them; also in MLflow.

    Raises:
        TrainingInvalid: not one came to its end.
    """
    from manta.training import search_trials

    training, steps = search.training, Steps(context, STEPS)
    data = training_run.data_of(context, training, steps)
    with steps.step("trials") as stage:
        job = Job(
            run_key=context.run_key,
            folder=context.settings.home / "searches" / context.run_key,
            root=context.root,
            training=training,
            params=training.params,
            shape=data.shape,
            train=data.encoded["train"],
            validation=data.encoded["validation"],
            stage=stage,
        )
        trainer(training.trainer.kind).check(job)
        together = _together(job, min(concurrent, trials))

        def tell(one: Tried, ended: int) -> None:
            stage.reached(ended / trials)
            print(f"manta: {_line(one, search.metric)} ({ended} of {trials})", flush=True)

        tried = search_trials.run(search, job, trials, together, tell)
    registry.trials(
        context.run_key, context.run.job, tried, [_reports(job, each) for each in tried], search.metric
    )
    winner = records.best(tried, search.metric)
    if winner is None:
        why = next((each.message for each in tried if each.message), "the scheduler ended all of them")
        raise TrainingInvalid(
            f"none of {len(tried)} trials came to its end: {why}",
            hint="look at the space, and at what the training takes",
        )
    return winner, tried


def _reports(job: Job, tried: Tried) -> list[dict[str, Any]]:
    from manta.training.trainers._reports import reports

    return reports(job.folder / f"{tried.number:04d}")


def _line(tried: Tried, metric: str) -> str:
    how = f"{metric} {tried.metrics[metric]:.4f}" if tried.state == "done" else tried.state
    what = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in tried.params.items()
    )
    return f"trial {tried.number}: {how} with {what}{': ' + tried.message if tried.message else ''}"


def _together(job: Job, asked: int) -> int:
    """How many trials are run at a time."""
    import ray

    how: Any = job.training.trainer
    workers = getattr(how, "workers", 1)
    each = {"CPU": float(getattr(how, "cpus_per_worker", 0) or getattr(how, "cpus", 1))}
    gpus = float(getattr(how, "gpus", 0) or bool(getattr(how, "use_gpu", None)))
    if gpus:
        each["GPU"] = gpus
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = records.at_once(asked, workers, each, machines, ray.available_resources())
    if found < asked:
        holds = f"{workers} × {' and '.join(f'{amount:g} {name}' for name, amount in each.items())}"
        print(f"manta: {found} of {asked} trials at a time: each holds {holds}", flush=True)
    return found
