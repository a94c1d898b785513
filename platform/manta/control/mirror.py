"""Shows in MLflow where the ledger's aliases point.

The ledger decides; MLflow sets an alias to whatever it was told last. So an alias is written there after it
has moved here, and the ledger is looked at again after each write: of two writers, whoever wrote the older
version writes again. An MLflow that does not answer is told later; no promotion waits for it.
"""

from __future__ import annotations

import logging
import threading

import httpx

from manta.errors import Unavailable
from manta.ledger.store import Ledger
from manta.secrets import redactor, resolve_url, without_passwords
from manta.settings import Settings

log = logging.getLogger(__name__)

LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # between two tries of an MLflow that does not answer
PATH = "/api/2.0/mlflow/registered-models/alias"

Alias = tuple[str, str, str]


class Mirror:
    """Writes, in a thread of its own, what has moved."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._url = settings.mlflow_url
        self._ledger = ledger
        self._shown: dict[Alias, str] = {}
        self._http = httpx.Client(timeout=5.0)
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_forever, name="mirror", daemon=True)

    def start(self) -> None:
        # A store of its own, such as sqlite:///…, is written by the runs alone: it speaks no HTTP.
        if self._url.startswith(("http://", "https://")):
            self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._http.close()

    def wake(self) -> None:
        """Something has moved: look now."""
        self._woken.set()

    def show(self) -> int:
        """Write what MLflow does not show yet; gives how many aliases that were.

        Raises:
            Unavailable: MLflow does not answer; the rest is written the next time.
        """
        count = 0
        while moved := {
            alias: version
            for alias, version in self._ledger.aliases.everywhere().items()
            if self._shown.get(alias) != version
        }:
            for alias, version in moved.items():
                self._write(alias, version)
                self._shown[alias] = version
                count += 1
        return count

    def _write(self, alias: Alias, version: str) -> None:
        project, model, name = alias
        # As `manta.models.registry` names it.
        body = {"name": f"{project}.{model}", "alias": name, "version": version}
        try:
            answer = self._http.post(f"{resolve_url(self._url)}{PATH}", json=body)
            if answer.status_code in (400, 404):
                # MLflow has no such version: another MLflow than the one that it was registered in.
                log.warning("MLflow does not show %s of %s: %s", name, body["name"], answer.text[:300])
                return
            answer.raise_for_status()
        except httpx.HTTPError as error:
            raise Unavailable(
                f"MLflow at {without_passwords(self._url)} does not answer as it should: "
                f"{redactor.text(without_passwords(str(error)))}",
                hint="`manta status` tells whether it is up",
            ) from None

    def _run_forever(self) -> None:
        wait = LOOK_SECONDS
        while not self._stop.is_set():
            try:
                self.show()
                wait = LOOK_SECONDS
            except Unavailable as error:
                log.info("%s", error.message)
                wait = min(wait * 2, PATIENCE_SECONDS)
            except Exception:
                log.exception("showing aliases in MLflow")
                wait = PATIENCE_SECONDS
            self._woken.wait(wait)
            self._woken.clear()
