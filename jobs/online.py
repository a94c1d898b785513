"""What is made ready for look-ups online: the newest values of the service that the endpoint asks."""

from __future__ import annotations

from manta import Materialize

online = Materialize(features="delay_v1", parity=1000)
