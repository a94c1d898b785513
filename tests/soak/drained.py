"""A node that is taken back while a training works on it: `python -m tests.soak.training --drain`.

Three nodes of one CPU; two workers. The node of a worker is drained with a deadline of some seconds while
both are in their third epoch. Checked: the training goes on with another node from the checkpoint of the
second epoch, does each epoch once, and ends with the very figures of an undisturbed one; and none of the
tries that an attempt has for dead workers was used up.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.soak.nodes import Nodes
from tests.soak.parts import REPOSITORY

STEPS, EPOCHS, DEADLINE = 8, 4, 5
PATIENCE_SECONDS = 500.0


class Log(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def run() -> list[str]:
    """Gives what was found."""
    folder = Path(tempfile.mkdtemp(prefix="sd", dir="/tmp"))
    nodes, log = Nodes(folder), Log()
    logging.getLogger("manta").addHandler(log)
    # All nodes and their workers inherit it.
    os.environ |= {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(REPOSITORY), *sys.path])),
        "RAY_AUTH_MODE": "disabled",
        # A loaded machine is slow to start things, not broken.
        "RAY_raylet_start_wait_time_s": "400",
        "RAY_agent_register_timeout_ms": "400000",
    }
    try:
        nodes.start(2)
        told = _moved(nodes, folder)
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(told), file=sys.stderr)
    findings = []
    if told["node"] in told["after"]:
        findings.append("a worker is on the node that was taken back")
    if [report["epoch"] for report in told["moved"]] != list(range(1, EPOCHS + 1)):
        findings.append(f"the epochs reported are {told['moved']}")
    if told["moved"] != told["calm"]:
        findings.append(f"the figures are {told['moved']}, undisturbed {told['calm']}")
    return findings + [said for said in log.said if "died" in said]


def _moved(nodes: Nodes, folder: Path) -> dict[str, Any]:
    import ray

    from manta.definitions import Torch
    from tests.integration.training.test_torch_own_loop import asked, fitted

    ray.init(address=nodes.address, log_to_driver=False)
    try:
        how = Torch(workers=2, use_gpu=False)
        calm = fitted(asked(folder, "calm", how, epochs=EPOCHS))
        shape = {"nodes": str(folder / "node"), "go": str(folder / "go"), "wait_at": 2 * STEPS + 3}
        wanted = asked(folder, "moved", how, epochs=EPOCHS, **shape)
        told: dict[str, Any] = {"calm": calm.reports}
        head = ray.get_runtime_context().get_node_id()
        with ThreadPoolExecutor(1) as pool:
            mover = pool.submit(_move, nodes, head, wanted.folder, folder)
            told["moved"] = fitted(wanted).reports
            return told | mover.result()
    finally:
        ray.shutdown()


def _move(nodes: Nodes, head: str, runs: Path, folder: Path) -> dict[str, Any]:
    """When two epochs count and the workers wait in the third, take a node back from one of them."""
    reported, until = runs / "moved" / "reports.jsonl", time.monotonic() + PATIENCE_SECONDS
    while not reported.exists() or len(reported.read_text().splitlines()) < 2:
        assert time.monotonic() < until, "no two epochs"
        time.sleep(0.1)
    before = {path: path.read_text() for path in folder.glob("node-*")}
    node = next(found for found in before.values() if found != head)
    nodes.drain(node, DEADLINE)
    while len(after := set(folder.glob("node-*")) - before.keys()) < 2:  # the group has begun again
        assert time.monotonic() < until, "no worker began again"
        time.sleep(0.1)
    (folder / "go").touch()
    return {"node": node, "after": [path.read_text() for path in after]}
