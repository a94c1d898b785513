"""The nouns a user writes: frozen pydantic models, pure data, no engine imported."""

from __future__ import annotations

from typing import Any

from manta.definitions.base import Definition, FunctionPath, Name, Ref, digest, load_function
from manta.definitions.datasets import Check, Column, Contract, FeatureTable, Ingest
from manta.definitions.endpoints import Endpoint, Lookup, StaysUp
from manta.definitions.features import FeatureRepo, Materialize, ViewInfo
from manta.definitions.gates import (
    AtLeast,
    AtMost,
    BeatsChampion,
    Calibrated,
    Gate,
    Invariant,
    Latency,
    Memory,
    Monotone,
    NoLeakage,
    Parity,
    Signature,
)
from manta.definitions.jobs import Job, Policy, Retry, Runnable
from manta.definitions.search import ASHA, Choice, Integers, LogUniform, Search, Uniform
from manta.definitions.sources import Source
from manta.definitions.streams import StreamFeatures
from manta.definitions.training import (
    Examples,
    Function,
    Imported,
    Jax,
    Keras,
    LightGBM,
    Sklearn,
    TimeSplit,
    Torch,
    Training,
    XGBoost,
)
from manta.errors import DefinitionInvalid

KINDS: dict[str, type[Definition]] = {
    cls.kind: cls
    for cls in (
        *(Ingest, FeatureTable, FeatureRepo, Materialize, StreamFeatures),
        *(Training, Search, Job, Endpoint, Lookup),
    )
}


def from_json(value: dict[str, Any]) -> Definition:
    """The definition a JSON form stands for.

    Raises:
        DefinitionInvalid: unknown kind, or fields that do not fit it.
    """
    fields = dict(value)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise DefinitionInvalid(f"unknown kind of definition: {kind!r}", hint=f"one of {', '.join(KINDS)}")
    return KINDS[kind](**fields)


__all__ = [
    "ASHA",
    "KINDS",
    "AtLeast",
    "AtMost",
    "BeatsChampion",
    "Calibrated",
    "Check",
    "Choice",
    "Column",
    "Contract",
    "Definition",
    "Endpoint",
    "Examples",
    "FeatureRepo",
    "FeatureTable",
    "Function",
    "FunctionPath",
    "Gate",
    "Imported",
    "Ingest",
    "Integers",
    "Invariant",
    "Jax",
    "Job",
    "Keras",
    "Latency",
    "LightGBM",
    "LogUniform",
    "Lookup",
    "Materialize",
    "Memory",
    "Monotone",
    "Name",
    "NoLeakage",
    "Parity",
    "Policy",
    "Ref",
    "Retry",
    "Runnable",
    "Search",
    "Signature",
    "Sklearn",
    "Source",
    "StaysUp",
    "StreamFeatures",
    "TimeSplit",
    "Torch",
    "Training",
    "Uniform",
    "ViewInfo",
    "XGBoost",
    "digest",
    "from_json",
    "load_function",
]
