"""Models that were made elsewhere: kept by digest, and taken in by a run of a training."""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path

from manta.definitions import Imported, Training, digest
from manta.errors import DefinitionInvalid, InvalidInput, NotFound
from manta.project import Project
from manta.settings import Settings

FOLDER = "foreign"
MOST_NAME = 63  # characters of a job's name


def path_of(settings: Settings, sha256: str) -> Path:
    """Where `manta.training.trainers.imported` finds it."""
    return settings.home / FOLDER / sha256


def put(settings: Settings, sha256: str, content: bytes) -> None:
    """Raises:
    InvalidInput: the content is not what the digest says.
    """
    if hashlib.sha256(content).hexdigest() != sha256:
        raise InvalidInput("the file's content does not match its digest", hint="send it again")
    keep(path_of(settings, sha256), content)


def keep(path: Path, content: bytes) -> None:
    """Write what is named by its digest, whole or not at all. Putting it again changes nothing."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{secrets.token_hex(4)}")
        partial.write_bytes(content)
        partial.replace(path)


def job_of(training: str) -> str:
    """The job that imports' runs are listed under: not the training's own, which they leave as fresh as it
    was. No definition can have such a name."""
    return f"import:{training}"[:MOST_NAME]


def of_training(project: Project, name: str, sha256: str, file: str) -> tuple[Training, str]:
    """The training, but that it takes the file instead of fitting; and its fingerprint.

    Raises:
        NotFound: the project has no such training.
        InvalidInput: the file's name cannot be one.
    """
    jobs = project.jobs()
    trainings = {job: each for job, each in jobs.items() if isinstance(each[0], Training)}
    if name not in trainings:
        raise NotFound(
            f"the project has no training {name!r}",
            hint=f"a model is held to the examples and gates of: {', '.join(sorted(trainings)) or 'none'}",
        )
    training, fingerprint = trainings[name]
    assert isinstance(training, Training)
    try:
        # Fitting's parameters are of no use to it, and it would be refused for them.
        taken = training.replace(trainer=Imported(sha256=sha256, file=file), params={})
    except (DefinitionInvalid, ValueError) as error:
        raise InvalidInput(
            f"the file cannot be imported as {file!r:.80}: {error}", hint="rename it"
        ) from None
    return taken, digest([fingerprint, sha256, file])
