"""The Ray Serve application of a look-up door: `build` is what its configuration imports."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray import serve

from manta.definitions import Lookup, from_json
from manta.features.catalog import read_catalog
from manta.serving.asgi import Asgi
from manta.serving.lookup.callers import Callers
from manta.serving.lookup.door import Door
from manta.serving.loopback import stay_on_loopback
from manta.settings import Settings

log = logging.getLogger("ray.serve")


@serve.ingress()
class Replica:
    """Answers for one door. What is registered comes by ``reconfigure``, in place."""

    def __init__(self, lookup: dict[str, Any], project: str) -> None:
        definition = from_json(lookup)
        assert isinstance(definition, Lookup)
        settings = Settings.load().for_project(project)
        callers = Callers(settings.server_url, project)
        self._door = Door(definition, project, callers, settings.datasets)
        stay_on_loopback()

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Swap to the catalog that ``config`` names. One that cannot be served leaves the one that is in
        place, and is named in the description; a replica that serves none yet fails to start."""
        served = self._door.loaded
        if served is None or served.version != config["version"]:
            try:
                catalog = await asyncio.to_thread(read_catalog, config["catalog"])
                await asyncio.to_thread(self._door.load, config["version"], catalog)
            except Exception as error:
                if served is None:
                    raise
                log.exception("version %s is refused; %s stays", config["version"], served.version)
                self._door.refused = {"version": config["version"], "why": f"{type(error).__name__}: {error}"}
                return
        self._door.refused = {}

    def __serve_build_asgi_app__(self) -> Asgi:
        return Asgi(self._door)


def build(args: dict[str, Any]) -> serve.Application:
    """The application. ``args``: ``lookup``, the definition as JSON, and ``project``."""
    deployment: Any = serve.deployment(name="endpoint", max_ongoing_requests=100, max_queued_requests=1000)
    application: serve.Application = deployment(Replica).bind(args["lookup"], args["project"])
    return application
