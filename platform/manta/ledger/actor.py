"""Who does something: what the ledger writes down beside every change."""

from __future__ import annotations

from typing import NamedTuple


class Actor(NamedTuple):
    """A principal (``user:ada``, ``ci:deploy``, ``run:17``, ``controller``) and the door it came through
    (``http``, ``local``, ``ray``, ``run``, ``controller``)."""

    name: str
    door: str

    def __str__(self) -> str:
        return self.name


CONTROLLER = Actor("controller", "controller")
OWNER = Actor("owner", "local")
"""Whoever holds the state folder of a laptop's platform."""


def of_run(run_id: int) -> Actor:
    return Actor(f"run:{run_id}", "run")
