"""OpenLineage events: what is in them, and that none is lost, whoever dies or does not answer."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from openlineage.client import event_v2, facet_v2

from manta.app import Platform
from manta.connectors.files import Files
from manta.control.inline import InlineEngine
from manta.control.openlineage import Emitter, run_id_of
from manta.definitions.datasets import Column, Contract, Ingest
from manta.errors import SettingsInvalid, Unavailable
from manta.ledger.actor import OWNER
from manta.ledger.runs import EndReason, Run, State, Version
from manta.ledger.store import Ledger
from manta.project import pack
from manta.settings import OpenLineage, Settings

INGEST = Ingest(
    dataset="flights",
    source=Files(path="x.csv"),
    contract=Contract(columns={"flight": Column(type="int64"), "carrier": Column(type="string")}),
)


class Consumer(HTTPServer):
    """Keeps what it is sent; ``answers`` are the statuses to answer with first, then 201."""

    def __init__(self, answers: list[int]) -> None:
        self.events: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str | None]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = answers.pop(0) if answers else 201
                outer.asked.append((self.path, self.headers["Authorization"]))
                if status == 201:
                    outer.events.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = Ledger(settings.ledger_url)
    ledger.create()
    yield ledger
    ledger.close()


def submitted(ledger: Ledger, key: str, package: str = "c0de") -> Run:
    return ledger.submit(
        key=key,
        project="test",
        job="flights",
        kind="ingest",
        definition=INGEST.to_json(),
        fingerprint="f",
        package=package,
        by=OWNER,
    )


def begun(ledger: Ledger, key: str = "1") -> Run:
    run = submitted(ledger, key)
    return ledger.move(ledger.start(run, f"s-{key}-1"), State.RUNNING)


def succeeded(ledger: Ledger, run: Run) -> None:
    ledger.versions.read_by(run.id, Version(kind="source", name="flights", version="t0"))
    made = Version(kind="dataset", name="flights", version="4", detail={"rows": 12})
    ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE, outputs=[made])


def to_file(settings: Settings) -> tuple[Settings, Path]:
    path = settings.home / "events.jsonl"
    return settings.model_copy(update={"openlineage": OpenLineage(file=str(path))}), path


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def check(event: dict[str, Any]) -> None:
    """That the event is one by OpenLineage's own classes, and that its facets name their schema.

    openlineage-python does not carry the JSON schema; its classes check the fields that the schema has.
    """
    assert event["schemaURL"].endswith("#/$defs/RunEvent")
    assert event["producer"].startswith("https://")
    classes = {
        "parent": facet_v2.parent_run.ParentRunFacet,
        "processing_engine": facet_v2.processing_engine_run.ProcessingEngineRunFacet,
        "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet,
        "sourceCodeLocation": facet_v2.source_code_location_job.SourceCodeLocationJobFacet,
        "jobType": facet_v2.job_type_job.JobTypeJobFacet,
        "version": facet_v2.dataset_version_dataset.DatasetVersionDatasetFacet,
        "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
        "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
    }

    def facets(found: dict[str, Any]) -> dict[str, Any]:
        for facet in found.values():
            assert facet["_producer"] == event["producer"]
            assert facet["_schemaURL"].startswith("https://openlineage.io/spec/")
        return {
            name: classes[name](**{key: value for key, value in facet.items() if not key.startswith("_")})
            for name, facet in found.items()
        }

    event_v2.RunEvent(
        eventType=event_v2.RunState[event["eventType"]],
        eventTime=event["eventTime"],
        run=event_v2.Run(runId=event["run"]["runId"], facets=facets(event["run"]["facets"])),
        job=event_v2.Job(**event["job"] | {"facets": facets(event["job"]["facets"])}),
        inputs=[event_v2.InputDataset(each["namespace"], each["name"]) for each in event["inputs"]],
        outputs=[event_v2.OutputDataset(each["namespace"], each["name"]) for each in event["outputs"]],
    )
    for each in event["inputs"] + event["outputs"]:
        facets(each["facets"] | each.get("outputFacets", {}))
    assert datetime.fromisoformat(event["eventTime"]).tzinfo is not None


def test_a_run_is_told_with_what_it_read_and_made(ledger: Ledger, settings: Settings) -> None:
    settings, path = to_file(settings)
    emitter = Emitter(settings, ledger)
    run = begun(ledger)
    assert emitter.tell() == 1
    succeeded(ledger, run)
    assert emitter.tell() == 1
    assert emitter.tell() == 0
    start, complete = events(path)
    for event in (start, complete):
        check(event)
        assert event["run"]["runId"] == run_id_of(ledger.identity(), run.id, 1)
        assert event["job"]["namespace"] == f"manta://{ledger.identity()}/test"
        assert event["job"]["facets"]["sourceCodeLocation"]["version"] == "c0de"
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    (read,) = complete["inputs"]
    assert (read["name"], read["facets"]["version"]["datasetVersion"]) == ("source/flights", "t0")
    (made,) = complete["outputs"]
    assert (made["namespace"], made["name"]) == ("file", f"{settings.datasets}/flights")
    assert made["facets"]["version"]["datasetVersion"] == "4"
    columns = [(each["name"], each["type"]) for each in made["facets"]["schema"]["fields"]]
    assert columns == [("flight", "int64"), ("carrier", "string")]
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 12


def test_each_attempt_ends_as_it_did(ledger: Ledger, settings: Settings) -> None:
    settings, path = to_file(settings)
    lost = begun(ledger, "1")
    lost = ledger.move(lost, State.QUEUED, end_reason=EndReason.LOST, message="its node went away")
    again = ledger.move(ledger.start(lost, "s-1-2"), State.RUNNING)
    succeeded(ledger, again)
    stopped = begun(ledger, "2")
    ledger.move(stopped, State.STOPPED, end_reason=EndReason.STOP_REQUESTED)
    Emitter(settings, ledger).tell()
    told = events(path)
    for event in told:
        check(event)
    assert [event["eventType"] for event in told] == ["START", "FAIL", "START", "COMPLETE", "START", "ABORT"]
    first, _, second, *_ = told
    assert first["run"]["runId"] != second["run"]["runId"]
    assert first["run"]["facets"]["parent"]["run"] == second["run"]["facets"]["parent"]["run"]
    assert told[1]["run"]["facets"]["errorMessage"]["message"] == "its node went away"
    assert told[1]["outputs"] == []


def test_nothing_is_lost_when_the_consumer_or_the_server_goes_away(
    ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OL_KEY", "canary-key")
    consumer = Consumer([201, 503, 201, 500])
    to = OpenLineage(url=consumer.url, key="${env:OL_KEY}")
    settings = settings.model_copy(update={"openlineage": to})
    for key in ("1", "2"):
        succeeded(ledger, begun(ledger, key))
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"answered 50[03]"):
            Emitter(settings, ledger).tell()
    assert Emitter(settings, ledger).tell() == 2
    assert [each["eventType"] for each in consumer.events] == ["START", "COMPLETE", "START", "COMPLETE"]
    assert set(consumer.asked) == {("/api/v1/lineage", "Bearer canary-key")}
    consumer.shutdown()
    consumer.server_close()
    succeeded(ledger, begun(ledger, "3"))
    with pytest.raises(Unavailable, match="does not answer"):
        Emitter(settings, ledger).tell()


def test_an_event_that_is_refused_for_good_holds_up_no_other(ledger: Ledger, settings: Settings) -> None:
    consumer = Consumer([422])
    settings = settings.model_copy(update={"openlineage": OpenLineage(url=consumer.url)})
    succeeded(ledger, begun(ledger))
    assert Emitter(settings, ledger).tell() == 2
    assert [each["eventType"] for each in consumer.events] == ["COMPLETE"]
    consumer.shutdown()
    consumer.server_close()


# Does what a worker does with the ledger: the controller that leads sees a run whose process is there.
WORKER = """
import sys
from manta.ledger.runs import EndReason, State
from manta.ledger.store import Ledger
from manta.settings import Settings

ledger = Ledger(Settings.load(".").ledger_url)
run = ledger.move(ledger.run(int(sys.argv[1])), State.RUNNING)
ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE)
"""


def test_no_run_waits_for_a_consumer_that_is_down(settings: Settings) -> None:
    settings = settings.model_copy(update={"openlineage": OpenLineage(url="http://127.0.0.1:9")})
    engine = InlineEngine(settings, settings.home / "inline", [sys.executable, "-c", WORKER])
    platform = Platform(settings, engine)
    package, content = pack(settings.root)
    platform.put_package(package, content)
    platform.start()
    try:
        for number in (1, 2):  # the second while there is something to tell of the first
            run = submitted(platform.ledger, str(number), package)
            until = time.monotonic() + 120
            while not (run := platform.get_run(run.id)).state.ended:
                assert time.monotonic() < until, platform.logs(run.id)
                time.sleep(0.05)
            assert (run.state, run.attempt) == (State.SUCCEEDED, 1), run.message
            with pytest.raises(Unavailable, match="does not answer"):
                Emitter(settings, platform.ledger).tell()
            assert platform.controller.trouble == ""
        assert [each.stage for each in platform.ledger.told.pending()] == [0, 0]
    finally:
        platform.close()


def test_the_settings_name_one_place(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/local.yaml").write_text("openlineage: {url: 'http://x', file: y}\n")
    with pytest.raises(SettingsInvalid, match="url or file"):
        Settings.load(tmp_path)
