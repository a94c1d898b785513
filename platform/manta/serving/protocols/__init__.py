"""What an endpoint speaks: one file each, all over the same core."""

from __future__ import annotations

from dataclasses import dataclass

from manta.definitions import Endpoint
from manta.serving.core import Loaded
from manta.serving.http import Asked


@dataclass(frozen=True)
class Call:
    """One request to an endpoint, with the version that answers it.

    Attributes:
        path: below the endpoint's own address, without slashes around it.
        content: the body, uncompressed; empty for what is read only.
    """

    endpoint: Endpoint
    loaded: Loaded
    asked: Asked
    path: str
    content: bytes
    request_id: str
