"""Registered models: their versions, the moves of their aliases, and how their trainings compare."""

from __future__ import annotations

from collections.abc import Callable

from manta.answers import ModelVersion
from manta.errors import InvalidInput, NotFound
from manta.ledger.actor import Actor
from manta.ledger.leaderboard import Standing, after, leaderboard
from manta.ledger.records import Promotion
from manta.ledger.runs import State
from manta.ledger.store import Ledger


class Models:
    """``moved`` is called after each move of an alias."""

    def __init__(self, ledger: Ledger, moved: Callable[[], None]) -> None:
        self._ledger = ledger
        self._moved = moved

    def versions(self, project: str) -> list[ModelVersion]:
        """Every registered version, newest first."""
        aliases = self._ledger.aliases.all(project)
        return [
            ModelVersion(
                model=version.name,
                version=version.version,
                aliases=tuple(
                    a for (m, a), v in aliases.items() if (m, v) == (version.name, version.version)
                ),
                run=run,
            )
            for version, run in self._ledger.made(project, "model")
            if run.state is State.SUCCEEDED
            or any(aliases.get((version.name, alias)) == version.version for _, alias in aliases)
        ]

    def promote(
        self, project: str, model: str, version: str, alias: str, *, expect: str | None, why: str, by: Actor
    ) -> Promotion:
        """Point the alias at a registered version, if it still points at ``expect`` (None: it has not been
        set). Endpoints that serve the alias follow; MLflow shows it a moment later.

        Raises:
            InvalidInput: the alias is a name that MLflow keeps for itself.
            NotFound: no such version is registered.
            GateFailed: the version did not pass its gates.
            Conflict: somebody moved the alias meanwhile; the message says who.
        """
        if alias == "latest" or (alias[0] == "v" and alias[1:].isdecimal()):
            raise InvalidInput(
                f"{alias!r} cannot be an alias: MLflow takes it for a version", hint="champion, or challenger"
            )
        moved = self._ledger.aliases.point(project, model, alias, version, expect=expect, by=by, why=why)
        self._moved()
        return moved

    def rollback(
        self, project: str, model: str, alias: str, *, expect: str | None, why: str, by: Actor
    ) -> Promotion:
        """Take the alias's last promotion back, if it still points at ``expect``.

        Raises:
            NotFound: nothing held the alias before.
            GateFailed, Conflict: as :meth:`promote`.
        """
        moved = self._ledger.aliases.rollback(project, model, alias, expect=expect, by=by, why=why)
        self._moved()
        return moved

    def history(
        self, project: str, model: str, alias: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[Promotion]:
        """The moves of a model's aliases, newest first; ``before`` is the id to go on from."""
        return self._ledger.aliases.history(project, model, alias, before=before, limit=limit)

    def leaderboard(
        self,
        project: str,
        model: str,
        metric: str | None = None,
        *,
        everything: bool = False,
        before: int | None = None,
        limit: int = 50,
    ) -> list[Standing]:
        """The runs that trained the model, the best by ``metric`` (None: the usual one of what it
        predicts) first, those that were refused among them; ``before`` is the run to go on from.
        ``everything``: also replays and what was never measured.

        Raises:
            NotFound: no run has trained it.
            InvalidInput: none of them has a figure of that name.
        """
        ids = self._ledger.versions.trained(project, model)
        if not ids:
            known = sorted({each.model for each in self.versions(project)})
            raise NotFound(
                f"no run has trained a model {model!r}",
                hint=f"there is: {', '.join(known)}" if known else "`manta apply` trains the project's",
            )
        aliases: dict[str, list[str]] = {}
        for (name, alias), version in self._ledger.aliases.all(project).items():
            if name == model:
                aliases.setdefault(version, []).append(alias)
        runs = self._ledger.runs(ids=ids, limit=len(ids))
        return after(leaderboard(runs, model, aliases, metric, everything), before)[:limit]
