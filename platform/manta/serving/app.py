"""The Ray Serve application of an endpoint: `build` is what its configuration imports."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ray import serve

from manta.definitions import Endpoint, from_json
from manta.serving import core
from manta.serving.asgi import Asgi
from manta.serving.door import Door
from manta.serving.loopback import stay_on_loopback

log = logging.getLogger("ray.serve")


@serve.ingress()
class Replica:
    """Answers for one endpoint. Which version it serves comes by ``reconfigure``, in place."""

    def __init__(self, endpoint: dict[str, Any], project: str) -> None:
        definition = from_json(endpoint)
        assert isinstance(definition, Endpoint)
        self._endpoint = definition
        self._door = Door(definition, project)
        stay_on_loopback()

    async def reconfigure(self, config: dict[str, str]) -> None:
        """Swap to the version that ``config`` names, once it is loaded and has answered. Requests go on
        meanwhile; each is answered by one version.

        A version that cannot be loaded leaves the one that is served in place, and is named in the
        endpoint's description; a replica that serves none yet fails to start.
        """
        served = self._door.loaded
        if served and (served.version, served.digest) == (config["version"], config["digest"]):
            self._door.refused = {}
            return
        try:
            self._door.loaded = await asyncio.to_thread(core.load, self._endpoint, config)
            self._door.refused = {}
        except Exception as error:
            if served is None:
                raise
            log.exception("version %s is refused; %s stays", config["version"], served.version)
            self._door.refused = {"version": config["version"], "why": f"{type(error).__name__}: {error}"}

    def __serve_build_asgi_app__(self) -> Asgi:
        return Asgi(self._door)


def build(args: dict[str, Any]) -> serve.Application:
    """The application. ``args``: ``endpoint``, the definition as JSON, and ``project``."""
    deployment: Any = serve.deployment(name="endpoint", max_ongoing_requests=100, max_queued_requests=1000)
    application: serve.Application = deployment(Replica).bind(args["endpoint"], args["project"])
    return application
