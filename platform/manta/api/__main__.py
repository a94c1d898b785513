"""`python -m manta.api`: the manta server of the project in the working directory."""

from __future__ import annotations

import gc
import logging
import os

import uvicorn
from fastapi import FastAPI

from manta.api.server import create
from manta.app import Platform
from manta.settings import Settings


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    settings = Settings.load(".")
    platform = Platform(settings)
    serve(create(platform), settings)


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve until told to end. For a process that does nothing else."""
    # What has been made by now stays: to look through all of it for garbage, over and over, is what made one
    # request in a hundred wait.
    gc.collect()
    gc.freeze()
    # Failed log-ins are counted by address: who stands in front of this server, and may name another, is said
    # in FORWARDED_ALLOW_IPS.
    behind_proxy = bool(os.environ.get("FORWARDED_ALLOW_IPS"))
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.ports.server,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=behind_proxy,
    )


if __name__ == "__main__":
    main()
