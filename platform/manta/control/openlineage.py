"""Tells each attempt as OpenLineage events, START and then COMPLETE, FAIL or ABORT, to a URL or a file.

What was told is kept in the ledger, after it was told: nothing is lost when the server dies, and an event may
be told twice. Its ``runId`` is made from the ledger's identity, the run and the attempt, so that a consumer
takes the second for the first. A consumer that does not answer is asked again later; no run waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import uuid
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx

import manta
from manta.errors import ExtraMissing, MantaError, Unavailable
from manta.ledger.runs import Attempt, EndReason, Run, Version
from manta.ledger.store import Ledger
from manta.ledger.told import ALL, START
from manta.secrets import redactor, resolve, resolve_url, without_passwords
from manta.settings import OpenLineage, Settings

if TYPE_CHECKING:
    from openlineage.client.event_v2 import InputDataset, OutputDataset, RunEvent

log = logging.getLogger(__name__)

PRODUCER = f"https://pypi.org/project/manta-ml/{manta.__version__}"
NAMESPACE = uuid.UUID("6d616e74-6100-5000-8000-6f70656e6c69")  # of manta's run ids
LOOK_SECONDS = 2.0
PATIENCE_SECONDS = 60.0  # between two tries of a consumer that does not answer
PATH = "/api/v1/lineage"
NEVER = (400, 413, 422)
ENDS = {
    EndReason.DONE: "COMPLETE",
    EndReason.STOP_REQUESTED: "ABORT",
    EndReason.PREEMPTED: "ABORT",
}


class Emitter:
    """Tells, in a thread of its own, what there is to tell.

    Raises:
        ExtraMissing: openlineage-python is not installed.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        try:
            import openlineage.client.event_v2  # noqa: F401
        except ModuleNotFoundError:
            raise ExtraMissing(
                "telling runs as OpenLineage events needs openlineage-python",
                hint="pip install 'manta-ml[openlineage]', or leave openlineage out of the settings",
            ) from None
        assert settings.openlineage is not None
        self._to = settings.openlineage
        self._ledger = ledger
        self._settings = settings
        self._http = httpx.Client(timeout=5.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run_forever, name="openlineage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        self._http.close()

    def tell(self) -> int:
        """Tell what there is to tell now; gives how many events that were.

        Raises:
            Unavailable: the consumer did not take one; it and those after it are told the next time.
        """
        count = 0
        while found := self._ledger.told.pending():
            identity = self._ledger.identity()
            runs = {
                run.id: run
                for run in self._ledger.runs(ids={each.attempt.run_id for each in found}, limit=1000)
            }
            for attempt, stage in found:
                run = runs[attempt.run_id]
                lake = self._settings.for_project(run.project).datasets
                if stage < START:
                    self._send(start_of(identity, run, attempt, lake))
                    self._ledger.told.mark(attempt, START)
                    count += 1
                if attempt.ended_at is not None:
                    self._send(end_of(identity, run, attempt, lake))
                    self._ledger.told.mark(attempt, ALL)
                    count += 1
        return count

    def _run_forever(self) -> None:
        wait = LOOK_SECONDS
        while not self._stop.wait(wait):
            try:
                self.tell()
                wait = LOOK_SECONDS
            except MantaError as error:
                if wait == LOOK_SECONDS:
                    log.warning("%s", error.message)
                wait = min(wait * 2, PATIENCE_SECONDS)
            except Exception:
                log.exception("openlineage")
                wait = PATIENCE_SECONDS

    def _send(self, event: RunEvent) -> None:
        from openlineage.client.serde import Serde

        content = Serde.to_json(event).encode()
        if self._to.file:
            _append(Path(self._to.file), content)
            return
        post(self._http, self._to, content)


def post(http: httpx.Client, to: OpenLineage, content: bytes) -> None:
    """Raises:
    Unavailable: the consumer does not answer, or does not take it now. An event that it refuses for what
        it is, and would always refuse, is given up, so that it does not hold up the others.
    """
    url = resolve_url(to.url)
    target = url if urlsplit(url).path.strip("/") else url.rstrip("/") + PATH
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {resolve(to.key)}"} if to.key else {}
    shown = without_passwords(to.url)
    try:
        answer = http.post(target, content=content, headers=headers)
    except httpx.HTTPError as error:
        why = redactor.text(str(error)) or type(error).__name__
        raise Unavailable(f"the OpenLineage consumer at {shown} does not answer: {why}") from None
    if answer.status_code in NEVER:
        log.warning(
            "the OpenLineage consumer at %s refuses an event: %s", shown, redactor.text(answer.text[:300])
        )
    elif not answer.is_success:
        raise Unavailable(
            f"the OpenLineage consumer at {shown} answered {answer.status_code}: "
            f"{redactor.text(answer.text[:300])}"
        )


def _append(path: Path, content: bytes) -> None:
    """One line, in one write, so that several who append do not mix."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, json.dumps(json.loads(content)).encode() + b"\n")
        finally:
            os.close(handle)
    except OSError as error:
        raise Unavailable(f"OpenLineage events cannot be added to {path}: {error.strerror}") from error


# --- the events ------------------------------------------------------------------------------------------


def run_id_of(identity: str, run: int, attempt: int | None = None) -> str:
    """The OpenLineage id of an attempt; of the run that its attempts are parts of when None."""
    name = f"{identity}/{run}" if attempt is None else f"{identity}/{run}/{attempt}"
    return str(uuid.uuid5(NAMESPACE, name))


def start_of(identity: str, run: Run, attempt: Attempt, lake: str) -> RunEvent:
    """The event that an attempt began. Its inputs are those known by now."""
    return _event("START", attempt.running_at or attempt.started_at, identity, run, attempt, lake)


def end_of(identity: str, run: Run, attempt: Attempt, lake: str) -> RunEvent:
    """The event that an attempt ended: COMPLETE with what it made, FAIL with the message, or ABORT."""
    assert attempt.ended_at is not None
    state = ENDS.get(attempt.end_reason, "FAIL") if attempt.end_reason else "FAIL"
    return _event(state, attempt.ended_at, identity, run, attempt, lake)


def _event(state: str, at: datetime, identity: str, run: Run, attempt: Attempt, lake: str) -> RunEvent:
    from openlineage.client import event_v2 as ol
    from openlineage.client import facet_v2 as facets

    ol.set_producer(PRODUCER)
    namespace = f"manta://{identity}/{run.project}"
    own = facets.parent_run.Job(namespace=namespace, name=run.job)
    parent = facets.parent_run.ParentRunFacet(
        run=facets.parent_run.Run(runId=run_id_of(identity, run.id)), job=own
    )
    about: dict[str, Any] = {
        "parent": parent,
        "processing_engine": facets.processing_engine_run.ProcessingEngineRunFacet(
            version=(attempt.environment or {}).get("manta", manta.__version__), name="manta"
        ),
    }
    if state == "FAIL":
        about["errorMessage"] = facets.error_message_run.ErrorMessageRunFacet(
            message=attempt.message or str(attempt.end_reason), programmingLanguage="PYTHON"
        )
    code = facets.source_code_location_job.SourceCodeLocationJobFacet(
        type="manta-package", url=f"urn:manta:package:{run.package}", version=run.package
    )
    kind = facets.job_type_job.JobTypeJobFacet(
        processingType="BATCH", integration="MANTA", jobType=run.kind.upper().replace("-", "_")
    )
    made = run.outputs if state == "COMPLETE" else ()
    return ol.RunEvent(
        eventType=ol.RunState[state],
        eventTime=at.isoformat(),
        run=ol.Run(runId=run_id_of(identity, run.id, attempt.number), facets=about),
        job=ol.Job(namespace=namespace, name=run.job, facets={"sourceCodeLocation": code, "jobType": kind}),
        inputs=[_input(namespace, version, lake) for version in run.inputs],
        outputs=[_output(namespace, version, lake, run) for version in made],
        producer=PRODUCER,
    )


def _input(namespace: str, version: Version, lake: str) -> InputDataset:
    from openlineage.client.event_v2 import InputDataset

    where, name = _place(namespace, version, lake)
    return InputDataset(namespace=where, name=name, facets=_facets(version))


def _output(namespace: str, version: Version, lake: str, run: Run) -> OutputDataset:
    from openlineage.client import facet_v2 as facets
    from openlineage.client.event_v2 import OutputDataset

    where, name = _place(namespace, version, lake)
    about = _facets(version)
    columns = run.definition.get("contract", {}).get("columns", {})
    if columns:
        fields = [
            facets.schema_dataset.SchemaDatasetFacetFields(name=column, type=given["type"])
            for column, given in columns.items()
        ]
        about["schema"] = facets.schema_dataset.SchemaDatasetFacet(fields=fields)
    rows = version.detail.get("rows")
    counted: dict[str, Any] = {}
    if isinstance(rows, int):
        statistics = facets.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet
        counted["outputStatistics"] = statistics(rowCount=rows)
    return OutputDataset(namespace=where, name=name, facets=about, outputFacets=counted)


def _facets(version: Version) -> dict[str, Any]:
    from openlineage.client import facet_v2 as facets

    return {
        "version": facets.dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version.version)
    }


def _place(namespace: str, version: Version, lake: str) -> tuple[str, str]:
    """A dataset's namespace and name, as OpenLineage names tables in files; of other things, manta's own."""
    if version.kind != "dataset":
        return namespace, f"{version.kind}/{version.name}"
    parts = urlsplit(lake)
    if parts.scheme and parts.netloc:
        return f"{parts.scheme}://{parts.netloc}", f"{parts.path.strip('/')}/{version.name}".lstrip("/")
    return "file", f"{lake}/{version.name}"
