"""Checkpoints of Ray Train that are whole: what was reported is sealed, and what is broken is passed over.

A checkpoint that all workers have reported gets a seal: the size and the SHA-256 of each of its files. Before
Ray Train goes on from a folder, the newest checkpoint that still is what its seal says is made the latest.
Ray's own list of them (`checkpoint_manager_snapshot.json`) is written over in place, so that a kill can leave
half of it: it is then made anew from the seals.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manta.training import whole

log = logging.getLogger(__name__)

SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's name for it
SEALS = "seals"
READ_BYTES = 2**20


@dataclass(frozen=True)
class Seal:
    """Of one checkpoint. ``number``: how many were reported before; ``files``: name → (bytes, SHA-256)."""

    name: str
    number: int
    metrics: dict[str, Any]
    files: dict[str, tuple[int, str]]


def seal(checkpoint: Path, metrics: Mapping[str, Any]) -> None:
    """Note what the checkpoint is. Whole or not at all; the seals of checkpoints that are gone go too."""
    folder = checkpoint.parent / SEALS
    folder.mkdir(exist_ok=True)
    kept = [each for each in _seals(checkpoint.parent) if each.name != checkpoint.name]
    for each in kept:
        if not (checkpoint.parent / each.name).exists():
            (folder / f"{each.name}.json").unlink(missing_ok=True)
    told = {
        "number": max((each.number for each in kept), default=-1) + 1,
        "metrics": dict(metrics),
        "files": {
            str(path.relative_to(checkpoint)): (path.stat().st_size, _digest(path))
            for path in sorted(checkpoint.rglob("*"))
            if path.is_file()
        },
    }
    whole.write(folder / f"{checkpoint.name}.json", json.dumps(told, default=str).encode())


def broken(checkpoint: Path) -> str:
    """What is wrong with a checkpoint, in words; empty when nothing is. One without a seal, reported in the
    very moment of a kill, is taken as it is."""
    sealed = {each.name: each for each in _seals(checkpoint.parent)}
    return _wrong(checkpoint, sealed.get(checkpoint.name))


def _wrong(checkpoint: Path, sealed: Seal | None) -> str:
    """As :func:`broken`."""
    if not checkpoint.is_dir():
        return "it is gone"
    for name, (size, digest) in (sealed.files if sealed else {}).items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is gone"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} of {size} bytes"
        if _digest(path) != digest:
            return f"{name} has been changed"
    return ""


def mend(folder: Path) -> None:
    """Make the newest whole checkpoint of a run's folder the one that Ray Train goes on from. What is broken
    is removed, and said so; with nothing whole left, the training begins anew."""
    snapshot = folder / SNAPSHOT
    if not snapshot.exists():
        return
    state = _state(snapshot)
    listed = {each["checkpoint_dir_name"]: each for each in state["checkpoint_results"]} if state else {}
    sealed = {each.name: each for each in _seals(folder)}
    bad = {name: why for name in listed if (why := _wrong(folder / name, sealed.get(name)))}
    if state is not None and not bad:
        return
    # Each is read through once: what is listed has been.
    rest = {name for name, each in sealed.items() if name not in listed and not _wrong(folder / name, each)}
    good = rest | (listed.keys() - bad.keys())
    results = [_result(name, each.metrics) for name, each in sealed.items() if name in good]
    results += [each for name, each in listed.items() if name in good and name not in sealed]
    goes_on = f"going on from {results[-1]['checkpoint_dir_name']}" if results else "beginning anew"
    for name, why in bad.items():
        log.warning("checkpoint %s is broken (%s): %s", name, why, goes_on)
    if state is None:
        log.warning("Ray Train's list of checkpoints was cut off: %s", goes_on)
    if results:
        whole.write(snapshot, json.dumps(_listing(results)).encode())
    else:
        snapshot.unlink()
    for name in bad:
        shutil.rmtree(folder / name, ignore_errors=True)


def _result(name: str, metrics: Mapping[str, Any]) -> dict[str, Any]:
    return {"version": 0, "checkpoint_dir_name": name, "metrics": dict(metrics)}


def _listing(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Ray Train's list, of these checkpoints and no others, oldest first."""
    import ray

    return {
        "ray_version": ray.__version__,
        "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(results))),
        "latest_checkpoint_result": results[-1],
        "pending_training_results": [],
        "pending_validation_specs": [],
        "current_report_index": len(results),
        "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [],
        "failed_validation_checkpoint_dir_names": [],
    }


def _state(snapshot: Path) -> dict[str, Any] | None:
    """None when it is not whole."""
    try:
        state: dict[str, Any] = json.loads(snapshot.read_text())
        return state if state["checkpoint_results"] is not None and "current_report_index" in state else None
    except (ValueError, KeyError, TypeError):
        return None


def _seals(folder: Path) -> list[Seal]:
    """Oldest first."""
    found = []
    for path in (folder / SEALS).glob("checkpoint_*.json"):
        told = json.loads(path.read_text())
        files = {name: (size, digest) for name, (size, digest) in told["files"].items()}
        found.append(Seal(path.name.removesuffix(".json"), told["number"], told["metrics"], files))
    return sorted(found, key=lambda each: each.number)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()
