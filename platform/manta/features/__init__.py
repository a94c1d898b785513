"""Features: Feast's definitions, registry and storage layout, read and written by manta's own engines.

Nothing is imported before it is used: `import manta.features` loads neither Feast nor Polars.
"""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "AsofOfflineStore": "manta.features.offline",
    "AsofOfflineStoreConfig": "manta.features.offline",
    "DatasetDestination": "manta.features.storage",
    "DatasetSource": "manta.features.source",
    "DatasetStorage": "manta.features.storage",
    "OnlineReader": "manta.features.online",
    "pinned": "manta.features.entity_rows",
    "staleness": "manta.features.stale",
}

__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'manta.features' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
