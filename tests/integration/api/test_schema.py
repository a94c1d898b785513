"""The server against its own description: whatever is sent, with whatever key, nothing breaks, and every
status is a described one.

MANTA_SCHEMA_EXAMPLES=200 sends more of everything.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = int(os.environ.get("MANTA_SCHEMA_EXAMPLES", "4"))
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
)


@pytest.fixture
def at_work(served):
    for project in ("flights", "others"):
        served.run_of(project)
    return served


def send(served, folder: Path, key: str, phases: str, examples: int) -> str:
    """What schemathesis says when it has found nothing."""
    described = folder / "openapi.json"
    described.write_text(json.dumps(served.app.openapi()))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", str(described), "--url", served.url),
            *("--header", f"Authorization: Bearer {key}", "--checks", ",".join(CHECKS)),
            *("--phases", phases, "--max-examples", str(examples), "--seed", "7"),
            *("--continue-on-failure", "--warnings", "off", "--no-color"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout


@pytest.mark.timeout(1600)
def test_with_an_admins_key(at_work, tmp_path: Path) -> None:
    said = send(at_work, tmp_path, at_work.owner_key, "coverage,fuzzing", EXAMPLES)
    assert re.search(r"[0-9]{3,} generated", said), said
    assert at_work.platform.ledger.audit.verify().broken is None


@pytest.mark.timeout(1600)
def test_with_a_viewers_key(at_work, tmp_path: Path) -> None:
    viewer = at_work.person("user:ada", flights="viewer")
    send(at_work, tmp_path, viewer, "fuzzing", max(2, EXAMPLES // 2))
    told = at_work.platform.ledger.audit.entries(actor="user:ada", limit=500)
    assert {entry.outcome for entry in told} == {"denied"}


@pytest.mark.timeout(1600)
def test_with_a_key_that_opens_nothing(at_work, tmp_path: Path) -> None:
    before = at_work.platform.ledger.audit.entries(limit=500)
    send(at_work, tmp_path, f"manta_{'0' * 12}_{'A' * 43}", "fuzzing", max(2, EXAMPLES // 2))
    since = at_work.platform.ledger.audit.entries(limit=500)[: -len(before)]
    assert {entry.outcome for entry in since} == {"denied"}
