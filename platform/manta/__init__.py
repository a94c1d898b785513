"""manta: an ML platform on Ray.

The public names are loaded when first used: `import manta` loads neither ray, feast, mlflow nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "ASHA": "manta.definitions",
    "AtLeast": "manta.definitions",
    "AtMost": "manta.definitions",
    "BeatsChampion": "manta.definitions",
    "Calibrated": "manta.definitions",
    "Check": "manta.definitions",
    "Choice": "manta.definitions",
    "Client": "manta.client",
    "Column": "manta.definitions",
    "Contract": "manta.definitions",
    "DeltaTable": "manta.connectors.delta",
    "Dlt": "manta.connectors.dlt",
    "Endpoint": "manta.definitions",
    "Examples": "manta.definitions",
    "FeatureTable": "manta.definitions",
    "Files": "manta.connectors.files",
    "Fitted": "manta.training.trainers.function",
    "FromRay": "manta.connectors.from_ray",
    "Function": "manta.definitions",
    "IcebergTable": "manta.connectors.iceberg",
    "Imported": "manta.definitions",
    "Ingest": "manta.definitions",
    "Integers": "manta.definitions",
    "Invariant": "manta.definitions",
    "Jax": "manta.definitions",
    "Job": "manta.definitions",
    "Kafka": "manta.connectors.kafka",
    "Keras": "manta.definitions",
    "Latency": "manta.definitions",
    "LightGBM": "manta.definitions",
    "LogUniform": "manta.definitions",
    "Lookup": "manta.definitions",
    "MantaError": "manta.errors",
    "Materialize": "manta.definitions",
    "Memory": "manta.definitions",
    "Monotone": "manta.definitions",
    "NoLeakage": "manta.definitions",
    "Parity": "manta.definitions",
    "Pure": "manta.training.trainers.jax",
    "Query": "manta.connectors.query",
    "RestApi": "manta.connectors.rest",
    "Retry": "manta.definitions",
    "RunContext": "manta.ledger.context",
    "Search": "manta.definitions",
    "Secret": "manta.secrets",
    "Settings": "manta.settings",
    "Signature": "manta.definitions",
    "Sklearn": "manta.definitions",
    "Sql": "manta.connectors.sql",
    "StreamFeatures": "manta.definitions",
    "TimeSplit": "manta.definitions",
    "Torch": "manta.definitions",
    "Training": "manta.definitions",
    "Uniform": "manta.definitions",
    "XGBoost": "manta.definitions",
    "connect": "manta.client",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'manta' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
