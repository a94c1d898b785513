"""A part that starts in a moment: a real web server. As a script: `up` of a platform that is just that."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from manta.control.local import Local
from manta.control.parts import PYTHON, Spec, get_json
from manta.settings import Ports, Settings

SLOW = (
    "import sys, time, runpy; time.sleep(0.2); sys.argv[0] = 'x'; "
    "runpy.run_module('http.server', run_name='__main__')"
)


def listening(process: psutil.Process) -> set[str]:
    """The addresses on which it listens."""
    try:
        found = process.net_connections("tcp")
    except psutil.Error:
        return set()
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def web(settings: Settings, *words: str) -> Spec:
    """``words``: the command, in place of the server's own."""
    port = settings.ports.server
    (settings.home / "www").mkdir(parents=True, exist_ok=True)
    (settings.home / "www" / "healthz").write_text("{}")
    arguments = [str(port), "--bind", "127.0.0.1", "--directory", str(settings.home / "www")]
    return Spec(
        name="server",
        address=f"http://127.0.0.1:{port}",
        ports={"server": port},
        command=lambda: list(words) or [*PYTHON[:-1], "-c", SLOW, *arguments],
        answers=lambda: get_json(f"http://127.0.0.1:{port}/healthz") is not None,
        grace=2.0,
    )


if __name__ == "__main__":
    home = Path(sys.argv[1])
    its = Settings(
        project="test", root=home.parent, home=home, ports=Ports(server=int(sys.argv[2]))
    )._resolved()
    Local(its, [web(its)]).up(lambda *told: print(*told, flush=True))
