"""The manifest of a run: all that decides what it makes, and one id of it. Pure.

It is read off the ledger, not written when the run ends: so it is there from a run's first minute, of runs
that failed too, and cannot say anything else than the ledger does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from manta.definitions.jobs import Policy
from manta.ledger.runs import Attempt, Run, Version

# Of what an attempt ran in: what may change what it makes. The rest is told for people.
ENVIRONMENT = ("python", "manta", "platform", "lock", "project_lock", "machine", "gpus")
_APART = ("params", "seed", "name")


class Manifest(BaseModel):
    """What a run was made from.

    Attributes:
        id: SHA-256 of all the rest but ``run``, hexadecimal. Two runs have the same id if, and only if,
            nothing here differs.
        code: ``package``, the content hash of the project, and ``fingerprint``, of the definition and of the
            code that it names; ``commit`` where the project is in a git repository.
        definition: what the definition says, without how the run is treated (its retries, its timeouts).
        params: the definition's, with what the submitter overrode.
        seed: of random numbers; None where the definition has none.
        reads: input → version, e.g. ``dataset:flights`` → ``3``.
        environment: of the last attempt: the interpreter, the installed packages (``lock``) and the machine.
    """

    model_config = ConfigDict(frozen=True)

    id: str
    run: int
    code: dict[str, str]
    definition: dict[str, Any]
    params: dict[str, Any]
    seed: int | None
    reads: dict[str, str]
    environment: dict[str, Any]


def manifest_of(run: Run, inputs: Sequence[Version], attempts: Sequence[Attempt]) -> Manifest:
    """``inputs``: what it has read so far; ``attempts``: oldest first."""
    left_out = {*Policy.model_fields, *_APART}
    ran_in = (attempts[-1].environment if attempts else None) or {}
    commit = {"commit": run.commit} if run.commit else {}
    pinned = {
        "code": {"package": run.package, "fingerprint": run.fingerprint, **commit},
        "definition": {name: value for name, value in run.definition.items() if name not in left_out},
        "params": run.definition.get("params", {}) | run.params,
        "seed": run.definition.get("seed"),
        "reads": dict(sorted((str(each.ref), each.version) for each in inputs)),
        "environment": {name: ran_in[name] for name in ENVIRONMENT if name in ran_in},
    }
    text = json.dumps(pinned, sort_keys=True, separators=(",", ":"))
    return Manifest(id=hashlib.sha256(text.encode()).hexdigest(), run=run.id, **pinned)


def differences(one: Manifest, other: Manifest) -> list[str]:
    """What is not the same in both, in words; empty if and only if their ids are equal."""
    told: list[str] = []
    for part in ("code", "definition", "params", "seed", "reads", "environment"):
        told += _differ(part, getattr(one, part), getattr(other, part))
    return told


def _differ(where: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        names = sorted({*one, *other})
        return [line for name in names for line in _differ(f"{where}.{name}", one.get(name), other.get(name))]
    return [] if one == other else [f"{where} was {_shown(one)}, is {_shown(other)}"]


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= 80 else f"{text[:77]}…"
