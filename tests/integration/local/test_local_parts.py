"""`up` and `down` with one quick part, a real web server: what they do when things are not as they should."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from manta.control import processes
from manta.control.local import Local
from manta.control.parts import PYTHON, ray_folder
from manta.control.parts import server as manta_server
from manta.errors import Conflict, PortInUse, SettingsInvalid, Unavailable
from manta.settings import Ports, Settings
from tests.conftest import free_ports
from tests.integration.local.web_part import until, web

SCRIPT = [sys.executable, "-m", "tests.integration.local.web_part"]
Told = list[tuple[str, str, str]]


@pytest.fixture
def its(tmp_path: Path):
    """Settings; what they start is stopped at the end."""
    home = tmp_path / ".manta"
    settings = Settings(project="test", root=tmp_path, home=home, ports=free_ports())._resolved()
    yield settings
    Local(settings, [web(settings)]).down(lambda *_: None)
    assert processes.belonging(f"{home}:server", []) == []


def leaders(settings: Settings) -> list[int]:
    return [process.pid for process in processes.belonging(f"{settings.home}:server", [])]


def test_up_down_up(its: Settings) -> None:
    told: Told = []
    local = Local(its, [web(its)])
    assert [part.state for part in local.status()] == ["down"]
    assert local.up(lambda *t: told.append(t))["server"] == f"http://127.0.0.1:{its.ports.server}"
    first = leaders(its)
    assert [state for _, state, _ in told] == ["starting", "up"]
    assert [(part.state, part.pid) for part in local.status()] == [("up", first[0])]

    told.clear()
    local.up(lambda *t: told.append(t))
    assert leaders(its) == first
    assert [state for _, state, _ in told] == ["up"]
    assert "already up" in told[0][2]

    told.clear()
    local.down(lambda *t: told.append(t))
    assert leaders(its) == []
    assert told == [("server", "down", "stopped 1 process")]
    assert processes.is_free("127.0.0.1", its.ports.server)
    local.down(lambda *t: told.append(t))
    assert told[-1] == ("server", "down", "was not up")


def test_what_was_killed_is_started_again(its: Settings) -> None:
    local = Local(its, [web(its)])
    local.up(lambda *_: None)
    [before] = leaders(its)
    os.kill(before, signal.SIGKILL)
    until(lambda: local.status()[0].state == "down")
    assert "has ended" in local.status()[0].detail
    local.up(lambda *_: None)
    [after] = leaders(its)
    assert after != before


@pytest.mark.parametrize("seconds", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_up_may_be_killed_at_any_moment(its: Settings, seconds: float) -> None:
    killed = subprocess.Popen([*SCRIPT, str(its.home), str(its.ports.server)], stdout=subprocess.PIPE)
    time.sleep(seconds)
    killed.kill()
    killed.wait()
    Local(its, [web(its)]).up(lambda *_: None)
    assert len(leaders(its)) == 1


def test_what_was_started_but_not_written_down_is_replaced(its: Settings) -> None:
    local = Local(its, [web(its)])
    local.up(lambda *_: None)
    (its.home / "state.json").unlink()  # as if `up` had been killed between starting and writing
    assert "left over" in local.status()[0].detail
    local.up(lambda *_: None)
    assert len(leaders(its)) == 1


@pytest.mark.timeout(60)  # it would wait for two minutes
def test_an_interrupted_up_gives_up_at_once(its: Settings) -> None:
    # Tests that run in the background inherit an ignored SIGINT.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    silent = replace(web(its), answers=lambda: False)

    def interrupt(part: str, state: str, detail: str) -> None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()

    try:
        with pytest.raises(KeyboardInterrupt):
            Local(its, [silent]).up(interrupt)
    finally:
        signal.signal(signal.SIGINT, before)
    Local(its, [web(its)]).up(lambda *_: None)
    assert len(leaders(its)) == 1


def test_two_at_once_start_one(its: Settings) -> None:
    both = [
        subprocess.Popen([*SCRIPT, str(its.home), str(its.ports.server)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted("server starting" in each for each in told) == [False, True]
    assert sorted("already up" in each for each in told) == [False, True]
    assert len(leaders(its)) == 1


def test_one_waits_while_another_is_at_work(its: Settings) -> None:
    Local(its, [web(its)]).up(lambda *_: None)
    Local(its, [web(its)]).down(lambda *_: None)
    with (its.home / "up.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [*SCRIPT, str(its.home), str(its.ports.server)]
        waiting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert waiting.stdout
        assert "another `manta up` or `down` is at work" in waiting.stdout.readline()
        assert leaders(its) == []
    assert "server starting" in waiting.communicate()[0]
    assert len(leaders(its)) == 1


def test_a_port_in_use_is_named_with_its_owner_and_the_setting(its: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", its.ports.server))
        taken.listen()
        with pytest.raises(PortInUse) as refused:
            Local(its, [web(its)]).up(lambda *_: None)
    assert f"port {its.ports.server}" in refused.value.message
    assert f"process {os.getpid()}" in refused.value.message
    assert "MANTA_PORTS__SERVER=" in refused.value.hint
    assert leaders(its) == []


def test_a_port_held_by_another_platform_says_which(its: Settings, tmp_path: Path) -> None:
    Local(its, [web(its)]).up(lambda *_: None)
    other = its.model_copy(update={"home": tmp_path / "other"})
    with pytest.raises(PortInUse, match=str(its.home)):
        Local(other, [web(other)]).up(lambda *_: None)
    assert len(leaders(its)) == 1


def test_a_part_that_ends_shows_the_end_of_its_log(its: Settings) -> None:
    broken = web(its, sys.executable, "-c", "raise SystemExit('no such luck')")
    with pytest.raises(Unavailable, match="no such luck") as failed:
        Local(its, [broken]).up(lambda *_: None)
    assert "server.log" in failed.value.hint
    assert json.loads((its.home / "state.json").read_text()) == {}
    Local(its, [web(its)]).up(lambda *_: None)


def test_a_part_that_ends_while_up_looks_is_started_again(its: Settings) -> None:
    # It answers nothing, and ends when it is first asked; started anew it is well.
    asked = its.home / "asked"
    until_asked = "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.02)"
    dying = web(its, sys.executable, "-c", until_asked, str(asked))
    well = web(its)

    def answers() -> bool:
        asked.touch()
        return well.answers()

    local = Local(its, [dying])
    asked.touch()
    with pytest.raises(Unavailable):
        local.up(lambda *_: None)
    asked.unlink()
    local._start(dying)
    told: Told = []
    Local(its, [replace(well, answers=answers)]).up(lambda *t: told.append(t))
    assert "started again" in told[-1][2]
    assert len(leaders(its)) == 1


def test_other_ports_than_what_is_up_are_refused(its: Settings) -> None:
    Local(its, [web(its)]).up(lambda *_: None)
    moved = its.model_copy(update={"ports": Ports(server=free_ports().server)})
    with pytest.raises(Conflict, match="settings now say"):
        Local(moved, [web(moved)]).up(lambda *_: None)
    assert len(leaders(its)) == 1


def test_what_is_attached_is_neither_started_nor_stopped(its: Settings, tmp_path: Path) -> None:
    Local(its, [web(its)]).up(lambda *_: None)
    far = replace(web(its), attached=True)
    user = its.model_copy(update={"home": tmp_path / "user"})
    told: Told = []
    local = Local(user, [far])
    local.up(lambda *t: told.append(t))
    assert [state for _, state, _ in told] == ["attached"]
    assert [part.state for part in local.status()] == ["attached"]
    local.down(lambda *_: None)
    assert len(leaders(its)) == 1
    with pytest.raises(Unavailable, match="does not answer"):
        Local(user, [replace(far, answers=lambda: False)]).up(lambda *_: None)


def test_settings_tell_what_is_attached(its: Settings) -> None:
    assert not manta_server(its).attached
    assert manta_server(its.model_copy(update={"server_url": "http://manta.example"})).attached


def test_only_the_loopback_interface(its: Settings) -> None:
    with pytest.raises(SettingsInvalid, match="loopback"):
        Local(its.model_copy(update={"host": "0.0.0.0"})).up(lambda *_: None)


def test_ray_gets_a_short_folder_of_its_own(its: Settings) -> None:
    deep = its.model_copy(update={"home": its.home / ("d" * 60)})
    assert ray_folder(deep).parent.name.startswith(f"manta-{os.getuid()}-")
    assert ray_folder(deep) != ray_folder(its.model_copy(update={"home": its.home / ("e" * 60)}))
    short = its.model_copy(update={"home": Path("/srv/p/.manta")})
    assert ray_folder(short) == Path("/srv/p/.manta/ray")


def test_the_part_runs_outside_of_the_callers_terminal(its: Settings) -> None:
    Local(its, [web(its)]).up(lambda *_: None)
    [pid] = leaders(its)
    process = psutil.Process(pid)
    assert os.getsid(pid) == pid
    assert process.terminal() is None
    assert process.cmdline()[: len(PYTHON) - 1] == list(PYTHON[:-1])
