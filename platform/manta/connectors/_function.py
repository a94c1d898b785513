"""What a person is told when a function of the project that a source calls has failed."""

from __future__ import annotations

import re
from pathlib import Path

from manta import secrets
from manta.errors import SourceUnreadable

FRAME = re.compile(r'^ *File "(.+?)", line (\d+)')
REASON = re.compile(r"[A-Za-z_][\w.]*: ")


def failed(function: str, told: str, root: Path) -> SourceUnreadable:
    """With the last line of the project in ``told``, a traceback, and the error that stands below it."""
    told = secrets.redactor.text(told)
    lines = told.splitlines()
    place, reason = "", next((line for line in reversed(lines) if REASON.match(line)), told)
    for index, line in enumerate(lines):
        frame = FRAME.match(line)
        own = _own(Path(frame[1]), root) if frame else None
        if frame and own:
            place = f" at {own}:{frame[2]}"
            reason = next((below for below in lines[index + 1 :] if below[:1].strip()), reason)
    error = SourceUnreadable(
        f"{function} failed: {reason}{place}",
        hint="correct the function; the traceback is in the run's log",
    )
    error.add_note(told)
    return error


def _own(path: Path, root: Path) -> Path | None:
    """A file of the project, also when it ran from another copy of it."""
    if path.is_relative_to(root):
        return path.relative_to(root)
    if "site-packages" in path.parts:
        return None
    ends = (Path(*path.parts[index:]) for index in range(1, len(path.parts)))
    return next((end for end in ends if (root / end).is_file()), None)
