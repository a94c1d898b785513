"""The trials of a search: Optuna proposes, Ray Tune runs them and ends those that lag behind.

Each trial is a process of Tune's that holds nothing: the tasks or workers that its trainer starts hold their
own CPUs, and as many trials run at a time as the cluster can hold whole.

A search goes on from its own records and not from Tune's: who is done is told to Optuna, who was at work is
begun again under its number, in its folder, where its trainer finds the checkpoint.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from ray.tune.search import Searcher

from manta.definitions import ASHA, Choice, Integers, LogUniform, Search
from manta.definitions.metrics import smaller_is_better
from manta.errors import TrainingInvalid, Unavailable
from manta.training import search_records as records
from manta.training.evaluate import score
from manta.training.progress import Stage
from manta.training.search_records import Tried
from manta.training.trainers import Job, Model, RawModel, trainer
from manta.training.trainers._reports import reports

POLL_SECONDS = 0.1
NOTHING: dict[str, Any] = {"memory": 1}  # bytes: what Tune has a trial hold must not be nothing
OUTCOME = "outcome.json"
# Ray Tune's own settings: no log files, no tables on the terminal, no other working directory, nothing kept
# for a resumption of its own, and no figure that every report must have: the last one has none.
RAY_TUNE = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class _Silent(Stage):
    """A trial tells nobody how far it is."""

    def reached(self, fraction: float) -> None: ...


def run(
    search: Search, job: Job, trials: int, concurrent: int, tell: Callable[[Tried, int], None]
) -> list[Tried]:
    """Try until ``trials`` have ended, those of earlier attempts among them.

    Args:
        job: of the training as it is. Its ``folder`` holds this search alone.
        tell: is told each trial that has ended, and how many have.

    Returns:
        all trials, in the order in which they were begun.

    Raises:
        Unavailable: the process of a trial died, or there was no room for it.
    """
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    before = [each for each in records.read(job.folder) if each.number < trials]
    left = trials - sum(each.state != "started" for each in before)
    if not left:
        return before
    for name, value in RAY_TUNE.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files that it is told not to write
    proposer = _Proposer(search, job.folder, before, tell)
    asha = search.scheduler
    trial = tune.with_parameters(
        _trial, job=replace(job, stage=_Silent(cast(Any, None), 0, 1), meanwhile=_nothing), asha=asha
    )
    tuner = tune.Tuner(
        tune.with_resources(trial, NOTHING),
        tune_config=tune.TuneConfig(
            search_alg=proposer,
            scheduler=_halving(asha, job.folder, before) if asha else FIFOScheduler(),
            num_samples=left,
            max_concurrent_trials=concurrent,
            # A process that may be told to end its trial goes with it, and so do the tasks that it started.
            reuse_actors=asha is None,
            trial_dirname_creator=lambda each: str(each.trial_id),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(job.folder), verbose=0),
    )
    ended = tuner.fit()
    if proposer.lost:
        why = str(ended.errors[0]).strip().splitlines()[-1] if ended.errors else "its process died"
        raise Unavailable(
            f"{len(proposer.lost)} of {trials} trials did not come to an end: {proposer.lost[0]}: {why}",
            hint="the run's log has more; executed again, the search goes on with them",
        )
    return [each for each in records.read(job.folder) if each.number < trials]


def _nothing() -> None: ...


class _Proposer(Searcher):
    """Optuna, as Tune asks for what to try next; keeps the records."""

    def __init__(
        self, search: Search, folder: Path, before: Sequence[Tried], tell: Callable[[Tried, int], None]
    ) -> None:
        super().__init__()
        self._folder, self._tell = folder, tell
        self._metric_of = search.metric
        self.space = distributions(search)
        self._study = study_of(search, [each for each in before if each.state != "started"])
        self._again = [each for each in before if each.state == "started"]
        for each in self._again:
            self._study.enqueue_trial(each.params)
        self._begun = len(before)
        self._ended = len(before) - len(self._again)
        self._asked: dict[str, tuple[Any, Tried]] = {}
        self.lost: list[str] = []

    def set_search_properties(self, metric: Any, mode: Any, config: Any, **_spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        asked = self._study.ask(fixed_distributions=self.space)
        if self._again:
            tried = self._again.pop(0)
        else:
            tried = Tried(self._begun, dict(asked.params))
            self._begun += 1
            records.write(self._folder, tried)
        self._asked[trial_id] = (asked, tried)
        return {"number": tried.number, "params": tried.params}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        from optuna.trial import TrialState

        asked, tried = self._asked.pop(trial_id)
        told = self._folder / f"{tried.number:04d}" / OUTCOME
        if told.exists():
            tried = replace(tried, **json.loads(told.read_text()))
        elif error:
            self._study.tell(asked, state=TrialState.FAIL)
            self.lost.append(f"trial {tried.number} with {tried.params}")
            return
        else:
            tried = replace(tried, state="ended early", seconds=(result or {}).get("time_total_s", 0.0))
        records.write(self._folder, tried)
        state, value = _state_of(tried, self._metric_of)
        self._study.tell(asked, value, state=state)
        self._ended += 1
        self._tell(tried, self._ended)

    # Tune would keep all of it, to go on from: the records are what a search goes on from.
    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_bytes(b"")

    def restore(self, checkpoint_path: str) -> None: ...

    def __getstate__(self) -> dict[str, Any]:
        return {}


def distributions(search: Search) -> dict[str, Any]:
    """The space in Optuna's words."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    found: dict[str, Any] = {}
    for name, domain in search.space.items():
        if isinstance(domain, Choice):
            found[name] = CategoricalDistribution(domain.values)
        elif isinstance(domain, Integers):
            found[name] = IntDistribution(domain.low, domain.high)
        else:
            found[name] = FloatDistribution(domain.low, domain.high, log=isinstance(domain, LogUniform))
    return found


def study_of(search: Search, ended: Sequence[Tried]) -> Any:
    """A study in memory that knows these trials. What it proposes next depends on them and on the search's
    seed alone."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    direction: Any = "minimize" if smaller_is_better(search.metric) else "maximize"
    study = optuna.create_study(direction=direction, sampler=_sampler(search.seed))
    space = distributions(search)
    for each in ended:
        state, value = _state_of(each, search.metric)
        known = {name: each.params[name] for name in space}
        study.add_trial(
            optuna.trial.create_trial(state=state, value=value, params=known, distributions=space)
        )
    return study


def _state_of(tried: Tried, metric: str) -> tuple[Any, float | None]:
    from optuna.trial import TrialState

    if tried.state == "done":
        return TrialState.COMPLETE, tried.metrics[metric]
    return (TrialState.PRUNED if tried.state == "ended early" else TrialState.FAIL), None


def _sampler(seed: int) -> Any:
    """Optuna's TPE, begun anew for each trial with a seed of its number: so that a search that goes on after
    a kill proposes what it would have proposed."""
    from optuna.samplers import BaseSampler, TPESampler

    class Sampler(BaseSampler):
        def before_trial(self, study: Any, trial: Any) -> None:
            self._of = TPESampler(seed=seed * 100_003 + trial.number)

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return self._of.infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return self._of.sample_relative(study, trial, search_space)

        def sample_independent(self, study: Any, trial: Any, name: str, distribution: Any) -> Any:
            return self._of.sample_independent(study, trial, name, distribution)

        def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None: ...

    return Sampler()


def _halving(asha: ASHA, folder: Path, before: Sequence[Tried]) -> Any:
    """Tune's ASHA, told what trials of earlier attempts had reported at its rungs."""
    from ray.tune.schedulers import AsyncHyperBandScheduler

    scheduler = AsyncHyperBandScheduler(
        time_attr="reports",
        metric=asha.metric,
        mode=asha.mode,
        max_t=asha.most,
        grace_period=asha.grace,
        reduction_factor=asha.reduction,
        stop_last_trials=False,
    )
    for each in before:
        if each.state in ("done", "ended early"):
            known = cast(Any, SimpleNamespace(trial_id=f"earlier-{each.number}"))
            scheduler.on_trial_add(cast(Any, None), known)
            for report in _at_rungs(asha, reports(folder / f"{each.number:04d}"), 0):
                scheduler.on_trial_result(cast(Any, None), known, report)
    return scheduler


def _at_rungs(asha: ASHA, reported: Sequence[Mapping[str, Any]], after: int) -> list[dict[str, Any]]:
    """What was reported at each rung after the first ``after`` reports.

    Raises:
        TrainingInvalid: it has no figure of that name.
    """
    found = []
    for number in records.rungs(asha):
        if after < number <= len(reported):
            report = reported[number - 1]
            if not isinstance(report.get(asha.metric), int | float):
                known = ", ".join(name for name, value in report.items() if isinstance(value, int | float))
                raise TrainingInvalid(
                    f"the scheduler compares by {asha.metric!r}, which is not reported",
                    hint=f"ASHA(metric=…) is one of: {known or 'none'}",
                )
            found.append({"reports": number, asha.metric: report[asha.metric]})
    return found


def _trial(config: dict[str, Any], job: Job, asha: ASHA | None) -> None:
    """In a process of Tune's. Writes the outcome, whole or not at all; executed again, finds it."""
    if str(job.root) not in sys.path and job.root.is_dir():
        sys.path.insert(0, str(job.root))
    mine = replace(job, run_key=f"{config['number']:04d}", params={**job.params, **config["params"]})
    folder = mine.folder / mine.run_key
    if (folder / OUTCOME).exists():
        return
    how, began = trainer(job.training.trainer.kind), time.monotonic()
    try:
        how.check(mine)
        model = _fitted(mine, how.fit, asha)
        held = mine.validation
        metrics = score(held.labels, model.probabilities(held.arrays), job.training.task)
        outcome: dict[str, Any] = {"state": "done", "metrics": metrics}
    except TrainingInvalid as error:
        outcome = {"state": "failed", "message": error.message}
    records.put(folder / OUTCOME, outcome | {"seconds": round(time.monotonic() - began, 2)})


def _fitted(job: Job, fit: Callable[[Job], Model | RawModel], asha: ASHA | None) -> Model:
    """What the trainer makes; meanwhile Tune is told what it reports, and may end this."""
    from ray import tune

    made: Future[Model | RawModel] = Future()

    def work() -> None:
        try:
            made.set_result(fit(job))
        except BaseException as error:
            made.set_exception(error)

    # A daemon: an ended trial must not wait for it.
    threading.Thread(target=work, name="fit", daemon=True).start()
    told = 0
    while asha is not None and not made.done():
        wait([made], timeout=POLL_SECONDS)
        reported = reports(job.folder / job.run_key)
        for report in _at_rungs(asha, reported, told):
            tune.report(report)  # raises SystemExit when the scheduler has ended the trial
        told = len(reported)
    model = made.result()
    assert not isinstance(model, RawModel), "the definition refuses trainers that fit nothing"
    return model
