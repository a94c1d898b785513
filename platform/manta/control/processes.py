"""Processes that outlive whoever started them: start, find again, stop.

A process is known by its pid *and* the moment it was created, so that a pid the system has given to
somebody else is never taken for ours. What it starts in turn is found in three ways, for each alone leaks: by
a mark in the environment (lost where a process rewrites its title), by the session it belongs to (left by
what makes a session of its own), and by descent (cut when a parent dies).
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from manta.errors import Unavailable

KILL_SECONDS = 30.0
LEADER_SECONDS = 3.0  # `ray start` would wait for minutes where Ray Serve runs, with nothing to lose
MARK = "MANTA_STARTED_FOR"  # "<state folder>:<part>", in the environment of everything a state folder starts
_GONE = (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied)


class Started(NamedTuple):
    """A process that leads a session of its own. ``created`` is in seconds since the epoch."""

    pid: int
    created: float

    @property
    def alive(self) -> bool:
        process = _find(self)
        return process is not None and is_alive(process)

    @property
    def bereaved(self) -> bool:
        """Whether a child of it has died just now, of which it has not yet taken notice."""
        process = _find(self)
        try:
            return process is not None and any(map(_is_zombie, process.children()))
        except _GONE:
            return False


def start(command: Sequence[str], *, mark: str, env: Mapping[str, str], log: Path, folder: Path) -> Started:
    """Start ``command`` in ``folder``, in a session of its own, its output appended to ``log``."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**env, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        created = psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess:  # it has ended already; the caller will see that it is not alive
        created = time.time()
    process.returncode = 0  # it is not ours to wait for: without this Python warns when it forgets it
    return Started(process.pid, created)


def belonging(mark: str, leaders: Iterable[Started]) -> list[psutil.Process]:
    """All live processes that carry ``mark``, belong to a session of ``leaders``, or descend from such; but
    for those that carry another mark."""
    sessions = {leader.pid for leader in leaders if _still_names_a_session(leader)}
    everyone = {process.pid: process for process in psutil.process_iter() if not _is_zombie(process)}
    verdicts: dict[int, bool] = {}

    def ours(pid: int) -> bool:
        if pid not in verdicts:
            verdicts[pid] = False  # until known; ends a circle
            if process := everyone.get(pid):
                carried = mark_of(process)
                by_kin = not carried and (_session(pid) in sessions or ours(_parent(process)))
                verdicts[pid] = carried == mark or by_kin
        return verdicts[pid]

    return [process for pid, process in everyone.items() if pid != os.getpid() and ours(pid)]


def stop(mark: str, leaders: Sequence[Started], grace: float) -> list[int]:
    """Stop everything that :func:`belonging` finds.

    What has made a session of its own (a run on Ray) is told first, and has ``grace`` seconds to end in good
    order, with all it needs still there; then the leaders, a little; then all that is left is killed.

    Returns the pids of all that were stopped, when none is left.

    Raises:
        Unavailable: some cannot be killed.
    """
    found = set(belonging(mark, leaders))
    led = {leader.pid for leader in leaders}
    for asked, seconds in (
        ({each for each in found if _session(each.pid) not in led}, grace),
        ({each for each in found if each.pid in led}, min(grace, LEADER_SECONDS)),
    ):
        _signal(asked, kill=False)
        _wait(asked, seconds)
    deadline = time.monotonic() + KILL_SECONDS
    # Looked for anew each time: what is ending may still start something. What was found once counts for
    # good: it may just have lost the parent by which it was known.
    while left := {each for each in found | set(belonging(mark, leaders)) if is_alive(each)}:
        found |= left
        _signal(left, kill=True)
        _wait(left, 1.0)
        if time.monotonic() > deadline:
            raise Unavailable(
                f"these processes do not end: {', '.join(str(process.pid) for process in left)}",
                hint="they hang in the kernel, or belong to another user; ask who administers the machine",
            )
    return sorted(process.pid for process in found)


def listener(port: int) -> psutil.Process | None:
    """Who listens on a TCP port of this machine, if the system tells."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return psutil.Process(connection.pid)
    return None


def is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def mark_of(process: psutil.Process) -> str:
    """The mark a process carries; empty when it carries none, or hides it."""
    try:
        return str(process.environ().get(MARK, ""))
    except (*_GONE, OSError):
        return ""


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and was not yet taken notice of does not."""
    return process.is_running() and not _is_zombie(process)


def _find(started: Started) -> psutil.Process | None:
    """The process, dead (but not yet forgotten) or alive."""
    with contextlib.suppress(*_GONE):
        process = psutil.Process(started.pid)
        # A second of tolerance: the system derives the time from a clock that is being corrected.
        if abs(process.create_time() - started.created) < 1.0:
            return process
    return None


def _still_names_a_session(leader: Started) -> bool:
    # A pid is not given away while it names a session. It can be once the last member has ended, or the
    # machine was restarted: then somebody else leads the session.
    if psutil.boot_time() > leader.created + 60:
        return False
    return _find(leader) is not None or not psutil.pid_exists(leader.pid)


def _is_zombie(process: psutil.Process) -> bool:
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
        process.wait(timeout=0)  # if it was our own child, the system may forget it now
    except (*_GONE, psutil.TimeoutExpired):
        pass
    return True


def _session(pid: int) -> int:
    try:
        return os.getsid(pid)
    except OSError:
        return 0


def _parent(process: psutil.Process) -> int:
    try:
        return int(process.ppid())
    except _GONE:
        return 0


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Until all have ended, but no longer. One whose parent does not take notice counts as ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(is_alive(process) for process in processes):
        time.sleep(0.02)


def _signal(processes: Iterable[psutil.Process], *, kill: bool) -> None:
    for process in processes:
        with contextlib.suppress(*_GONE):
            process.kill() if kill else process.terminate()
