"""A run in the hands of a notebook user: what is known of it, and the verbs upon it."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from manta.client.display import Follower, Plots
from manta.errors import NotFound
from manta.ledger.runs import EndReason, Run, State, Version

if TYPE_CHECKING:
    from manta.client.verbs import Client

FIGURES = ("roc", "calibration", "confusion")


class RunHandle:
    """One run. Whatever is asked of it (``state``, ``metrics``, every field of :class:`Run`) is as the
    platform says now; once it has ended, as it ended."""

    def __init__(self, client: Client, run: Run) -> None:
        self._client = client
        self._run = run

    @property
    def data(self) -> Run:
        """The whole row, as it is now."""
        if not self._run.state.ended:
            self._run = self._client.look(self._run.id)
        return self._run

    # --- what is known of it --------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self._run.id

    @property
    def job(self) -> str:
        return self._run.job

    @property
    def state(self) -> State:
        return self.data.state

    @property
    def end_reason(self) -> EndReason | None:
        return self.data.end_reason

    @property
    def metrics(self) -> dict[str, Any]:
        """The figures that it reported."""
        return self.data.metrics

    @property
    def inputs(self) -> tuple[Version, ...]:
        """The versions that it read."""
        return self.data.inputs

    @property
    def outputs(self) -> tuple[Version, ...]:
        """The versions that it produced; others see them once it has succeeded."""
        return self.data.outputs

    @property
    def started_at(self) -> datetime | None:
        return self.data.started_at

    @property
    def ended_at(self) -> datetime | None:
        return self.data.ended_at

    def __getattr__(self, name: str) -> Any:
        if name in Run.model_fields or name == "seconds":
            return getattr(self.data, name)
        raise AttributeError(f"a run has no {name!r}")

    def __repr__(self) -> str:
        run = self.data
        told = f" {run.message.splitlines()[0]}" if run.message else ""
        return f"<run {run.id} {run.job} {run.state}{told}>"

    # --- verbs ----------------------------------------------------------------------------------------

    def follow(self) -> RunHandle:
        """Show how far it is and what it prints until it has ended: live in a notebook and in a terminal,
        line by line elsewhere. Interrupted, the run goes on.

        Raises:
            RunFailed: it ended otherwise than SUCCEEDED.
        """
        with Follower() as follower:
            for look in self._client.watch(self.id):
                follower(look.run, look.printed)
        return self.wait()

    def wait(self) -> RunHandle:
        """Wait for its end, silently.

        Raises:
            RunFailed: it ended otherwise than SUCCEEDED.
        """
        self._run = self._client.wait(self.id)
        return self

    def stop(self) -> RunHandle:
        """Ask for it to be stopped. Returns at once."""
        self._run = self._client.stop(self.id)
        return self

    def logs(self, *, attempt: int | None = None) -> str:
        """What its last attempt has printed so far."""
        return self._client.logs(self.id, attempt=attempt)

    def replay(self) -> RunHandle:
        """Run it again from the versions that it read."""
        return self._client.replay(self.id)

    def plots(self) -> Plots:
        """The figures that a training logged (ROC, calibration, confusion), shown inline by a notebook;
        ``plots()["roc"]`` is one as PNG.

        Raises:
            NotFound: it logged none.
        """
        run = self.data
        found = {name: png for name in FIGURES if (png := self._client.figure(run, name))}
        if not found:
            raise NotFound(
                f"run {run.id} ({run.job}) logged no figures",
                hint="a training does, once it has been evaluated",
            )
        return Plots(found)
