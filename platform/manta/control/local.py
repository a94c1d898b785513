"""`manta up`, `down` and `status`: the parts of a platform on this machine, without root.

What was started is written down in `<home>/state.json`; a lock lets one `up` or `down` at a time change it.
Everything that is started carries the state folder's name in its environment, so that what a killed `up` left
behind is found even where it was not yet written down.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.control import processes
from manta.control.doctor import Check, doctor
from manta.control.parts import Spec, all_parts, everybodys_env
from manta.control.processes import Started
from manta.errors import Conflict, MantaError, PortInUse, Unavailable
from manta.ledger.store import Ledger
from manta.settings import Settings

START_SECONDS = 120.0  # a part takes 3 to 10; a machine under load may need far more
LOCK_SECONDS = 180.0
TAIL_LINES = 15

Report = Callable[[str, str, str], None]
"""Told, while it happens: the part, its state ("starting", "up", "attached", "down"), a detail."""


@dataclass(frozen=True)
class Part:
    """``state`` is "up", "starting" (it lives and does not answer), "down", or, for what is not ours,
    "attached" or "unreachable"."""

    name: str
    state: str
    pid: int | None
    address: str
    detail: str


class Local:
    """The platform whose state folder is ``settings.home``.

    Args:
        parts: what it consists of; Ray, MLflow and the manta server unless given.
    """

    def __init__(self, settings: Settings, parts: Sequence[Spec] | None = None) -> None:
        self._settings = settings
        self._home = settings.home
        self._given = parts
        self._writing = threading.Lock()
        self._given_up = threading.Event()

    def up(self, report: Report) -> dict[str, str]:
        """Start what is not up. Returns when every part answers; gives their addresses, with "serve" for
        the endpoints. Called again, also after it was killed, it finds what lives and starts the rest.

        Raises:
            PortInUse: somebody else has a port. Nothing was started.
            Unavailable: a part did not come up (its log's end is in the message), or an attached one does
                not answer. The others stay up.
            Conflict: a part is up on another port than the settings say now.
        """
        parts = self._parts()
        self._make_home()
        with self._lock(report):
            Ledger(self._settings.ledger_url).create()
            own = [spec for spec in parts if not self._is_attached(spec, report)]
            absent = [spec for spec in own if not self._lives(spec)]
            for spec in absent:
                self._clear(spec)
            self._bring_up(own, absent, report)
        return {spec.name: spec.address for spec in parts} | {"serve": self._settings.serve_url}

    def down(self, report: Report) -> None:
        """Stop what this state folder started, and all that it started in turn; nothing else. Returns when
        it has ended.

        Raises:
            Unavailable: some of it cannot be killed.
        """
        if not self._home.exists():
            return
        with self._lock(report):
            # The server first: it would take what the others' end does to runs for failures.
            for spec in reversed(self._parts()):
                if spec.attached:
                    continue
                stopped = processes.stop(self._mark(spec), self._recorded(spec), spec.grace)
                said = f"stopped {_count(len(stopped), 'process')}" if stopped else "was not up"
                self._change(spec, None)
                report(spec.name, "down", said)

    def status(self) -> list[Part]:
        """How each part is now; changes nothing, waits for nobody."""
        return [self._attached(spec) if spec.attached else self._own(spec) for spec in self._parts()]

    # --- one part -------------------------------------------------------------------------------------

    def _is_attached(self, spec: Spec, report: Report) -> bool:
        if spec.attached:
            if not spec.answers():
                raise Unavailable(
                    f"{spec.name} does not answer at {spec.address}, where the settings say it is",
                    hint=f"start it there, or unset {spec.name}_url and MANTA_{spec.name.upper()}_URL "
                    "to have one started here",
                )
            report(spec.name, "attached", spec.address)
        return spec.attached

    def _lives(self, spec: Spec) -> bool:
        record = self._read().get(spec.name)
        if record is None or not _started(record).alive:
            return False
        if record["ports"] != spec.ports:
            raise Conflict(
                f"{spec.name} is up on {record['ports']}, and the settings now say {spec.ports}",
                hint="manta down, then manta up; or set the ports back",
            )
        return True

    def _clear(self, spec: Spec) -> None:
        """Stop what a dead part left behind, and see that its ports are free."""
        processes.stop(self._mark(spec), self._recorded(spec), grace=2.0)
        _check_ports(spec, self._settings)

    def _bring_up(self, own: Sequence[Spec], absent: Sequence[Spec], report: Report) -> None:
        """All at once. Returns when all answer; the first failure is raised when the others have come up or
        failed too."""
        failures: list[MantaError] = []
        self._given_up.clear()
        with ThreadPoolExecutor(max_workers=max(1, len(own))) as threads:
            for spec in absent:
                report(spec.name, "starting", spec.address)
            waits = {threads.submit(self._bring_up_one, spec, spec in absent): spec for spec in own}
            try:
                for done in as_completed(waits):
                    try:
                        how = done.result()
                    except MantaError as error:
                        failures.append(error)
                        report(waits[done].name, "down", "did not start")
                    else:
                        report(waits[done].name, "up", f"{waits[done].address}{how}")
            finally:
                self._given_up.set()  # Ctrl-C: what has been started goes on, and the next `up` finds it
        if failures:
            raise failures[0]

    def _bring_up_one(self, spec: Spec, absent: bool) -> str:
        if not absent and self._wait(spec):
            spec.settle()  # an `up` that was killed may not have come to it
            return " (already up)"
        if not absent:  # it lived when we looked, and was ending
            self._clear(spec)
        self._start(spec)
        if not self._wait(spec):
            processes.stop(self._mark(spec), self._recorded(spec), grace=2.0)
            self._change(spec, None)
            raise Unavailable(
                f"{spec.name} ended while it was starting. The end of its log:\n{_tail(self._log(spec))}",
                hint=f"the whole log: {self._log(spec)}; `manta doctor` checks this machine",
            )
        spec.settle()
        return "" if absent else " (started again)"

    def _start(self, spec: Spec) -> None:
        spec.prepare()
        started = processes.start(
            spec.command(),
            mark=self._mark(spec),
            env=everybodys_env(self._settings) | spec.env,
            log=_rotated(self._log(spec)),
            folder=self._home,
        )
        self._change(spec, {**started._asdict(), "ports": spec.ports})

    def _wait(self, spec: Spec) -> bool:
        """Until it answers (True) or has ended (False).

        Raises:
            Unavailable: it lives, and does neither in time.
        """
        started = _started(self._read()[spec.name])
        deadline = time.monotonic() + START_SECONDS
        # Ray's processes answer for one that was killed until `ray start` sees it, a second later.
        while started.bereaved or not spec.answers():
            if not started.alive:
                return False
            if self._given_up.is_set():
                raise Unavailable("nobody waits for it any more")
            if time.monotonic() > deadline:
                raise Unavailable(
                    f"{spec.name} has not answered at {spec.address} for {START_SECONDS:.0f} s. "
                    f"The end of its log:\n{_tail(self._log(spec))}",
                    hint=f"`manta up` waits on; `manta down` ends it; the whole log: {self._log(spec)}",
                )
            time.sleep(0.1)
        return True

    def _own(self, spec: Spec) -> Part:
        record = self._read().get(spec.name)
        started = _started(record) if record else None
        if started is None or not started.alive:
            left = processes.belonging(self._mark(spec), [started] if started else [])
            detail = f"{_count(len(left), 'process')} left over; `manta down` stops them" if left else ""
            if started and not left:
                detail = "was up, and has ended; `manta up` starts it again"
            return Part(spec.name, "down", None, "", detail)
        state, detail = ("up", "") if spec.answers() else ("starting", "does not answer yet")
        return Part(spec.name, state, started.pid, spec.address, detail)

    def _attached(self, spec: Spec) -> Part:
        state, detail = ("attached", "") if spec.answers() else ("unreachable", "does not answer")
        return Part(spec.name, state, None, spec.address, detail)

    # --- the state folder -----------------------------------------------------------------------------

    def _parts(self) -> Sequence[Spec]:
        return all_parts(self._settings) if self._given is None else self._given

    def _make_home(self) -> None:
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in ("logs", "lake", "artifacts"):
            (self._home / folder).mkdir(exist_ok=True)
        # Nor does `ray job submit --working-dir .` then send it to the cluster.
        (self._home / ".gitignore").write_text("*\n")

    @contextlib.contextmanager
    def _lock(self, report: Report) -> Iterator[None]:
        """Held by one `up` or `down` of this folder at a time; let go when its process ends, however."""
        deadline, told = time.monotonic() + LOCK_SECONDS, False
        with (self._home / "up.lock").open("a+") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise Conflict(
                            f"another `manta up` or `down` has been at work in {self._home} for long",
                            hint="stop it, then try again",
                        ) from None
                if not told:
                    report("platform", "starting", "another `manta up` or `down` is at work; waiting for it")
                    told = True
                time.sleep(0.1)
            yield

    def _read(self) -> dict[str, dict[str, Any]]:
        try:
            state: dict[str, dict[str, Any]] = json.loads((self._home / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return state

    def _change(self, spec: Spec, record: dict[str, Any] | None) -> None:
        """Write down what is known of a part from now on; None: nothing."""
        with self._writing:
            state = self._read() | {spec.name: record}
            partial = self._home / f"state.json.{os.getpid()}"
            partial.write_text(json.dumps({name: kept for name, kept in state.items() if kept}, indent=1))
            partial.replace(self._home / "state.json")

    def _recorded(self, spec: Spec) -> list[Started]:
        record = self._read().get(spec.name)
        return [_started(record)] if record else []

    def _mark(self, spec: Spec) -> str:
        return f"{self._home}:{spec.name}"

    def _log(self, spec: Spec) -> Path:
        return self._home / "logs" / f"{spec.name}.log"


def _started(record: dict[str, Any]) -> Started:
    return Started(record["pid"], record["created"])


def _check_ports(spec: Spec, settings: Settings) -> None:
    for name, port in spec.ports.items():
        if processes.is_free(settings.host, port):
            continue
        raise PortInUse(
            f"port {port}, which {spec.name} needs, is in use{_by_whom(port)}",
            hint=f"stop what uses it, or choose another port: MANTA_PORTS__{name.upper()}={port + 1}, "
            f"or `ports: {{{name}: {port + 1}}}` in cluster/{settings.profile}.yaml",
            port=port,
        )


def _by_whom(port: int) -> str:
    holder = processes.listener(port)
    if holder is None:
        return ""
    folder = processes.mark_of(holder).rpartition(":")[0]
    if folder:
        return f" by the platform in {folder} (`manta down` there stops it)"
    with contextlib.suppress(Exception):
        return f" by process {holder.pid} ({' '.join(holder.cmdline())[:100]})"
    return f" by process {holder.pid}"


def _rotated(log: Path) -> Path:
    """The log, after what the last start wrote there was moved aside."""
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    return log


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return "\n".join(f"  {line}" for line in lines[-TAIL_LINES:]) or "  (empty)"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'es' if number != 1 else ''}"


__all__ = ["Check", "Local", "Part", "doctor"]
