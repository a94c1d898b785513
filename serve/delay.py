"""The endpoint that answers for the delay model."""

from __future__ import annotations

from manta import Endpoint

delay = Endpoint(model="delay", features="delay_v1")
