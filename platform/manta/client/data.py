"""The datasets of a project, for notebooks and the command line.

They are read straight from the lake, and not through the server: no table is sent through HTTP, and a
notebook gets its frame without a copy. So the lake must be readable from here, as it is on a laptop and
wherever notebooks share the cluster's storage. Reading here is nobody's run, and is recorded nowhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manta.errors import MantaError
from manta.settings import Settings

if TYPE_CHECKING:
    from manta.client.verbs import Client
    from manta.data.reading import Datasets as Datasets


def datasets(settings: Settings, client: Client | None = None) -> Datasets:
    """Those of the project. With a client, a commit that does not tell the key of its rows is asked about."""
    from manta.data.reading import Datasets

    def key_of(run: int) -> tuple[str, ...]:
        try:
            definition = client.look(run).definition if client else {}
        except MantaError:
            return ()  # the lake outlives ledgers
        contract = definition.get("contract") or {}
        time = [definition["time"]] if definition.get("time") else []
        return (*contract.get("key", ()), *definition.get("key", ()), *time)

    return Datasets(settings.datasets, key_of)
