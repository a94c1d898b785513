"""What a training reports while it goes on: lines of JSON in the run's folder, and the run's progress."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manta.training.trainers import Job

REPORTS = "reports.jsonl"


def reports(folder: Path) -> list[dict[str, Any]]:
    """All that are whole, in order."""
    path = folder / REPORTS
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


@contextmanager
def followed(
    job: Job, folder: Path, expected: int | None, load: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """Meanwhile, tell how far the training is, and load what comes after it: processes are started one after
    the other, and leave cores idle.

    Args:
        expected: how many reports there will be; None where that cannot be known.
        load: imports more, before ``job.meanwhile`` does.
    """
    done = threading.Event()

    def follow() -> None:
        load()
        job.meanwhile()
        while expected and not done.wait(0.5):
            job.stage.reached(min(len(reports(folder)) / expected, 1.0))

    thread = threading.Thread(target=follow, name="meanwhile", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
    thread.join()
