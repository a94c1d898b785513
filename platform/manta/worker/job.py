"""Executes a run of the plainest kind of job: a function of the project."""

from __future__ import annotations

from manta.definitions import Job, load_function
from manta.ledger.context import RunContext
from manta.secrets import resolve


def execute(context: RunContext) -> None:
    definition: Job = context.definition
    context.params = resolve({**definition.params, **context.params})
    load_function(definition.fn)(context)
