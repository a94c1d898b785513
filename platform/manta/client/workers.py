"""Asks the data wing in a process of its own: the control wing imports none of its engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from manta.errors import DefinitionInvalid, from_problem
from manta.settings import WORKER_VARIABLE, Settings


def ask(
    module: str, asked: Mapping[str, Any], settings: Settings, folder: Path, *, seconds: float, failed: str
) -> None:
    """Run `python -m MODULE` in the project's folder, with ``asked`` as JSON on its standard input; returns
    when it has answered where ``asked`` says. What is wrong it writes into ``folder``.

    Raises:
        MantaError: what the module raised.
        DefinitionInvalid: it ended otherwise; the message begins with ``failed`` and shows what it said.
        subprocess.TimeoutExpired: it took longer than ``seconds``.
    """
    problem = folder / "problem.json"
    done = subprocess.run(
        [sys.executable, "-m", module],
        input=json.dumps({**asked, "problem": str(problem)}, default=str),
        cwd=settings.root,
        env=os.environ | {WORKER_VARIABLE: settings.for_worker()},
        capture_output=True,
        text=True,
        timeout=seconds,
    )
    if problem.exists():
        raise from_problem(json.loads(problem.read_text()))
    if done.returncode:
        raise DefinitionInvalid(f"{failed}:\n{done.stderr[-3000:]}")
