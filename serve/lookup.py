"""The door at which features are looked up: a Feast SDK, or anybody with a key."""

from __future__ import annotations

from manta import Lookup

lookup = Lookup(features=("delay_v1",))
