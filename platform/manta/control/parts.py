"""The parts of a platform on one machine: how each is started, and how one tells that it answers.

All listen on the loopback interface only. None is imported here: each is a process of its own, of the same
interpreter.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import importlib.metadata
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import psutil

from manta.control import processes
from manta.errors import SettingsInvalid, Unavailable
from manta.secrets import resolve_url, without_passwords
from manta.settings import CLUSTER_VARIABLE, WORKER_VARIABLE, Settings

# "-P": the working directory must not come first where modules are looked up.
PYTHON = (sys.executable, "-P", "-m")
SESSION_PATH = len("/session_2026-01-31_23-59-59_999999_4194304/sockets/dash_MetricsHead")
SOCKET_PATH = 103  # bytes a Unix socket's path may have: 107 on Linux, 103 on macOS
SESSIONS_KEPT = 2


@dataclass(frozen=True)
class Spec:
    """One part.

    Attributes:
        name: as users see it.
        address: what to open to see it.
        ports: by the name of the setting, those it must be able to listen on.
        attached: it is at an address that the settings give; never started, never stopped.
        command: the arguments of its process; called just before it starts.
        env: what its environment has beside everybody's.
        answers: whether it does its work now; returns within a few seconds.
        prepare: called before it starts, while no process of it runs.
        settle: called once it has answered.
        grace: seconds that what runs in it is given to end in good order.
    """

    name: str
    address: str
    answers: Callable[[], bool]
    attached: bool = False
    ports: dict[str, int] = field(default_factory=dict)
    command: Callable[[], list[str]] = list
    env: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None
    settle: Callable[[], None] = lambda: None
    grace: float = 10.0


def all_parts(settings: Settings) -> tuple[Spec, ...]:
    """Ray, unless runs are executed without it, MLflow and the manta server.

    Raises:
        SettingsInvalid: they would have to listen elsewhere than on the loopback interface.
    """
    if settings.host not in ("127.0.0.1", "localhost"):
        raise SettingsInvalid(
            f"host is {settings.host!r}, and what `manta up` starts listens on the loopback interface only",
            hint="leave host out; to use parts that run elsewhere, give ray_url, mlflow_url, server_url",
        )
    cluster = (ray(settings),) if settings.engine == "ray" else ()
    return *cluster, mlflow(settings), server(settings)


def everybodys_env(settings: Settings) -> dict[str, str]:
    """The environment of every part: the caller's, without what would lead one astray."""
    astray = ("RAY_ADDRESS", "MANTA_PROFILE", WORKER_VARIABLE, CLUSTER_VARIABLE)
    env = {name: value for name, value in os.environ.items() if name not in astray}
    here = f"{settings.host},localhost"
    for name in ("NO_PROXY", "no_proxy"):
        env[name] = ",".join(filter(None, [env.get(name, ""), here]))
    return env | {
        "RAY_AUTH_MODE": settings.ray_auth,
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


# --- the manta server ------------------------------------------------------------------------------------


def server(settings: Settings) -> Spec:
    return Spec(
        name="server",
        address=without_passwords(settings.server_url),
        attached=settings.server_url != f"http://{settings.host}:{settings.ports.server}",
        ports={"server": settings.ports.server},
        command=lambda: [*PYTHON, "manta.api"],
        env={WORKER_VARIABLE: settings.for_worker()},
        answers=lambda: get_json(f"{settings.server_url}/healthz") is not None,
    )


# --- MLflow ----------------------------------------------------------------------------------------------


def mlflow(settings: Settings) -> Spec:
    """MLflow's server as uvicorn runs it. `mlflow server` would do the same in twice the time and memory: it
    imports MLflow to prepare the store, and then keeps waiting for a second process that does it again."""
    store = _MlflowStore(settings.home)
    options = {
        "FILE_STORE": store.url,
        "REGISTRY_STORE": store.url,
        "ARTIFACT_ROOT": "mlflow-artifacts:/",
        "ARTIFACT_DESTINATION": str(settings.home / "artifacts"),
        "SERVE_ARTIFACTS": "true",
    }
    url = settings.mlflow_url

    def answers() -> bool:
        # The first question that reaches the store is what makes or checks its tables; it is asked here, by
        # one, so that no two do it at once.
        listed = get_json(f"{url}/api/2.0/mlflow/experiments/search", {"max_results": 1}, seconds=120)
        return listed is not None and "experiments" in listed

    return Spec(
        name="mlflow",
        address=without_passwords(url),
        attached=url != f"http://{settings.host}:{settings.ports.mlflow}",
        ports={"mlflow": settings.ports.mlflow},
        command=lambda: [
            *(*PYTHON, "uvicorn", "mlflow.server.fastapi_app:app", "--workers", "1"),
            *("--host", settings.host, "--port", str(settings.ports.mlflow), "--no-access-log"),
        ],
        env={f"_MLFLOW_SERVER_{name}": value for name, value in options.items()}
        | {"_MLFLOW_SGI_NAME": "uvicorn", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        answers=answers,
        prepare=store.prepare,
        settle=store.settle,
    )


class _MlflowStore:
    """MLflow's SQLite file. MLflow makes the tables of an empty one by itself, and refuses one of an older
    release; neither step survives being cut short, so both are made repeatable here."""

    def __init__(self, home: Path) -> None:
        self.path = home / "mlflow.db"
        self.url = f"sqlite:///{self.path}"
        self._unfinished = home / "mlflow.db.unfinished"
        self._made_for = home / "mlflow.db.version"

    def prepare(self) -> None:
        """Raises:
        Unavailable: the file cannot be brought to this release of MLflow; it is left as it was.
        """
        if self._unfinished.exists() and not self._is_in_use():
            self._remove(self.path)  # its first start was cut short
        if not self.path.exists():
            self._unfinished.touch()
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")  # readers and the writer in parallel, for good
        elif not self._made_for.exists() or self._made_for.read_text() != _mlflow_version():
            self._upgrade()

    def settle(self) -> None:
        self._made_for.write_text(_mlflow_version())
        self._unfinished.unlink(missing_ok=True)

    def _is_in_use(self) -> bool:
        """Whether MLflow has made all of its tables: then it writes its first experiment."""
        try:
            with contextlib.closing(sqlite3.connect(self.path)) as connection:
                return connection.execute("SELECT 1 FROM experiments").fetchone() is not None
        except sqlite3.Error:
            return False

    def _upgrade(self) -> None:
        copy = self.path.with_suffix(".upgraded")
        self._remove(copy)
        with (
            contextlib.closing(sqlite3.connect(self.path)) as old,
            contextlib.closing(sqlite3.connect(copy)) as new,
        ):
            old.backup(new)
        done = subprocess.run(
            [*PYTHON, "mlflow", "db", "upgrade", f"sqlite:///{copy}"], capture_output=True, text=True
        )
        if done.returncode:
            raise Unavailable(
                f"{self.path} cannot be upgraded to MLflow {_mlflow_version()}:\n{done.stderr[-2000:]}",
                hint="install the release of MLflow that wrote it, or move the file away to begin anew",
            )
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        for suffix in ("-wal", "-shm"):  # all of it is in the copy
            Path(f"{self.path}{suffix}").unlink(missing_ok=True)
        copy.replace(self.path)

    @staticmethod
    def _remove(path: Path) -> None:
        for suffix in ("", "-wal", "-shm", "-journal"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


def _mlflow_version() -> str:
    return importlib.metadata.version("mlflow")


# --- Ray -------------------------------------------------------------------------------------------------


def ray(settings: Settings) -> Spec:
    """A Ray head under one `ray start --block`: when any of its processes ends, it ends them all."""
    url = settings.ray_url
    headers = _ray_headers(settings)

    def answers() -> bool:
        # The node takes work, and both APIs that the engine speaks are there (each is a process).
        nodes = get_json(f"{url}/nodes?view=summary", headers=headers)
        alive = nodes is not None and any(
            node.get("raylet", {}).get("state") == "ALIVE" for node in nodes["data"]["summary"]
        )
        paths = ("/api/jobs/", "/api/serve/applications/")
        return alive and all(get_json(url + path, headers=headers) is not None for path in paths)

    return Spec(
        name="ray",
        address=without_passwords(url),
        attached=url != f"http://{settings.host}:{settings.ports.dashboard}",
        ports={name: getattr(settings.ports, name) for name in ("ray", "dashboard", "serve")},
        command=lambda: _ray_start(settings),
        env={
            # Every job inherits it: one that was submitted straight to Ray finds the platform by it.
            CLUSTER_VARIABLE: settings.for_cluster(),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Made for laptops that cannot be part of a cluster: all of Ray stays on 127.0.0.1. Without it
            # Ray takes the machine's address instead, and anybody in the network could run code here.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # A loaded machine is slow to start things, not broken.
            "RAY_raylet_start_wait_time_s": "120",
            "RAY_agent_register_timeout_ms": "120000",
        },
        answers=answers,
        prepare=lambda: _forget_old_sessions(ray_folder(settings)),
    )


def _ray_start(settings: Settings) -> list[str]:
    # Twice the cores: a training's workers and the readers that feed them hold a logical CPU each, and wait
    # for one another most of the time; an endpoint beside them must still find a place.
    cpus = settings.cpus or max(4, 2 * (os.cpu_count() or 1))
    memory = min(2 * 2**30, max(128 * 2**20, _memory() // 10))
    options = {
        "node-ip-address": "127.0.0.1",
        "port": settings.ports.ray,
        "dashboard-host": settings.host,
        "dashboard-port": settings.ports.dashboard,
        "include-dashboard": "true",
        "num-cpus": cpus,
        "object-store-memory": memory,
        "temp-dir": ray_folder(settings),
        # 0: any. Ray's defaults are fixed numbers, of which a machine has one set only.
        "dashboard-agent-listen-port": 0,
        "metrics-export-port": 0,
        "min-worker-port": 0,
        "max-worker-port": 0,
        # Ray's client server cannot be left out, nor be told to choose.
        "ray-client-server-port": _some_free_port(settings.host),
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    return [*PYTHON, "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *flags]


def ray_folder(settings: Settings) -> Path:
    """Where Ray keeps its sessions: in the state folder, or, as the paths of its sockets must be short, in a
    private folder of the system's temporary one."""
    inside = settings.home / "ray"
    if len(os.fsencode(inside)) + SESSION_PATH <= SOCKET_PATH:
        return inside
    name = hashlib.sha256(os.fsencode(settings.home)).hexdigest()[:8]
    for base in (Path(tempfile.gettempdir()), Path("/tmp")):
        folder = base / f"manta-{os.getuid()}-{name}" / "r"
        if len(os.fsencode(folder)) + SESSION_PATH <= SOCKET_PATH:
            return folder
    raise SettingsInvalid(f"{base} is too long a path for Ray's sockets", hint="set TMPDIR to a short path")


def _forget_old_sessions(folder: Path) -> None:
    """Make the folder, the caller's alone, and remove what sessions before the last left in it.

    Raises:
        Unavailable: it is somebody else's.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise Unavailable(
            f"{folder} belongs to somebody else", hint="remove it, or set TMPDIR to another path"
        )
    sessions = sorted(path for path in folder.glob("session_2*") if path.is_dir() and not path.is_symlink())
    for session in sessions[: -(SESSIONS_KEPT - 1)]:
        shutil.rmtree(session, ignore_errors=True)


def _memory() -> int:
    """Bytes of memory that this machine, or the container around us, has."""
    total = int(psutil.virtual_memory().total)
    with contextlib.suppress(OSError, ValueError):
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def _some_free_port(host: str) -> int:
    # Below the range from which the system takes ports by itself: it will not be gone when Ray gets to it.
    return next(
        port for port in iter(lambda: random.randint(20000, 32000), 0) if processes.is_free(host, port)
    )


def _ray_headers(settings: Settings) -> dict[str, str]:
    """Raises:
    SettingsInvalid: Ray is to ask for a token, and there is none.
    """
    if settings.ray_auth != "token":
        return {}
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    token = os.environ.get("RAY_AUTH_TOKEN") or (path.read_text().strip() if path.is_file() else "")
    if not token:
        raise SettingsInvalid(
            "ray_auth is 'token', and there is no token",
            hint="make one: ray get-auth-token --generate; or set ray_auth: disabled",
        )
    return {"Authorization": f"Bearer {token}"}


# --- asking ----------------------------------------------------------------------------------------------

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy: it is here


def get_json(
    url: str, body: Any = None, *, headers: dict[str, str] | None = None, seconds: float = 5.0
) -> Any:
    """The JSON that ``url`` answers with status 200 (to a POST when there is a body), else None."""
    content = None if body is None else json.dumps(body).encode()
    asked = urlsplit(resolve_url(url))
    headers = {"Content-Type": "application/json", **(headers or {})}
    if asked.username:
        login = f"{unquote(asked.username)}:{unquote(asked.password or '')}".encode()
        headers["Authorization"] = f"Basic {base64.b64encode(login).decode()}"
        asked = asked._replace(netloc=asked.netloc.rpartition("@")[2])
    request = urllib.request.Request(asked.geturl(), content, headers)
    try:
        with _direct.open(request, timeout=seconds) as answer:
            return json.load(answer)
    except (OSError, ValueError, urllib.error.URLError):
        return None
