"""The client: the platform's verbs, for notebooks, scripts and the command line.

import manta

client = manta.connect()             # the platform of the project in this folder, in this process
run = client.submit("flights")
run.follow()
client.predict("delay", {"keys": {...}})
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from manta.client.handle import RunHandle
from manta.client.transport import InProcess, Transport, find_key
from manta.client.verbs import Client, Happening, Look
from manta.settings import Settings

IN_PROCESS = "http://manta.local"


def connect(url: str | None = None, *, root: str | Path = ".", key: str | None = None) -> Client:
    """A client for the project in ``root``.

    With a ``url``, or MANTA_URL: of the server there. Without one, the same application in this process, as
    the owner of the state folder; no server is needed, and one that is up is not in the way: whichever holds
    the controller's lease moves the runs. It ends with :meth:`Client.close`, or with the process.

    Args:
        key: the API key; else MANTA_API_KEY, the file MANTA_API_KEY_FILE, or, for the platform of this
            folder, its owner's key.

    Raises:
        PlatformDown: nothing answers at the URL.
        Unauthenticated: the key opens nothing there.
    """
    settings = Settings.load(root)
    url = url or os.environ.get("MANTA_URL")
    if not url:
        return _in_process(settings)
    own = url.rstrip("/") == f"http://{settings.host}:{settings.ports.server}"
    client = Client(settings, Transport(url, find_key(settings, key, own=own)))
    client.check_is_own() if own else client.me()
    return client


def _in_process(settings: Settings) -> Client:
    from manta.api.server import create
    from manta.app import Platform

    # What the controller tells is the server's log; a notebook is told by `me()["trouble"]` and by `follow`.
    logging.getLogger("manta").addHandler(logging.NullHandler())
    app = create(Platform(settings))
    transport = InProcess(app)
    return Client(settings, Transport(IN_PROCESS, app.state.owner_key, transport))


__all__ = ["Client", "Happening", "Look", "RunHandle", "Transport", "connect"]
