"""Starting, finding and stopping processes, with real ones."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from manta.control import processes
from manta.control.processes import MARK, Started
from tests.integration.local.web_part import until

FAMILY = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN) if "deaf" in sys.argv else None
if "parent" in sys.argv:
    # Two children in our session, one of them without the mark; two in their own, one of them without the
    # mark and deaf to SIGTERM.
    nobody = {name: value for name, value in os.environ.items() if name != "MANTA_STARTED_FOR"}
    again = [sys.executable, "-c", sys.argv[1], sys.argv[1]]
    subprocess.Popen([*again, "child"])
    subprocess.Popen([*again, "plain"], env=nobody)
    subprocess.Popen([*again, "own"], start_new_session=True)
    subprocess.Popen([*again, "deaf"], start_new_session=True, env=nobody)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.fixture
def family(tmp_path: Path) -> Iterator[tuple[str, Started]]:
    """A mark, and the leader of a family of five."""
    mark = f"{tmp_path}:family"
    log = tmp_path / "log"
    leader = processes.start(
        [sys.executable, "-c", FAMILY, FAMILY, "parent"], mark=mark, env=os.environ, log=log, folder=tmp_path
    )
    until(lambda: log.read_text().count("ready") == 5)
    yield mark, leader
    processes.stop(mark, [leader], grace=0)


def test_finds_children_in_other_sessions_and_without_the_mark(family: tuple[str, Started]) -> None:
    mark, leader = family
    assert len(processes.belonging(mark, [leader])) == 5
    assert os.getsid(leader.pid) == leader.pid


def test_finds_what_a_dead_leader_left(family: tuple[str, Started]) -> None:
    mark, leader = family
    everyone = set(processes.belonging(mark, [leader]))
    os.kill(leader.pid, signal.SIGKILL)
    until(lambda: not leader.alive)
    # Of an orphan in another session and without the mark there is no trace; all others are found, and those
    # with a mark even without knowing the leader.
    found = set(processes.belonging(mark, [leader]))
    assert len(found) == 3
    assert len(processes.belonging(mark, [])) == 2
    for process in everyone - found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_stops_all_of_them_and_nobody_else(family: tuple[str, Started], tmp_path: Path) -> None:
    mark, leader = family
    other = processes.start(
        [sys.executable, "-c", FAMILY, FAMILY, "other"],
        mark=f"{tmp_path}:other",
        env=os.environ,
        log=tmp_path / "other.log",
        folder=tmp_path,
    )
    try:
        pids = processes.stop(mark, [leader], grace=1.0)
        assert len(pids) == 5
        assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)
        assert other.alive
    finally:
        processes.stop(f"{tmp_path}:other", [other], grace=0)


def test_a_pid_that_was_given_to_somebody_else_is_left_alone(tmp_path: Path) -> None:
    bystander = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True
    )
    try:
        ours_once = Started(bystander.pid, psutil.Process(bystander.pid).create_time() - 100)
        assert not ours_once.alive
        assert processes.stop(f"{tmp_path}:x", [ours_once], grace=1.0) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_process_with_another_mark_is_not_ours_though_we_started_it(tmp_path: Path) -> None:
    code = (
        f"import os, subprocess, time; os.environ[{MARK!r}] = 'theirs'; {'subprocess.run'}(['sleep', '60'])"
    )
    mark = f"{tmp_path}:x"
    leader = processes.start(
        [sys.executable, "-c", code], mark=mark, env=os.environ, log=tmp_path / "log", folder=tmp_path
    )
    until(lambda: bool(psutil.Process(leader.pid).children()))
    child = psutil.Process(leader.pid).children()[0]
    until(lambda: processes.mark_of(child) == "theirs")
    try:
        assert [process.pid for process in processes.belonging(mark, [leader])] == [leader.pid]
    finally:
        child.kill()
        processes.stop(mark, [leader], grace=1.0)
