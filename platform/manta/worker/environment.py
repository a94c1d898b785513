"""What an attempt runs in: enough to tell, later, whether it could be repeated in the same."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path
from typing import Any

import manta

LOCK = "requirements.lock"


def describe(root: Path) -> dict[str, Any]:
    """``python``, ``manta``, ``platform``; ``lock``, a hash of the names and versions of all distributions on
    the path; ``machine``, its processor and how many cores this process may use, and ``gpus``, where there
    are any; and, where the project in ``root`` has a requirements.lock, ``project_lock``, a hash of it."""
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "manta": manta.__version__,
        "platform": f"{sys.platform}-{platform.machine()}",
        "lock": _digest("\n".join(sorted(_distributions())).encode()),
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
    }
    if gpus := _gpus():
        found["gpus"] = gpus
    own = root / LOCK
    if own.is_file():
        found["project_lock"] = _digest(own.read_bytes())
    return found


def _distributions() -> set[str]:
    # By the names of their folders: reading the metadata of hundreds takes longer than a small run does.
    found = set()
    for folder in filter(os.path.isdir, sys.path):
        for name in os.listdir(folder):
            if name.endswith((".dist-info", ".egg-info")):
                found.add(name.rpartition(".")[0].lower())
    return found


def _processor() -> str:
    told = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    named = (line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Their models, by the driver's own files: asking a framework would load it."""
    found = []
    for told in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        named = (line for line in told.read_text().splitlines() if line.startswith("Model:"))
        found += [line.partition(":")[2].strip() for line in named]
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
