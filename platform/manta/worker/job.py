"""Executes a run of the plainest kind of job: a function of the project."""

from __future__ import annotations

from functools import partial
from typing import Any

from manta.definitions import Job, load_function
from manta.ledger.context import RunContext
from manta.secrets import resolve


def execute(context: RunContext) -> None:
    definition: Job = context.definition
    context.opens = partial(_open, context.settings.datasets)
    context.params = resolve({**definition.params, **context.params})
    load_function(definition.fn)(context)


def _open(folder: str, name: str, version: str) -> Any:
    from manta.data.reading import Datasets  # a job that reads no dataset need not wait for Polars

    return Datasets(folder).read(name, version)
