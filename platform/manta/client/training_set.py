"""The joined examples of a training, as a frame in a notebook.

They are read by `python -m manta.worker.training_set` in a process of its own, straight from the lake, and
not by a run: joining reads only what is kept under named versions and writes nothing, so there is nothing
for the ledger to record, no queue to wait in, and no table to send through HTTP. The lake must be readable
from here, as it is on a laptop and wherever notebooks share the cluster's storage. The control wing imports
no Feast and no Ray for it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from manta.client.workers import ask
from manta.definitions import Ref, Training, from_json
from manta.errors import NotFound
from manta.ledger.runs import State, Version

if TYPE_CHECKING:
    import polars

    from manta.client.verbs import Client

JOIN_SECONDS = 1800


def training_set(client: Client, name: str, run_id: int | None) -> polars.DataFrame:
    """See :meth:`manta.Client.training_set`."""
    import polars

    if run_id is None:
        definition, versions = _now(client, name)
    else:
        definition, versions = _as_read_by(client, name, run_id)
    with tempfile.TemporaryDirectory() as folder:
        parquet = Path(folder, "training_set.parquet")
        asked = {
            "definition": definition.to_json(),
            "versions": [version.model_dump(mode="json") for version in versions],
            "parquet": str(parquet),
        }
        ask(
            "manta.worker.training_set",
            asked,
            client.settings,
            Path(folder),
            seconds=JOIN_SECONDS,
            failed="the training set could not be made",
        )
        frame: polars.DataFrame = polars.read_parquet(parquet)
        return frame


def _as_read_by(client: Client, name: str, run_id: int) -> tuple[Training, tuple[Version, ...]]:
    run = client.look(run_id)
    definition = from_json(run.definition)
    if run.job != name or not isinstance(definition, Training):
        raise NotFound(f"run {run_id} is one of {run.job!r}, not of a training {name!r}", hint="manta runs")
    if not any(version.kind == "features" for version in run.inputs):
        raise NotFound(
            f"run {run_id} has not read its training set", hint="it ended before, or has not come to it yet"
        )
    return definition, run.inputs


def _now(client: Client, name: str) -> tuple[Training, tuple[Version, ...]]:
    """The training as this folder defines it, and the newest version of everything that it reads."""
    project = client.load()
    jobs = project.jobs()
    training = jobs.get(name, (None, ""))[0]
    if not isinstance(training, Training):
        known = ", ".join(job for job, (each, _) in jobs.items() if isinstance(each, Training))
        raise NotFound(f"the project has no training {name!r}", hint=f"it has: {known or 'none'}")
    makers = {ref: job for job, (each, _) in jobs.items() for ref in each.outputs()}
    read = [ref for ref in project.inputs(training) if ref.kind != "online"]  # that is for a gate to look at
    return training, tuple(_newest(client, ref, makers[ref]) for ref in read)


def _newest(client: Client, ref: Ref, job: str) -> Version:
    wanted: dict[str, Any] = {"job": job, "limit": None}
    for run in client.runs(**wanted):
        for version in run.outputs:
            if version.ref == ref and run.state is State.SUCCEEDED:
                return version
    raise NotFound(
        f"{ref} has not been made yet", hint=f"`manta run {job} --wait`, or `manta apply`, makes it"
    )
