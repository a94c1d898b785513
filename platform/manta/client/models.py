"""What one does with models: list, promote, roll back."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from manta.answers import ModelVersion
from manta.client.transport import segment
from manta.definitions.training import MOST_IMPORT_BYTES
from manta.errors import InvalidInput, MantaError, PlatformDown
from manta.ledger.records import Promotion
from manta.ledger.runs import Run
from manta.project import Project
from manta.settings import Settings

if TYPE_CHECKING:
    from manta.client.handle import RunHandle
    from manta.client.verbs import Client

CHAMPION = "champion"
SHOWN: Any = object()
"""For ``expect``: what the alias points at now."""


class ModelVerbs:
    """Part of :class:`manta.client.Client`."""

    settings: Settings
    _transport: Any

    def models(self) -> list[ModelVersion]:
        """Every registered version, newest first."""
        return [ModelVersion(**each) for each in self.call("GET", self._of("models"))]

    def holder(self, model: str, alias: str = CHAMPION) -> str | None:
        """The version that the alias points at; None when it has not been set."""
        moves = self.history(model, alias=alias, limit=1)
        return moves[0].version if moves else None

    def promote(
        self, model: str, version: str | int, *, why: str, alias: str = CHAMPION, expect: str | None = SHOWN
    ) -> Promotion:
        """Point an alias at a registered version; endpoints that serve the alias follow.

        Args:
            expect: the version that was seen to hold the alias, None for none; what holds it now, unless
                given.

        Raises:
            NotFound: no such version is registered.
            GateFailed: the version did not pass its gates.
            Conflict: the alias points elsewhere than at ``expect``; the message says who moved it.
            Forbidden: one is no operator of the project.
        """
        body = self._move(model, alias, expect, why) | {"version": str(version)}
        return Promotion(**self.call("POST", self._of_model(model, "promote"), json=body))

    def rollback(
        self, model: str, *, why: str, alias: str = CHAMPION, expect: str | None = SHOWN
    ) -> Promotion:
        """Point an alias at the version that held it before the one that holds it now.

        Raises:
            NotFound: nothing held it before.
            GateFailed, Conflict, Forbidden: as :meth:`promote`.
        """
        body = self._move(model, alias, expect, why)
        return Promotion(**self.call("POST", self._of_model(model, "rollback"), json=body))

    def history(
        self, model: str, *, alias: str | None = None, before: int | None = None, limit: int | None = 50
    ) -> list[Promotion]:
        """The moves of a model's aliases, newest first: who, when, why, and what the gates said; at most
        ``limit`` (None: all), before the move of number ``before``."""
        wanted = {"alias": alias, "before": before}
        return list(self._paged(self._of_model(model, "history"), limit, wanted, Promotion))

    def import_model(self, path: str | Path, training: str, *, key: str | None = None) -> RunHandle:
        """Submit a run that takes a model which was made elsewhere for what a training trains, held to the
        same rows and gates. The same ``key`` again gives the same run.

        Args:
            path: ONNX, XGBoost JSON or UBJ, safetensors, or the folder of an MLflow model.

        Raises:
            InvalidInput: the file is not there, or too large.
            NotFound: the project has no such training.
        """
        from manta.client.handle import RunHandle

        content = _content(Path(path))
        sha256 = hashlib.sha256(content).hexdigest()
        place = f"/v1/foreign/{sha256}"
        if self._transport.send("HEAD", place, accept=(200, 404)).status_code == 404:
            self._transport.send("PUT", place, content=content)
        file = Path(path).resolve().name
        body = {"project": self.load().model_dump(mode="json"), "training": training, "sha256": sha256}
        body |= {"file": f"{file}.zip" if Path(path).is_dir() else file} | ({"key": key} if key else {})
        sent = self.call("POST", self._of("imports"), json=body, key=key)
        return RunHandle(cast("Client", self), Run(**sent))

    def figure(self, run: Run, name: str) -> bytes | None:
        """A figure that a training logged (``roc``, ``calibration``, ``confusion``), as PNG; None when it
        logged none."""
        kept = run.metrics.get("mlflow_run")
        if not kept:
            return None
        params = {"path": f"figures/{name}.png", "run_uuid": kept}
        try:
            content: bytes = self._transport.fetch(
                f"{self.settings.mlflow_url}/get-artifact", params=params
            ).content
            return content
        except PlatformDown:
            raise
        except MantaError:
            return None

    def _move(self, model: str, alias: str, expect: str | None, why: str) -> dict[str, Any]:
        shown = self.holder(model, alias) if expect is SHOWN else expect
        return {"alias": alias, "expect": shown, "why": why}

    def _of_model(self, model: str, verb: str) -> str:
        return f"{self._of('models')}/{segment(model)}/{verb}"

    # Of the whole client.

    def load(self) -> Project:
        raise NotImplementedError

    def call(self, method: str, path: str, **content: Any) -> Any:
        raise NotImplementedError

    def _of(self, noun: str) -> str:
        raise NotImplementedError

    def _paged(self, path: str, limit: int | None, params: Any, kind: Any, **how: Any) -> Any:
        raise NotImplementedError


def _content(path: Path) -> bytes:
    """The file; of a folder, a zip that is the same whenever and wherever it is made.

    Raises:
        InvalidInput: it is not there, or too large.
    """
    try:
        files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
        if sum(each.stat().st_size for each in files) > MOST_IMPORT_BYTES:
            raise InvalidInput(
                f"{path} is larger than {MOST_IMPORT_BYTES >> 20} MiB, the most that is imported",
                hint="prune or quantise it",
            )
        if not path.is_dir():
            return path.read_bytes()
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for each in files:
                member = zipfile.ZipInfo(each.relative_to(path).as_posix())
                archive.writestr(member, each.read_bytes())
        return buffer.getvalue()
    except OSError as error:
        raise InvalidInput(
            f"{path} cannot be read: {error.strerror}", hint="give a file or a folder"
        ) from None
