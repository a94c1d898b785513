"""A project folder as the platform sees it: its definitions, and its files packaged by content hash."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pathspec
from pydantic import BaseModel, ConfigDict

import manta
from manta.definitions import Definition, Endpoint, FeatureRepo, Ingest, Ref, from_json
from manta.errors import DefinitionInvalid, InvalidInput, SourceUnreadable, from_problem
from manta.settings import WORKER_VARIABLE, Settings

NEVER_PACKAGED = [".*", "__pycache__/", "*.pyc", "build/", "dist/", "node_modules/", "*.egg-info/"]
MOST_BYTES = 64 * 2**20
DESCRIBE_SECONDS = 180


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
    """A loaded project. ``sources`` maps each ingest to a token of its source's present state."""

    model_config = ConfigDict(frozen=True)

    name: str
    package: str
    described: tuple[Described, ...]
    sources: dict[str, str] = {}

    def jobs(self) -> dict[str, tuple[Definition, str]]:
        """Name → definition and fingerprint, of what ends."""
        return {d.name: (d, fp) for d, fp in self._parsed() if not isinstance(d, Endpoint)}

    def endpoints(self) -> dict[str, tuple[Endpoint, str]]:
        return {d.name: (d, fp) for d, fp in self._parsed() if isinstance(d, Endpoint)}

    def inputs(self, definition: Definition) -> tuple[Ref, ...]:
        """What a run of it reads, with the datasets that stand behind a feature service."""
        refs = list(definition.inputs())
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
        SourceUnreadable: a source is not there.
        InvalidInput: it is too big to be packaged.
    """
    root = settings.root
    if not any((root / folder).is_dir() for folder in ("jobs", "serve", "features")):
        raise DefinitionInvalid(
            f"{root} is not a project: it has none of jobs/, features/, serve/",
            hint="change to a project's folder, or make one: manta init DIR",
        )
    package, content = pack(root)
    answer = _described(settings, package)
    if "problem" in answer:
        raise from_problem(answer["problem"])
    described = tuple(Described(**each) for each in answer["definitions"])
    project = Project(name=settings.project, package=package, described=described)
    _check_references(project)
    return project.model_copy(update={"sources": _observe(project, root)}), content


def pack(root: Path) -> tuple[str, bytes]:
    """The project's files as a zip whose bytes depend on their names and contents only, and its digest.

    Left out: hidden files, build products, and what `.mantaignore` (gitignore's syntax) names.

    Raises:
        InvalidInput: more than 64 MiB remain.
    """
    files = list(_files(root))
    total = sum(path.stat().st_size for path in files)
    if total > MOST_BYTES:
        biggest = sorted(files, key=lambda path: -path.stat().st_size)[:3]
        named = ", ".join(f"{path.relative_to(root)} ({path.stat().st_size >> 20} MiB)" for path in biggest)
        raise InvalidInput(
            f"the project has {total >> 20} MiB to send with each run, more than {MOST_BYTES >> 20}",
            hint=f"name what a run does not need in .mantaignore; the biggest: {named}",
        )
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(root).as_posix(), date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, path.read_bytes(), zipfile.ZIP_DEFLATED)
    content = buffer.getvalue()
    return hashlib.sha256(content).hexdigest()[:32], content


def _files(root: Path) -> Iterator[Path]:
    ignore = root / ".mantaignore"
    lines = NEVER_PACKAGED + (ignore.read_text().splitlines() if ignore.exists() else [])
    spec = pathspec.PathSpec.from_lines("gitwildmatch", lines)
    for folder, subfolders, names in os.walk(root):
        here = Path(folder).relative_to(root)
        subfolders[:] = sorted(d for d in subfolders if not spec.match_file(f"{(here / d).as_posix()}/"))
        for name in sorted(names):
            if not spec.match_file((here / name).as_posix()):
                yield Path(folder) / name


def _described(settings: Settings, package: str) -> dict[str, Any]:
    # Importing a project means importing Feast, for seconds: the answer is kept as long as neither the
    # project's files nor manta's own change.
    cache = settings.home / "cache" / f"{package}-{_own_digest()}.json"
    if cache.exists():
        kept: dict[str, Any] = json.loads(cache.read_text())
        return kept
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
    if "problem" not in answer:
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(answer))
        partial.replace(cache)
    return answer


def _own_digest() -> str:
    own = Path(manta.__file__).parent
    stats = [(p.name, p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(own.rglob("*.py"))]
    return hashlib.sha256(repr((sys.version, stats)).encode()).hexdigest()[:12]


def _check_references(project: Project) -> None:
    produced: dict[Ref, str] = {}
    for name, (definition, _) in project.jobs().items():
        for ref in definition.outputs():
            if ref in produced:
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


def _observe(project: Project, root: Path) -> dict[str, str]:
    tokens = {}
    for name, (definition, _) in project.jobs().items():
        if isinstance(definition, Ingest):
            try:
                tokens[name] = definition.source.observe(root)
            except SourceUnreadable as error:
                raise SourceUnreadable(f"ingest {name!r}: {error.message}", hint=error.hint) from None
    return tokens


__all__ = ["Described", "Project", "load", "pack"]
