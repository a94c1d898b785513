"""What a worker knows of the run it executes, and how it reports: all that the data wing sees of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from manta.definitions import Definition, Ref
from manta.errors import NotFound, SourceUnreadable, Unavailable
from manta.ledger.runs import Progress, Run, Version
from manta.ledger.store import Ledger
from manta.settings import Settings


class RunContext:
    """Handed to ``execute(context)`` of the module that does the run's kind of work.

    Attributes:
        root: the project folder as packaged with the run; the working directory, and on ``sys.path``.
        definition: what is to be done, as it was when the run was submitted.
        params: what the submitter overrode.
        opens: gives the rows of a dataset's version; set by the data wing, which this floor does not know.
    """

    def __init__(
        self, settings: Settings, ledger: Ledger, run: Run, definition: Definition, root: Path
    ) -> None:
        self.settings = settings
        self.ledger = ledger
        self.run = run
        self.definition: Any = definition
        self.root = root
        self.params: dict[str, Any] = run.params
        self.outputs: list[Version] = []
        self.metrics: dict[str, Any] = {}
        self.opens: Callable[[str, str], Any] | None = None
        self._told = 0.0

    @property
    def run_key(self) -> str:
        """The same for every attempt of this run, and for no other run: the key of idempotent writes."""
        # With the ledger's identity, for the lake and MLflow may outlive it, and hold the runs of an earlier.
        return f"{self.run.project}-{self.ledger.identity()}-{self.run.id}"

    def progress(self, done: float, total: float, unit: str = "") -> None:
        """Tell how far the run is; cheap to call often (at most two writes a second, and the last)."""
        if time.monotonic() - self._told < 0.5 and done < total:
            return
        self._told = time.monotonic()
        self.ledger.beat(self.run.id, self.run.attempt, Progress(done=done, total=total, unit=unit))

    def read(self, kind: str, name: str) -> Version:
        """The newest version of an input, recorded as read by this run; in a replay, the version that the
        run it repeats has read. Reads the same again in one run.

        Raises:
            NotFound: nothing has produced it yet, or the run to be repeated did not read it.
        """
        ref = Ref(kind, name)
        read = self._read_by(self.run.id, ref)
        if read is not None:
            return read
        if self.run.replay_of is not None:
            version = self._read_by(self.run.replay_of, ref)
            if version is None:
                raise NotFound(
                    f"run {self.run.replay_of}, which this run repeats, did not read {ref}",
                    hint="the same code reads the same: does what it reads depend on something else?",
                )
        else:
            version = self.ledger.versions.head(self.run.project, ref)
            if version is None:
                raise NotFound(
                    f"{kind} {name!r} has no version yet", hint="`manta apply` makes what is missing"
                )
        self.ledger.versions.read_by(self.run.id, version)
        return version

    def dataset(self, name: str) -> Any:
        """The rows of a dataset, in a :class:`Job`: ``context.dataset("flights").polars()``, or ``.arrow()``,
        ``.pandas()``, ``.ray()``, ``.lazy()``, ``.duckdb()``. Of the version that :meth:`read` gives, and
        records as read by this run.

        Raises:
            NotFound: as :meth:`read`.
        """
        if self.opens is None:
            raise Unavailable(
                "datasets are opened where a job is executed", hint="call it in the job's function"
            )
        return self.opens(name, self.read("dataset", name).version)

    def _read_by(self, run_id: int, ref: Ref) -> Version | None:
        return next((each for each in self.ledger.versions.inputs(run_id) if each.ref == ref), None)

    def read_source(self, name: str, token: str) -> None:
        """Record the state of the source that this run reads.

        Raises:
            SourceUnreadable: in a replay, when it is no longer what the run to be repeated read: a source
                keeps no versions.
        """
        if self.run.replay_of is not None:
            then = self._read_by(self.run.replay_of, Ref("source", name))
            if then is not None and then.version != token:
                raise SourceUnreadable(
                    f"the source of {name!r} has changed since run {self.run.replay_of} read it "
                    f"({then.version}, now {token}): that run cannot be repeated",
                    hint="put its files back as they were, names and times included; the dataset that it "
                    "made keeps its versions",
                )
        self.ledger.versions.read_by(self.run.id, Version(kind="source", name=name, version=token))

    def produced(self, kind: str, name: str, version: str | int, **detail: Any) -> None:
        """Name what this run made; it becomes visible to others when, and only when, the run succeeds."""
        self.outputs.append(Version(kind=kind, name=name, version=str(version), detail=detail))

    def measured(self, **metrics: Any) -> None:
        """Figures to keep with the run (JSON values)."""
        self.metrics |= metrics
