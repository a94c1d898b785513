"""Which of the controllers of one ledger acts: the one that holds the lease."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time

import psutil

from manta.errors import Unavailable
from manta.ledger.store import Ledger

log = logging.getLogger(__name__)

LEASE_SECONDS = 6.0
LEASE = "controller"


class Leader:
    """One candidate. It leads from when it took the lease until that has run out, counted from before it
    asked."""

    def __init__(self, ledger: Ledger, seconds: float = LEASE_SECONDS) -> None:
        self.name = f"{_here()}/{os.getpid()}/{secrets.token_hex(4)}"
        self.seconds = seconds
        self._ledger = ledger
        self._until = 0.0
        self._turn = threading.Lock()

    @property
    def leading(self) -> bool:
        return time.monotonic() < self._until

    def take(self) -> bool:
        """Take the lease, or renew it when a third of it has gone. False while another has it.

        Raises:
            Unavailable: the ledger does not answer.
        """
        with self._turn:
            asked = time.monotonic()
            if self._until - asked > self.seconds * 2 / 3:
                return True
            was = self.leading
            held = self._ledger.leases.take(LEASE, self.name, self.seconds)
            if not held and self._bury():
                held = self._ledger.leases.take(LEASE, self.name, self.seconds)
            self._until = asked + self.seconds if held else 0.0
            if was != held:
                log.info("controller %s %s", self.name, "leads" if held else "no longer leads")
            return held

    def _bury(self) -> bool:
        """Release the lease of a process of this machine that is no more: nobody need wait for it."""
        holder = self._ledger.leases.holder(LEASE)
        if holder is None:
            return True
        here, pid, _ = [*holder.rsplit("/", 2), "", ""][:3]
        if here != _here() or not pid.isdecimal() or psutil.pid_exists(int(pid)):
            return False
        self._ledger.leases.release(LEASE, holder)
        return True

    def keep(self, stop: threading.Event) -> None:
        """Take or renew the lease until ``stop``, however long a round takes; then give it back."""
        while not stop.wait(self.seconds / 4):
            try:
                self.take()
            except Unavailable as error:
                log.warning("%s", error.message)
            except Exception:
                log.exception("lease")

    def resign(self) -> None:
        """Give the lease back before it runs out: another need not wait for it."""
        with self._turn:
            self._until = 0.0
            try:
                self._ledger.leases.release(LEASE, self.name)
            except Unavailable as error:
                log.warning("%s", error.message)


def _here() -> str:
    """Where a pid means the same process: this machine, and in it this namespace of pids."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}{namespace}"
