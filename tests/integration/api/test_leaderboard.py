"""The leaderboard over HTTP, by the client and on the command line; once on each kind of ledger."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import manta
from manta.ledger.actor import Actor
from manta.ledger.runs import EndReason, State, Version

ADA = Actor("user:ada", "http")
PATH = "/v1/projects/test/models/delay/leaderboard"


def trained(served: Any, roc_auc: float, version: str | None) -> int:
    """A run of a training that has ended: refused, unless it has a version."""
    ledger = served.platform.ledger
    trainer = {"kind": "xgboost" if version else "torch"}
    run = ledger.submit(
        key=f"{roc_auc}",
        project="test",
        job="delay",
        kind="training",
        definition={"kind": "training", "name": "delay", "model": "delay", "trainer": trainer},
        fingerprint="f",
        package="z",
        by=ADA,
        adopted=f"r-{roc_auc}",  # the controller is not to start it
    )
    run = ledger.move(run, State.RUNNING)
    gate = {"gate": "roc_auc >= 0.7", "passed": version is not None}
    metrics = {"roc_auc": roc_auc, "gates": [gate]}
    if version is None:
        return int(
            ledger.move(run, State.FAILED, end_reason=EndReason.GATE_FAILED, metrics=metrics, message="no").id
        )
    made = Version(kind="model", name="delay", version=version, detail={})
    return int(
        ledger.move(run, State.SUCCEEDED, end_reason=EndReason.DONE, outputs=[made], metrics=metrics).id
    )


def test_pages_of_the_route_the_client_and_the_command(served_on: Any, tmp_path: Path) -> None:
    served = served_on
    runs = [trained(served, 0.9, "1"), trained(served, 0.5, None), trained(served, 0.8, "2")]
    best_first = [runs[0], runs[2], runs[1]]
    with served.http(served.person("user:eve", test="viewer")) as http:
        first = http.get(PATH, params={"limit": 2}).raise_for_status().json()
        assert [each["run"] for each in first["items"]] == best_first[:2]
        rest = http.get(PATH, params={"limit": 2, "before": first["next"]}).raise_for_status().json()
        assert ([each["run"] for each in rest["items"]], rest["next"]) == (best_first[2:], None)
        assert rest["items"][0]["refused_by"] == ["roc_auc >= 0.7"]
        assert http.get(PATH, params={"metric": "auc"}).status_code == 400
        assert http.get(PATH.replace("delay", "late")).status_code == 404
        assert http.get(PATH.replace("delay", "No")).status_code == 400

    (tmp_path / "cluster").mkdir(exist_ok=True)
    (tmp_path / "cluster/local.yaml").write_text("project: test\n")
    with manta.connect(served.url, key=served.owner_key, root=tmp_path) as client:
        found = client.leaderboard("delay", limit=None)
        assert [(each.rank, each.run, each.version) for each in found] == [
            (1, runs[0], "1"),
            (2, runs[2], "2"),
            (3, runs[1], None),
        ]

    def command(*words: str, status: int = 0) -> str:
        env = os.environ | {"MANTA_URL": served.url, "MANTA_API_KEY": served.owner_key, "COLUMNS": "300"}
        done = subprocess.run(
            [Path(sys.executable).parent / "manta", "leaderboard", *words],
            **{"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 100},
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    shown = command("delay").splitlines()
    assert [line.split()[:3] for line in shown[1:]] == [
        ["1", "0.9000", "1"],
        ["2", "0.8000", "2"],
        ["3", "0.5000", "failed"],
    ]
    assert "0/1: roc_auc >= 0.7 refused" in shown[3]
    assert [each["run"] for each in json.loads(command("delay", "--json", "--limit", "1"))] == runs[:1]
    assert "they have: roc_auc" in " ".join(command("delay", "--metric", "auc", status=2).split())
