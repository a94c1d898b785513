"""The whole life of the reference project, through the command line of a platform that is really up."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

import manta
from manta.client import Client
from manta.control.processes import MARK
from manta.settings import Settings
from tests.integration.platform.conftest import BIN, Commands

pytestmark = [pytest.mark.platform, pytest.mark.timeout(600)]


@pytest.fixture
def client(flights: Commands, monkeypatch: pytest.MonkeyPatch) -> Client:
    for name, value in flights.env.items():
        if name.startswith("MANTA_"):
            monkeypatch.setenv(name, value)
    return manta.connect(Settings.load(flights.root).server_url, root=flights.root)


def example(client: Client) -> dict[str, Any]:
    """Keys that the endpoint itself says it can be asked with."""
    endpoint = client.endpoints()[0]
    body: dict[str, Any] = httpx.get(endpoint.url).raise_for_status().json()["example"]
    return body


def test_the_model_is_as_good_as_promised(client: Client) -> None:
    champion = next(each for each in client.models() if "champion" in each.aliases)
    metrics = champion.run.metrics
    assert metrics["roc_auc"] >= 0.74
    assert metrics["roc_auc"] > metrics["baseline_roc_auc"]
    assert {"average_precision", "ece"} <= set(metrics)


def test_a_second_demo_reuses_what_is_fresh(flights: Commands, client: Client) -> None:
    runs = len(client.runs(limit=1000))
    said = flights("demo", ".")
    assert "already" in said
    assert "is fresh" in said
    assert "ROC AUC" in said
    assert len(client.runs(limit=1000)) == runs
    assert "Nothing to do" in flights("plan")


def test_asked_by_keys_and_by_rows_the_answer_is_the_same(client: Client) -> None:
    body = example(client)
    by_keys = client.predict("delay", body, features=True)
    values = by_keys["predictions"][0]["features"]
    by_rows = client.predict("delay", {"rows": values})
    assert by_rows["predictions"][0]["probability"] == pytest.approx(by_keys["predictions"][0]["probability"])
    many = client.predict("delay", {"keys": [body["keys"], body["keys"]]})
    assert [each["probability"] for each in many["predictions"]] == pytest.approx(
        [by_keys["predictions"][0]["probability"]] * 2
    )


def test_the_command_line_predicts(flights: Commands, client: Client) -> None:
    answer = json.loads(flights("predict", "delay", "--json", json.dumps(example(client))))
    assert 0 <= answer["predictions"][0]["probability"] <= 1
    assert json.loads(flights("predict", "delay", "--json", "-", text=json.dumps(example(client))))


def test_keys_never_seen_are_answered_and_say_what_is_missing(client: Client) -> None:
    keys = example(client)["keys"] | {"carrier": "ZZ", "dest": "QQQ", "tailnum": "N0NE"}
    answer = client.predict("delay", {"keys": keys}, features=True)
    prediction = answer["predictions"][0]
    assert 0 <= prediction["probability"] <= 1
    assert "NOT_FOUND" in set(prediction["status"].values())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"carrier": 7}, "carrier"),
        ({"scheduled_departure": "soon"}, "scheduled_departure"),
        ({"scheduled_departure": None}, "scheduled_departure"),
        ({"carier": "UA"}, "carier"),
    ],
)
def test_a_bad_request_is_refused_naming_the_field(
    client: Client, change: dict[str, Any], named: str
) -> None:
    endpoint = client.endpoints()[0]
    answer = httpx.post(f"{endpoint.url}/predict", json={"keys": example(client)["keys"] | change})
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert named in answer.json()["detail"]


def test_a_missing_key_is_refused(client: Client) -> None:
    keys = example(client)["keys"]
    del keys["origin"]
    answer = httpx.post(f"{client.endpoints()[0].url}/predict", json={"keys": keys})
    assert (answer.status_code, "origin" in answer.text) == (400, True)


def test_unknown_names_say_what_there_is(flights: Commands) -> None:
    assert "delay" in flights("predict", "nope", "--json", "{}", status=4)
    assert "flights" in flights("run", "nope", status=4)
    assert "manta runs" in flights("logs", "9999", status=4)


def test_status_and_lists_show_what_there_is(flights: Commands) -> None:
    assert "delay@" in flights("status")
    assert "champion" in flights("models")
    assert re.search(r"delay\s+succeeded", flights("runs"))
    assert "✓" in flights("doctor")


def test_a_changed_feature_shows_in_the_plan(flights: Commands) -> None:
    views = flights.root / "features/views.py"
    text = views.read_text()
    try:
        changed = re.sub(r"ttl=timedelta\((\w+)=(\d+)\)", r"ttl=timedelta(\1=1\2)", text, count=1)
        assert changed != text
        views.write_text(changed)
        plan = flights("plan")
        assert re.search(r"\+\s+feature-repo\s+features\s+its definition or code has changed", plan)
        assert re.search(r"\+\s+training\s+delay\s+features.* will be new", plan)
        assert re.search(r"=\s+ingest\s+flights", plan)
    finally:
        views.write_text(text)
    assert "Nothing to do" in flights("plan")


def test_a_model_that_fails_a_gate_is_not_registered(flights: Commands, client: Client) -> None:
    before, answer = client.models(), client.predict("delay", example(client))
    said = flights("run", "delay", "--param", "epochs=1", "--param", "learning_rate=0.0", "--wait", status=1)
    assert re.search(r"roc_auc.*0\.\d+", said)
    assert client.runs(job="delay", limit=1)[0].end_reason == "GATE_FAILED"
    assert [each.version for each in client.models()] == [each.version for each in before]
    after = client.predict("delay", example(client))
    assert (after["version"], after["predictions"]) == (answer["version"], answer["predictions"])


def test_a_run_can_be_stopped(flights: Commands, client: Client) -> None:
    run = client.submit("departures")
    assert "STOPPED" in flights("stop", str(run.id))
    assert client.run(run.id).end_reason == "STOP_REQUESTED"
    assert client.runs(active=True) == []


def test_a_killed_demo_goes_on_and_another_joins_it(flights: Commands, client: Client) -> None:
    ingests = flights.root / "jobs/ingests.py"
    text = ingests.read_text()
    changed = text.replace('"name": Column(type="string")}', '"name": Column(type="string", nullable=True)}')
    assert changed != text
    try:
        ingests.write_text(changed)
        process = subprocess.Popen(
            [f"{BIN}/manta", "demo", "."], cwd=flights.root, env=flights.env, stdout=subprocess.PIPE
        )
        while not client.runs(active=True):
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        submitted = [(run.id, run.job) for run in client.runs(limit=2)]
        assert submitted[0][1] == "airlines"
        flights("apply")
        assert [(run.id, run.job) for run in client.runs(limit=2)] == submitted
        assert "Nothing to do" in flights("plan")
    finally:
        ingests.write_text(text)
        flights("apply")


def test_the_projects_own_tests_pass_in_the_copy(flights: Commands) -> None:
    done = flights.shell(str(BIN / "python"), "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider")
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d+ passed", done.stdout)
    assert "skipped" not in done.stdout


def _loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def test_ports_listen_on_the_loopback_only(flights: Commands) -> None:
    import psutil

    home = str(flights.root / ".manta")
    mine = set()
    for process in psutil.process_iter():
        try:
            if home in process.environ().get(MARK, "") or home in " ".join(process.cmdline()):
                mine.add(process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    mine.discard(os.getpid())
    open_to_all = {
        (each.pid, each.laddr.port, each.laddr.ip)
        for each in psutil.net_connections("inet")
        if each.status == psutil.CONN_LISTEN and each.pid in mine and not _loopback(each.laddr.ip)
    }
    assert open_to_all == set(), {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid, *_ in open_to_all}
