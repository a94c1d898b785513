"""A project folder as the platform sees it: its definitions, and its files packaged by content hash."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import pathspec
from pydantic import BaseModel, ConfigDict, Field

import manta
from manta.definitions import Definition, FeatureRepo, Ingest, Ref, StaysUp, StreamFeatures, from_json
from manta.errors import Conflict, DefinitionInvalid, InvalidInput, SourceUnreadable, from_problem
from manta.settings import WORKER_VARIABLE, Settings

LEFT_OUT = ["build/", "dist/", "node_modules/", "*.egg-info/"]  # unless .mantaignore asks for it: !build/
NEVER_PACKAGED = [".*", "__pycache__/", "*.pyc"]  # whatever it says: .env, .git, .aws/credentials
MOST_BYTES = 64 * 2**20
MOST_FILES = 20_000
LOAD_TRIES = 3
DESCRIBE_SECONDS = 180
GIT_SECONDS = 20


class Described(BaseModel):
    """A definition as found in a project. ``fingerprint`` covers it and the code that a run executes;
    ``where`` is ``module:variable``."""

    model_config = ConfigDict(frozen=True)

    definition: dict[str, Any]
    fingerprint: str
    where: str

    def parsed(self) -> Definition:
        return from_json(self.definition)


class Project(BaseModel):
    """A loaded project. ``sources`` maps ingests to tokens of their sources' present state; ``commit`` is as
    :func:`commit_of` gives it."""

    model_config = ConfigDict(frozen=True)

    name: str
    package: str
    described: tuple[Described, ...]
    sources: dict[str, str] = {}
    commit: str = Field(default="", max_length=64)

    def jobs(self) -> dict[str, tuple[Definition, str]]:
        """Name → definition and fingerprint, of what ends."""
        return {d.name: (d, fp) for d, fp in self._parsed() if not isinstance(d, StaysUp)}

    def endpoints(self) -> dict[str, tuple[StaysUp, str]]:
        return {d.name: (d, fp) for d, fp in self._parsed() if isinstance(d, StaysUp)}

    def inputs(self, definition: Definition) -> tuple[Ref, ...]:
        """What a run of it reads, with the datasets that stand behind a feature service."""
        refs = list(definition.inputs())
        if isinstance(definition, StreamFeatures):
            return tuple(refs)  # it makes one of them, and reads none
        repo = next((d for d, _ in self._parsed() if isinstance(d, FeatureRepo)), None)
        for ref in definition.inputs():
            if ref.kind == "features" and repo is not None:
                refs += repo.datasets_of(ref.name)
        return tuple(dict.fromkeys(refs))

    def _parsed(self) -> list[tuple[Definition, str]]:
        return [(described.parsed(), described.fingerprint) for described in self.described]


def load(settings: Settings) -> tuple[Project, bytes]:
    """Load the project in ``settings.root``: what it defines, and its package.

    Raises:
        DefinitionInvalid: it holds no project, or one that does not load.
        InvalidInput: it cannot be packaged: see :func:`pack`.
        Conflict: its files do not keep still.
    """
    root = settings.root
    if not any((root / folder).is_dir() for folder in ("jobs", "serve", "features")):
        raise DefinitionInvalid(
            f"{root} is not a project: it has none of jobs/, features/, serve/",
            hint="change to a project's folder, or make one: manta init DIR",
        )
    package, content, answer = _packed_and_described(settings)
    if "problem" in answer:
        raise from_problem(answer["problem"])
    described = tuple(Described(**each) for each in answer["definitions"])
    project = Project(name=settings.project, package=package, described=described, commit=commit_of(root))
    _check_references(project)
    _check_streams(project)
    return project.model_copy(update={"sources": _observe(project, root)}), content


def commit_of(root: Path) -> str:
    """The commit of git that the folder is in, with ``+changes`` where a file of it has not been committed;
    empty where there is no repository, or no git."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(root, "status", "--porcelain", "--", ".") else head
    except (OSError, subprocess.SubprocessError):
        return ""


def _git(root: Path, *words: str) -> str:
    asked = ["git", "-C", str(root), "--no-optional-locks", *words]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    return told.stdout.strip()


def _packed_and_described(settings: Settings) -> tuple[str, bytes, dict[str, Any]]:
    """The package and the description of one state of the folder: describing imports the files themselves,
    so both are made again if a file was changed meanwhile.

    Raises:
        Conflict: the files do not keep still.
    """
    for _ in range(LOAD_TRIES):
        before = _states(settings.root)
        package, content = pack(settings.root)
        answer = _kept_description(settings, package) or _described(settings)
        after = _states(settings.root)
        if before == after:
            if "problem" not in answer:
                _keep_description(settings, package, answer)
            return package, content, answer
    changed = sorted({name for name, _ in set(before.items()) ^ set(after.items())})
    raise Conflict(
        f"files keep changing while the project is packaged: {', '.join(changed[:3])}",
        hint="stop what writes them, or name them in .mantaignore",
    )


def pack(root: Path) -> tuple[str, bytes]:
    """The project's files as a zip whose bytes depend on their names and contents only, and its digest.

    Left out: hidden files, build products, and what `.mantaignore` (gitignore's syntax) names. A link to a
    file of the project is packaged as that file.

    Raises:
        InvalidInput: more than 64 MiB or 20,000 files remain; or one that cannot be read, is a link that
            leads elsewhere, or no plain file.
    """
    files = _files(root)
    _check_size(root, files)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, _content(name, path), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest()[:32], content


def _files(root: Path) -> dict[str, Path]:
    """By name, in the order in which they are packaged."""
    ignore = root / ".mantaignore"
    lines = ignore.read_text().splitlines() if ignore.exists() else []
    try:
        spec = pathspec.PathSpec.from_lines("gitwildmatch", [*LEFT_OUT, *lines, *NEVER_PACKAGED])
    except ValueError as error:
        raise InvalidInput(f".mantaignore: {error}", hint="it is written like a .gitignore") from None
    found: dict[str, Path] = {}
    for folder, subfolders, names in os.walk(root, onerror=_unreadable):
        here = Path(folder).relative_to(root)
        subfolders[:] = sorted(d for d in subfolders if not spec.match_file(f"{(here / d).as_posix()}/"))
        linked = [d for d in subfolders if (Path(folder) / d).is_symlink()]
        for name in sorted([*names, *linked]):
            inside = (here / name).as_posix()
            if not spec.match_file(inside):
                found[inside] = _plain(root, inside)
        if len(found) > MOST_FILES:
            raise _too_many(found)
    return found


def _plain(root: Path, name: str) -> Path:
    path = root / name
    if path.is_symlink():
        target = path.resolve()
        if not target.is_file() or not target.is_relative_to(root.resolve()):
            raise InvalidInput(
                f"{name} is a link to {os.readlink(path)}, which is no file of the project",
                hint="a run gets copies of the project's own files: put the file there, or name the link "
                "in .mantaignore",
            )
    elif not path.is_file() and path.exists():
        raise InvalidInput(
            f"{name} is a pipe, a socket or a device, not a file",
            hint="name it in .mantaignore, or remove it",
        )
    return path


def _content(name: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(
            f"{name} cannot be read: {error.strerror}", hint="make it readable, or name it in .mantaignore"
        ) from None


def _unreadable(error: OSError) -> None:
    raise InvalidInput(
        f"{error.filename} cannot be read: {error.strerror}",
        hint="make it readable, or name it in .mantaignore",
    )


def _check_size(root: Path, files: dict[str, Path]) -> None:
    sizes = {name: size for name, (size, _) in _states(root, files).items()}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        biggest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        named = ", ".join(f"{name} ({sizes[name] >> 20} MiB)" for name in biggest)
        raise InvalidInput(
            f"the project has {total >> 20} MiB to send with each run, more than {MOST_BYTES >> 20}",
            hint=f"name what a run does not need in .mantaignore; the biggest: {named}",
        )


def _too_many(found: dict[str, Path]) -> InvalidInput:
    folders = Counter(name.rpartition("/")[0] or "." for name in found).most_common(3)
    named = ", ".join(f"{folder} ({count:,} files)" for folder, count in folders)
    return InvalidInput(
        f"the project has more than {MOST_FILES:,} files to send with each run",
        hint=f"name what a run does not need in .mantaignore; of those seen first, the fullest: {named}",
    )


def _states(root: Path, files: dict[str, Path] | None = None) -> dict[str, tuple[int, int]]:
    """Size and time of change of each file that is still there."""
    found = {}
    for name, path in (_files(root) if files is None else files).items():
        with contextlib.suppress(OSError):
            stat = path.stat()
            found[name] = (stat.st_size, stat.st_mtime_ns)
    return found


def _description_file(settings: Settings, package: str) -> Path:
    # Importing a project means importing Feast, for seconds: the answer is kept as long as neither the
    # project's files nor manta's own change.
    return settings.home / "cache" / f"{package}-{_own_digest()}.json"


def _kept_description(settings: Settings, package: str) -> dict[str, Any] | None:
    try:
        kept: dict[str, Any] = json.loads(_description_file(settings, package).read_text())
    except FileNotFoundError:
        return None
    return kept


def _keep_description(settings: Settings, package: str, answer: dict[str, Any]) -> None:
    path = _description_file(settings, package)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        partial.write_text(json.dumps(answer))
        partial.replace(path)


def _described(settings: Settings) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "project.json"
        try:
            done = subprocess.run(
                [sys.executable, "-m", "manta.worker.describe", str(output)],
                cwd=settings.root,
                env=os.environ | {WORKER_VARIABLE: settings.for_worker()},
                capture_output=True,
                text=True,
                timeout=DESCRIBE_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise DefinitionInvalid(
                f"importing the project took more than {DESCRIBE_SECONDS} s",
                hint="modules of jobs/ and serve/ should define, not compute, when imported",
            ) from None
        if not output.exists():
            raise DefinitionInvalid(f"the project could not be loaded:\n{done.stderr[-3000:]}")
        answer: dict[str, Any] = json.loads(output.read_text())
        return answer


def _own_digest() -> str:
    own = Path(manta.__file__).parent
    stats = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(own.rglob("*.py"))]
    return hashlib.sha256(repr((sys.version, stats)).encode()).hexdigest()[:12]


def _check_references(project: Project) -> None:
    produced: dict[Ref, str] = {}
    for name, (definition, _) in project.jobs().items():
        for ref in definition.outputs():
            if ref in produced and ref.kind != "model":  # of a model, each training adds versions
                raise DefinitionInvalid(f"{produced[ref]!r} and {name!r} both produce {ref}")
            produced[ref] = name
    everything = [*project.jobs().items(), *project.endpoints().items()]
    for name, (definition, _) in everything:
        for ref in project.inputs(definition):
            if ref.kind != "source" and ref not in produced:
                known = sorted(other.name for other in produced if other.kind == ref.kind)
                raise DefinitionInvalid(
                    f"{name!r} reads {ref}, which nothing in the project produces",
                    hint=f"{ref.kind} there is: {', '.join(known) or 'none'}",
                )


def _check_streams(project: Project) -> None:
    """Raises:
    DefinitionInvalid: what a stream writes online is not read from its dataset, or would be taken away.
    """
    jobs = [job for job, _ in project.jobs().values()]
    views = {view.name: view for job in jobs if isinstance(job, FeatureRepo) for view in job.views}
    services = {name: of for job in jobs if isinstance(job, FeatureRepo) for name, of in job.services.items()}
    for job in jobs:
        if isinstance(job, StreamFeatures):
            found = [views[name] for name in services.get(job.features, ()) if name in views]
            job.require({view.name: view.pushed for view in found if view.dataset == job.dataset})


def _observe(project: Project, root: Path) -> dict[str, str]:
    tokens = {}
    for name, (definition, _) in project.jobs().items():
        if isinstance(definition, Ingest):
            # A source that is not there is the matter of its own run, which says so: the rest goes on.
            with contextlib.suppress(SourceUnreadable):
                token = definition.source.observe(root)
                if token is not None:
                    tokens[name] = token
    return tokens


__all__ = ["Described", "Project", "load", "pack"]
